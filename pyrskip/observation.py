"""What a gate may see before any fine pixel is encoded, and what it must know of the model that it decides
for.

Axes: B batch, T tiles, S actions, C channels of the encoder's map, G tiles a side of a level, F of the next
finer one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates
from pyrskip.errors import UserError
from pyrskip.transfer import sent

Shape = tuple[int | None, ...]
"""Of one row of a tensor; None: varies from batch to batch."""

Reveal = Callable[[int, Tensor], Tensor]
"""(tile, keep [B] bool) -> mean features [B, C] of that tile, encoded for the rows that keep it; zero for
others."""

RevealLevel = Callable[[int, Tensor], Tensor]
"""(level, keep [B, G * G] bool of its tiles) -> mean features [B, F * F, C] of what these tiles, encoded for
the rows that keep them, show at the place of each tile of the next finer level; zero under others."""


@dataclass(frozen=True)
class Observation:
    """signals: name of a tensor -> [B, ...], as the signals of `pyrskip.signals` give them; capacity [B, T]
    int64; cost [B, S]: relative cost of every action; price [B] >= 0. reveal, reveal_level: the ways to look
    at what has been kept, None where the environment has none. candidates: the listed decisions, None where
    they were not needed yet."""

    signals: Mapping[str, Tensor]
    capacity: Tensor
    cost: Tensor
    price: Tensor
    reveal: Reveal | None = None
    reveal_level: RevealLevel | None = None
    candidates: Candidates | None = None

    def __getitem__(self, name: str) -> Tensor:
        """A signal's tensor. Raises UserError where the environment does not have it."""
        if name not in self.signals:
            raise UserError(
                f"the gate reads the signal {name!r}, and this model, or this rollout table, has none; "
                f"allowed: {', '.join(self.signals)}, or rollouts made anew with a model that has it (delete "
                "these first)"
            )
        return self.signals[name]

    def head(self, rows: int) -> "Observation":
        """The first rows alone, with nothing to look at."""
        return replace(
            self,
            reveal=None,
            reveal_level=None,
            signals={name: value[:rows] for name, value in self.signals.items()},
            capacity=self.capacity[:rows],
            cost=self.cost[:rows],
            price=self.price[:rows],
            candidates=None if self.candidates is None else Candidates(self.candidates.tokens[:rows]),
        )


@dataclass(frozen=True)
class Layout:
    """signals: name of a tensor -> the shape of one row; tiles: T; actions, budget: the candidate
    decisions; grid: tiles a side of each level, finest first, of a gate that knows where tiles lie."""

    signals: Mapping[str, Shape]
    tiles: int
    actions: ActionSet
    budget: BudgetRule
    grid: tuple[int, ...] = ()

    def tile_costs(self, cost: Tensor, capacity: Tensor) -> Tensor:
        """What each tile adds to the relative cost, [B, T] float: what its level adds to the glance, by the
        tile's share of the level's capacity. Exact where costs add up and a level's tiles are alike, and
        near elsewhere. cost [B, S] of the listed actions, capacity [B, T]."""
        names, selection = self.actions.names, self.actions.selection
        alone = cost[:, names.index("glance")]
        total = torch.zeros_like(capacity, dtype=cost.dtype)
        for level in (str(number) for number in range(self.tiles - 1)):
            if level in names:
                tiles = sent(selection[names.index(level)], capacity.device).clone()
                tiles[-1] = False
                of_level = capacity * tiles
                share = of_level / of_level.sum(-1, keepdim=True).clamp(min=1)
                total = total + share * (cost[:, names.index(level)] - alone)[:, None]
        return total

    def width(self, name: str, axis: int = -1) -> int:
        """The size of a signal along an axis that does not vary. Raises UserError where the model has no such
        signal."""
        if name not in self.signals:
            raise UserError(f"the model has no signal {name!r}; allowed: {', '.join(self.signals)}")
        size = self.signals[name][axis]
        assert size is not None, f"axis {axis} of {name} varies"
        return size
