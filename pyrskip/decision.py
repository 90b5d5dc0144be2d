"""Decisions: how many tokens are asked of each tile, and what they really give.

Axes: B batch, T tiles, S actions. A decision is an int64 tensor [B, T]; 0 = skipped; where it is not 0 is the selection.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.errors import UserError, choose
from pyrskip.pyramid import Pyramid

MAX_ACTIONS = 4096


def realise(asked: Tensor, cells: Tensor) -> Tensor:
    """Rows and columns that a tile's map is pooled to: the largest h x w <= asked that follows the map's aspect.

    asked [..., T] int64 >= 0, cells [..., T, 2] int64 (rows, columns of each map) -> [..., T, 2] int64; (0, 0) where
    nothing is asked or the tile is padding. realised tokens = h * w, never more than asked nor than the map's cells.
    """
    rows, columns = cells.unbind(-1)
    on = (asked > 0) & (rows > 0) & (columns > 0)
    rows, columns, asked = rows.clamp(min=1), columns.clamp(min=1), asked.clamp(min=1)

    def side(of: Tensor, other: Tensor) -> Tensor:
        ideal = (asked.double() * of / other).sqrt()
        return torch.minimum((ideal + 1e-9).floor().long().clamp(min=1), torch.minimum(of, asked))

    tall = side(rows, columns)
    wide = side(columns, rows)
    by_rows = torch.stack([tall, torch.minimum(columns, asked // tall)], dim=-1)
    by_columns = torch.stack([torch.minimum(rows, asked // wide), wide], dim=-1)
    better = by_columns.prod(-1) > by_rows.prod(-1)
    return torch.where(better[..., None], by_columns, by_rows) * on[..., None]


@dataclass(frozen=True)
class ActionConfig:
    """Which selections are candidates. unit: 'level' (whole levels) or 'tile' (single tiles). sample: so many of single tiles,
    drawn by `seed`, with those of whole levels always among them; None lists all."""

    unit: str = "level"
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in ("level", "tile"):
            raise choose("actions.unit", self.unit, ("level", "tile"))
        if self.sample is not None and self.unit == "level":
            raise UserError(
                f"actions.sample={self.sample} is for actions.unit=tile; allowed with unit=level: null, for all sets"
            )
        if self.seed < 0 or (self.sample is not None and not 2 <= self.sample <= MAX_ACTIONS):
            raise UserError(
                f"actions.sample={self.sample}, seed={self.seed}: allowed: null or 2 to {MAX_ACTIONS}, and at least 0"
            )


@dataclass(frozen=True)
class ActionSet:
    """The candidate selections, where they can be listed. selection [S, T] bool; names: what is kept beside the glance, a level
    by its number and a tile by its level and place."""

    selection: Tensor
    names: tuple[str, ...]

    @classmethod
    def build(cls, pyramid: Pyramid, config: ActionConfig) -> "ActionSet":
        """The config's candidates. Raises UserError where they are too many to list or too few to hold every level."""
        if config.unit == "level":
            return cls.by_level(pyramid)
        if config.sample is None or config.sample >= 2 ** (pyramid.tiles - 1):
            return cls.by_tile(pyramid)
        return cls.sampled(pyramid, config)

    @classmethod
    def by_level(cls, pyramid: Pyramid) -> "ActionSet":
        """All 2^(L-1) sets of whole levels that hold the glance, cheapest names first: 'glance', '2', '1', '1,2', ..."""
        finer = pyramid.levels - 1
        if 2**finer > MAX_ACTIONS:
            raise UserError(f"pyramid.levels={pyramid.levels} gives {2**finer} selections; at most {MAX_ACTIONS} can be listed")
        keeps = sorted(product((False, True), repeat=finer), key=lambda keep: keep)
        return cls._of(pyramid, torch.tensor([[*keep, True] for keep in keeps])[:, pyramid.tile_level])

    @classmethod
    def by_tile(cls, pyramid: Pyramid) -> "ActionSet":
        """All 2^(T-1) sets of tiles that hold the glance: 'glance', '1', '0.3', '0.3,1', ..."""
        finer = pyramid.tiles - 1
        if 2**finer > MAX_ACTIONS:
            raise UserError(
                f"pyramid.grid={list(pyramid.grid)} gives {2**finer} selections of single tiles; at most {MAX_ACTIONS} can be "
                "listed; allowed: actions.sample=<how many>, actions.unit=level, or a smaller grid"
            )
        return cls._of(pyramid, torch.tensor([[*keep, True] for keep in product((False, True), repeat=finer)]))

    @classmethod
    def sampled(cls, pyramid: Pyramid, config: ActionConfig) -> "ActionSet":
        """Every set of whole levels, and random others up to `sample`. A set's share of tiles is drawn first, so that cheap and
        dear ones are as likely as those between."""
        assert config.sample is not None
        whole = cls.by_level(pyramid).selection
        if len(whole) > config.sample:
            raise UserError(
                f"actions.sample={config.sample} has no room for the {len(whole)} selections of whole levels, which are always "
                f"among them; allowed: {len(whole)} to {MAX_ACTIONS}"
            )
        generator = torch.Generator().manual_seed(config.seed)
        found = {tuple(row): None for row in whole.tolist()}
        while len(found) < config.sample:
            share = torch.rand(MAX_ACTIONS, 1, generator=generator)
            keep = torch.rand(MAX_ACTIONS, pyramid.tiles, generator=generator) < share
            keep[:, pyramid.glance] = True
            for row in keep.tolist():
                if len(found) < config.sample:
                    found.setdefault(tuple(row))
        return cls._of(pyramid, torch.tensor(list(found)))

    @classmethod
    def _of(cls, pyramid: Pyramid, selection: Tensor) -> "ActionSet":
        return cls(selection, tuple(_name(pyramid, row) for row in selection))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        return self.names.index(name)

    @property
    def full(self) -> int:
        """The action that keeps every tile."""
        return int(self.selection.sum(-1).argmax())

    def tokens(self, capacity: Tensor, budget: BudgetRule) -> Tensor:
        """The decision of each action. capacity [B, T] -> [B, S, T] int64."""
        return budget.tokens(self.selection.to(capacity.device)[None], capacity[:, None])


def _name(pyramid: Pyramid, selection: Tensor) -> str:
    """'0.3,1': tile 3 of level 0, and level 1 whole."""
    parts = []
    for level in range(pyramid.levels - 1):
        tiles = selection[pyramid.tile_level == level].tolist()
        parts += [str(level)] if all(tiles) else [f"{level}.{i}" for i, kept in enumerate(tiles) if kept]
    return ",".join(parts) or "glance"


def reference(pyramid: Pyramid) -> Tensor:
    """Selection [T] of the model as used without pyrskip: level 0 alone, no glance."""
    return pyramid.tile_level == 0


def one_picture(pyramid: Pyramid) -> Tensor:
    """Selection [T] of a model that is given one picture and shrinks it to its own size: the finest level of one tile."""
    whole = [level for level, g in enumerate(pyramid.grid) if g == 1]
    return pyramid.tile_level == whole[0]


def blind(pyramid: Pyramid) -> Tensor:
    """Selection [T] of no image at all: what the question alone is worth."""
    return torch.zeros(pyramid.tiles, dtype=torch.bool)
