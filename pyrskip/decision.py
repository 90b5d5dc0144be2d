"""Decisions: how many tokens are asked of each tile, and what they really give.

Axes: B batch, T tiles, S actions. A decision is an int64 tensor [B, T]; 0 = skipped; where it is not 0 is the selection.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.errors import UserError
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
class ActionSet:
    """The candidate decisions, where they can be listed.

    selection [S, T] bool; names: the levels kept beside the glance, with the rung (level:rung) where it is not the highest.
    ladder: the rungs, ascending from 0, and rung [S, T] int64: which of them is asked of each tile. Rung r of highest rung R
    asks for r / R of a tile's capacity. Without a ladder the budget rule gives the tokens.
    """

    selection: Tensor
    names: tuple[str, ...]
    ladder: tuple[int, ...] = ()
    rung: Tensor | None = None

    @classmethod
    def of(cls, pyramid: Pyramid, budget: BudgetRule) -> "ActionSet":
        """The action set of a budget: every level's rungs where it has any, else whole levels."""
        return cls.by_level(pyramid) if budget.rungs is None else cls.rungs(pyramid, budget.rungs)

    @classmethod
    def by_level(cls, pyramid: Pyramid) -> "ActionSet":
        """All 2^(L-1) sets of whole levels that hold the glance, cheapest names first: 'glance', '2', '1', '1,2', ..."""
        finer = pyramid.levels - 1
        if 2**finer > MAX_ACTIONS:
            raise UserError(f"pyramid.levels={pyramid.levels} gives {2**finer} selections; at most {MAX_ACTIONS} can be listed")
        keeps = sorted(product((False, True), repeat=finer), key=lambda keep: keep)
        level = pyramid.tile_level
        selection = torch.stack([torch.tensor([*keep, True])[level] for keep in keeps])
        names = tuple(",".join(str(i) for i in range(finer) if keep[i]) or "glance" for keep in keeps)
        return cls(selection, names)

    @classmethod
    def rungs(cls, pyramid: Pyramid, rungs: tuple[int, ...]) -> "ActionSet":
        """The product of the rungs over all levels but the glance, which is asked for whole: 'glance', '2:64', ..., '0,1,2'.

        rungs: ascending from 0, at least two. Raises UserError where they make more decisions than can be listed.
        """
        finer, highest = pyramid.levels - 1, len(rungs) - 1
        if len(rungs) ** finer > MAX_ACTIONS:
            raise UserError(
                f"budget.rungs={list(rungs)} on pyramid.levels={pyramid.levels} gives {len(rungs) ** finer} decisions; "
                f"at most {MAX_ACTIONS} can be listed"
            )
        picks = list(product(range(len(rungs)), repeat=finer))
        rung = torch.tensor([[*pick, highest] for pick in picks])[:, pyramid.tile_level]

        def name(pick: tuple[int, ...]) -> str:
            kept = [(level, of) for level, of in enumerate(pick) if of]
            return ",".join(f"{level}" if of == highest else f"{level}:{rungs[of]}" for level, of in kept) or "glance"

        return cls(rung > 0, tuple(map(name, picks)), tuple(rungs), rung)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def steps(self) -> Tensor:
        """What is asked of each tile as an index of its choices: 0 and 1, or the rung. [S, T] int64."""
        return self.selection.long() if self.rung is None else self.rung

    @property
    def choices(self) -> int:
        """How many choices a tile has: 2, or as many as there are rungs."""
        return len(self.ladder) or 2

    @property
    def complete(self) -> bool:
        """Whether every combination of choices of the single tiles is listed, in order, the finest tile's slowest: then action
        sum over t of choice_t x choices^(T - 2 - t) is the decision that makes those choices."""
        finer = self.selection.shape[1] - 1
        if len(self) != self.choices**finer:
            return False
        return bool((self.steps[:, :-1] @ self.radix == torch.arange(len(self), device=self.selection.device)).all())

    @property
    def radix(self) -> Tensor:
        """What a choice of each tile but the glance adds to the number of the action, [T - 1] int64."""
        finer = self.selection.shape[1] - 1
        return self.choices ** torch.arange(finer - 1, -1, -1, device=self.selection.device)

    def index(self, name: str) -> int:
        return self.names.index(name)

    @property
    def full(self) -> int:
        """The action that keeps every tile, whole where there are rungs."""
        return int(self.steps.sum(-1).argmax())

    def tokens(self, capacity: Tensor, budget: BudgetRule) -> Tensor:
        """The decision of each action. capacity [B, T] -> [B, S, T] int64."""
        if self.rung is not None:
            return rung_tokens(self.rung.to(capacity.device)[None], self.ladder, capacity[:, None])
        return budget.tokens(self.selection.to(capacity.device)[None], capacity[:, None])


def rung_tokens(rung: Tensor, ladder: tuple[int, ...], capacity: Tensor) -> Tensor:
    """Tokens that rungs ask for: r / R of the capacity, rounded up. rung and capacity int [..., T] -> int64 [..., T]."""
    share = torch.tensor([step / ladder[-1] for step in ladder], dtype=torch.float64, device=rung.device)[rung]
    # a share that is a little over a whole number in floats must not round up
    return (share * capacity - 1e-6).ceil().long().clamp(min=0)


def reference(pyramid: Pyramid) -> Tensor:
    """Selection [T] of the model as used without pyrskip: level 0 alone, no glance."""
    return pyramid.tile_level == 0


def blind(pyramid: Pyramid) -> Tensor:
    """Selection [T] of no image at all: what the question alone is worth."""
    return torch.zeros(pyramid.tiles, dtype=torch.bool)
