"""Decisions: how many tokens are asked of each tile, and what they really give.

Axes: B batch, T tiles, S actions.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.errors import UserError, unknown_name
from pyrskip.pyramid import Pyramid
from pyrskip.transfer import sent

MAX_ACTIONS = 4096
UNITS = ("level", "tile", "crop")
CROPS = {
    "top-left": (0, 2, 0, 2),
    "top-right": (0, 2, 2, 4),
    "bottom-left": (2, 4, 0, 2),
    "bottom-right": (2, 4, 2, 4),
    "top": (0, 2, 0, 4),
    "bottom": (2, 4, 0, 4),
    "left": (0, 4, 0, 2),
    "right": (0, 4, 2, 4),
    "centre": (1, 3, 1, 3),
}
"""Name -> first row and the one behind the last, and so of columns, in quarters of the image's canvas."""
# odd, so that its powers stay different in 64 bits: decisions differ where sums of tokens times powers of it
# do
_HASH = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Decision:
    """tokens [B, T] int64: asked of each tile, 0 = skipped. action [B] int64: its number in the action set,
    of several that make the same decision the first; None where it comes from no list."""

    tokens: Tensor
    action: Tensor | None = None

    @property
    def selection(self) -> Tensor:
        """[B, T] bool: the tiles that are kept."""
        return self.tokens > 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Candidates:
    """The decisions of a list of actions. tokens [B, S, T] int64. Actions may make the same decision: those
    that differ in padding alone, or in rungs that a small tile rounds to the same tokens."""

    tokens: Tensor

    @cached_property
    def first(self) -> Tensor:
        """[B, S] int64: the first action that makes the same decision as each."""
        tiles, actions = self.tokens.shape[-1], self.tokens.shape[1]
        factors = sent(torch.tensor([_signed(_HASH**tile) for tile in range(tiles)]), self.tokens.device)
        # a running sum, for onnxruntime sums int64 as floats
        code, order = (self.tokens * factors).cumsum(-1)[..., -1].sort(dim=-1)
        group = F.pad(code.diff(dim=-1) != 0, (1, 0)).long().cumsum(-1)
        least = torch.full_like(order, actions).scatter_reduce(1, group, order, "amin")
        return torch.empty_like(order).scatter(1, order, least.gather(1, group))

    def of(self, rows: Tensor) -> "Candidates":
        """Those of some rows [N], of which `first` is known as well."""
        some = Candidates(self.tokens[rows])
        vars(some)["first"] = self.first[rows]
        return some

    def take(self, action: Tensor) -> Decision:
        """The decision of action [B]."""
        rows = torch.arange(action.shape[0], device=action.device)
        return Decision(self.tokens[rows, action], self.first[rows, action])


def realise(asked: Tensor, cells: Tensor) -> Tensor:
    """Rows and columns that a tile's map is pooled to: the largest h x w <= asked that follows the map's
    aspect.

    asked [..., T] int64 >= 0, cells [..., T, 2] int64 (rows, columns of each map) -> [..., T, 2] int64; (0,
    0) where nothing is asked or the tile is padding. realised tokens = h * w, never more than asked nor than
    the map's cells.
    """
    on = (asked[..., None] > 0) & (cells > 0).all(-1, keepdim=True)
    asked, cells = asked.clamp(min=1)[..., None], cells.clamp(min=1)
    # the sides that rows, and that columns, begin with; a whole ideal is exact: double division and square
    # root are rounded correctly
    ideal = (asked.double() * cells / cells.flip(-1)).sqrt().long().clamp(min=1)
    side = torch.minimum(ideal, torch.minimum(cells, asked))
    # the other side of each: columns behind rows, and rows behind columns
    behind = torch.minimum(cells.flip(-1), asked // side)
    tokens = side * behind
    by_columns = tokens[..., 1:] > tokens[..., :1]
    rows = torch.where(by_columns, behind[..., 1:], side[..., :1])
    columns = torch.where(by_columns, side[..., 1:], behind[..., :1])
    return torch.cat([rows, columns], dim=-1) * on


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As torch.unique over rows of whole numbers, which makes two tensors of every row: [n, k] int64 on the
    CPU, k at least 1 -> a row's number for each kind of them [U], sorted by their columns, and each row's
    kind [n]."""
    # as bytes that sort as the numbers do
    codes = (rows.numpy() ^ np.int64(-(2**63))).astype(">i8").view(f"V{8 * rows.shape[1]}").ravel()
    _, first, kind = np.unique(codes, return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(kind)


@dataclass(frozen=True)
class ActionConfig:
    """Which decisions are candidates. unit: 'level' (whole levels), 'tile' (single tiles), 'crop' (quadrants,
    halves and the like). sample: at most so many, drawn by `seed`, with those that keep whole levels whole
    always among them; None lists all. drawn: selections of single tiles that the rollouts of each question
    that a gate learns from try beside them, its own ones (`pyrskip.proposals`)."""

    unit: str = "level"
    sample: int | None = None
    seed: int = 0
    drawn: int = 0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown_name("actions.unit", self.unit, UNITS)
        if self.unit == "crop" and self.sample is not None:
            raise UserError(
                f"actions.sample={self.sample} with actions.unit=crop: allowed: null, all of them"
            )
        if self.seed < 0 or (self.sample is not None and not 2 <= self.sample <= MAX_ACTIONS):
            raise UserError(
                f"actions.sample={self.sample}, seed={self.seed}: allowed: null or 2 to {MAX_ACTIONS}, and "
                "at least 0"
            )
        if not 0 <= self.drawn <= MAX_ACTIONS:
            raise UserError(f"actions.drawn={self.drawn}: allowed: 0 to {MAX_ACTIONS}")


@dataclass(frozen=True)
class ActionSet:
    """The candidate decisions, where they can be listed.

    selection [S, T] bool; names: what is kept beside the glance, a level by its number and a tile by its
    level and place, with the rung (level:rung) where it is not the highest. ladder: the rungs, ascending from
    0, and rung [S, T] int64: which of them is asked of each tile. Rung r of highest rung R asks for r / R of
    a tile's capacity. Without a ladder the budget rule gives the tokens.
    """

    selection: Tensor
    names: tuple[str, ...]
    ladder: tuple[int, ...] = ()
    rung: Tensor | None = None

    @classmethod
    def of(cls, pyramid: Pyramid, budget: BudgetRule, config: ActionConfig | None = None) -> "ActionSet":
        """The product of what may be asked of every unit but the glance: the budget's rungs, or all and
        nothing.

        Or a sample of it. Raises UserError where the product is too large to list, and says how large.
        """
        config, ladder = config or ActionConfig(), budget.rungs or ()
        if config.unit == "crop":
            return cls.crops(pyramid, budget)
        unit = pyramid.tile_level if config.unit == "level" else torch.arange(pyramid.tiles)
        finer, choices = int(unit[-1]), len(ladder) or 2
        size = count(pyramid, budget, replace(config, sample=None))
        if config.sample is not None and config.sample < size:
            return cls._named(pyramid, _draw(pyramid, unit, choices, config), ladder)
        if size > MAX_ACTIONS:
            cut = (
                f"pyramid.levels={pyramid.levels}"
                if config.unit == "level"
                else f"pyramid.grid={list(pyramid.grid)}"
            )
            rungs = f"budget.rungs={list(ladder)} on " if ladder else ""
            raise UserError(
                f"{rungs}{cut} gives {power(choices, finer)} {'decisions' if ladder else 'selections'}; at "
                f"most {MAX_ACTIONS} can be listed; allowed: actions.sample=<how many>, or less of either"
            )
        picks = torch.tensor(list(product(range(choices), repeat=finer))).view(size, finer)
        return cls._named(pyramid, _with_glance(picks, choices)[:, unit], ladder)

    @classmethod
    def by_level(cls, pyramid: Pyramid) -> "ActionSet":
        """All 2^(L-1) sets of whole levels that hold the glance, cheapest names first: 'glance', '2', '1',
        '1,2', ..."""
        return cls.of(pyramid, BudgetRule())

    @classmethod
    def crops(cls, pyramid: Pyramid, budget: BudgetRule) -> "ActionSet":
        """Quadrants, halves and the centre of level 0, all of it, and the glance alone (AwaRes,
        arXiv:2603.16932): 'glance', '0.top-left', ..., '0.centre', '0'.

        Raises UserError unless level 0 is cut into quarters of its sides and is the only one beside the
        glance, and for rungs.
        """
        g = pyramid.grid[0]
        if pyramid.levels != 2 or g % 4 or budget.rungs:
            raise UserError(
                f"actions.unit=crop with pyramid.grid={list(pyramid.grid)}, budget.rungs={budget.rungs}: "
                "allowed: two levels, of which level 0 is cut into a multiple of 4 tiles a side, such as "
                "pyramid.levels=2 pyramid.grid=[4], and no rungs"
            )
        kept = torch.zeros(len(CROPS) + 2, pyramid.tiles, dtype=torch.bool)
        kept[:, pyramid.glance] = kept[-1, :] = True
        for row, quarters in zip(kept[1:-1], CROPS.values(), strict=True):
            top, end, start, stop = (quarter * g // 4 for quarter in quarters)
            row[:-1].view(g, g)[top:end, start:stop] = True
        return cls(kept, ("glance", *(f"0.{name}" for name in CROPS), "0"))

    @classmethod
    def rungs(cls, pyramid: Pyramid, rungs: tuple[int, ...]) -> "ActionSet":
        """The product of the rungs over all levels but the glance, which is asked for whole: 'glance',
        '2:64', ..., '0,1,2'.

        rungs: ascending from 0, at least two.
        """
        return cls.of(pyramid, BudgetRule(rungs=rungs))

    @classmethod
    def _named(cls, pyramid: Pyramid, rung: Tensor, ladder: tuple[int, ...]) -> "ActionSet":
        """rung [S, T]: the choice of each tile, 0 or 1 without a ladder."""
        names = tuple(_name(pyramid, row, ladder) for row in rung)
        return cls(rung > 0, names, ladder, rung if ladder else None)

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

    @cached_property
    def complete(self) -> bool:
        """Whether every combination of choices of the single tiles is listed, in order, the finest tile's
        slowest: then action sum over t of choice_t x choices^(T - 2 - t) is the decision that makes those
        choices."""
        finer = self.selection.shape[1] - 1
        if len(self) != self.choices**finer:
            return False
        numbers = torch.arange(len(self), device=self.selection.device)
        return bool(((self.steps[:, :-1] * self.radix).sum(-1) == numbers).all())

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

    def number(self, steps: Tensor) -> Tensor | None:
        """The action that makes these choices of the tiles beside the glance, steps [B, T - 1] int64 -> [B];
        None where the list does not hold every combination."""
        return (steps * sent(self.radix, steps.device)).sum(-1) if self.complete else None

    def touched(self, selection: Tensor, tile_level: Tensor) -> Tensor:
        """The action that keeps whole levels, those of which a selection keeps any tile: a name for what is
        not listed. selection [N, T] bool -> [N] int64. Sets of whole levels are always listed."""
        levels = int(tile_level.max()) + 1
        any_of = torch.stack([selection[:, tile_level == level].any(-1) for level in range(levels)], dim=-1)
        whole, of = torch.unique(any_of[:, tile_level], dim=0, return_inverse=True)
        same = (whole[:, None] == sent(self.selection, whole.device)).all(-1)
        same = same & (self.steps == self.steps.amax() * self.selection).all(-1).to(same.device)
        action: Tensor = same.int().argmax(-1)
        return action[of]

    def tokens(self, capacity: Tensor, budget: BudgetRule) -> Tensor:
        """The decision of each action. capacity [B, T] -> [B, S, T] int64."""
        if self.rung is not None:
            return rung_tokens(sent(self.rung, capacity.device)[None], self.ladder, capacity[:, None])
        return budget.tokens(sent(self.selection, capacity.device)[None], capacity[:, None])


def power(choices: int, units: int) -> str:
    """How many combinations so many units of as many choices have, in words: the number where one can read
    it."""
    return str(choices**units) if units < 40 else f"{choices}^{units}"


def count(pyramid: Pyramid, budget: BudgetRule, config: ActionConfig) -> int:
    """How many actions `ActionSet.of` lists, or would have to."""
    if config.unit == "crop":
        return len(CROPS) + 2
    units = pyramid.levels if config.unit == "level" else pyramid.tiles
    size: int = (len(budget.rungs or ()) or 2) ** (units - 1)
    return size if config.sample is None else min(size, config.sample)


def _draw(pyramid: Pyramid, unit: Tensor, choices: int, config: ActionConfig) -> Tensor:
    """Every set of whole levels, and random others up to `sample`: [S, T], the choice of each tile.

    How much is kept is drawn first, so that cheap and dear decisions are as likely as those between.
    """
    assert config.sample is not None
    whole = torch.tensor(list(product((0, choices - 1), repeat=pyramid.levels - 1)))
    if len(whole) > config.sample:
        raise UserError(
            f"actions.sample={config.sample} has no room for the {len(whole)} selections of whole levels, "
            f"which are always among them; allowed: {len(whole)} to {MAX_ACTIONS}"
        )
    found = {tuple(row): None for row in _with_glance(whole, choices)[:, pyramid.tile_level].tolist()}
    generator = torch.Generator().manual_seed(config.seed)
    finer = int(unit[-1])
    while len(found) < config.sample:
        kept = torch.rand(MAX_ACTIONS, finer, generator=generator) < torch.rand(
            MAX_ACTIONS, 1, generator=generator
        )
        pick = torch.randint(1, choices, (MAX_ACTIONS, finer), generator=generator) * kept
        for row in _with_glance(pick, choices)[:, unit].tolist():
            if len(found) < config.sample:
                found.setdefault(tuple(row))
    return torch.tensor(list(found))


def _with_glance(picks: Tensor, choices: int) -> Tensor:
    """Choices of all units but the glance [S, n] -> with the glance's, the highest: [S, n + 1]."""
    return torch.cat([picks, torch.full((len(picks), 1), choices - 1)], dim=1)


def _name(pyramid: Pyramid, rung: Tensor, ladder: tuple[int, ...]) -> str:
    """'0.3:64,1': tile 3 of level 0 at rung 64, and level 1 whole. rung [T]."""
    parts = []
    for level in range(pyramid.levels - 1):
        of_tiles = rung[pyramid.tile_level == level].tolist()
        alike = of_tiles[:1] if len(set(of_tiles)) == 1 else []
        named = [(str(level), step) for step in alike] or [
            (f"{level}.{i}", step) for i, step in enumerate(of_tiles)
        ]
        highest = len(ladder) - 1 if ladder else 1
        parts += [name if step == highest else f"{name}:{ladder[step]}" for name, step in named if step]
    return ",".join(parts) or "glance"


def rung_tokens(rung: Tensor, ladder: tuple[int, ...], capacity: Tensor) -> Tensor:
    """Tokens that rungs ask for: r / R of the capacity, rounded up. rung and capacity int [..., T] -> int64
    [..., T]."""
    shares = sent(torch.tensor([step / ladder[-1] for step in ladder], dtype=torch.float64), rung.device)
    # a share that is a little over a whole number in floats must not round up
    return (shares[rung] * capacity - 1e-6).ceil().long().clamp(min=0)


def reference(pyramid: Pyramid) -> Tensor:
    """Selection [T] of the model as used without pyrskip: level 0 alone, no glance."""
    return pyramid.tile_level == 0


def one_picture(pyramid: Pyramid) -> Tensor:
    """Selection [T] of a model that is given one picture and shrinks it to its own size: the finest level of
    one tile."""
    whole = [level for level, g in enumerate(pyramid.grid) if g == 1]
    return pyramid.tile_level == whole[0]


def blind(pyramid: Pyramid) -> Tensor:
    """Selection [T] of no image at all: what the question alone is worth."""
    return torch.zeros(pyramid.tiles, dtype=torch.bool)


def _signed(number: int) -> int:
    """What is left of a number in 64 bits with a sign."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
