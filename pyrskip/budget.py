"""Budgets: how many tokens each selected tile gets.

Axes: B batch, T tiles. Counts are tokens. `allocate` is the exact maths, `BudgetRule` turns a selection into
tokens with it, and `StochasticBudget` draws the share of capacity that a training step uses, so that one
model learns to work at any budget.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pyrskip.errors import UserError, unknown_name

# shares are rounded to this grid, so that float noise can neither make nor break a tie between remainders
_GRID = 2.0**20
# a weight this far below the row's largest counts as zero: dividing by it would overflow
_NEGLIGIBLE = 1e-280
_KINDS = ("tokenflex", "uniform", "sandwich", "fixed")


def allocate(
    weights: Tensor, total: int | Tensor, *, floor: int | Tensor = 0, cap: int | Tensor, keep: Tensor
) -> Tensor:
    """Divide exactly `total` tokens among the kept tiles, in proportion to their weights within floor and
    cap.

    The real-valued shares are the one solution of sum over t of clip(lambda * weight_t, floor_t, cap_t) =
    total; they are rounded by largest remainder, the lower tile first in a tie. What tiles with weight cannot
    hold goes to those of weight 0 in equal shares. Rounding apart, no tile loses when the total grows.

    weights [B, T] finite, >= 0, in any unit; total >= 0, int or int [B]; floor and cap >= 0, int, [T] or
    [B, T], the floor lowered to the cap where that is less; keep [B, T] bool. Returns int64 [B, T], 0 where
    not kept. Raises UserError for bad weights, a negative floor or cap, or a total that is no whole number or
    outside [sum of floors, sum of caps] of a row.
    """
    if weights.ndim != 2:
        raise UserError(f"budget weights of shape {list(weights.shape)}; allowed: [B, T], a row a decision")
    if total.is_floating_point() if isinstance(total, Tensor) else not isinstance(total, int | np.integer):
        raise UserError(f"a total of {total} tokens is no whole number; allowed: int, or an int tensor [B]")
    weights = weights.detach().double()
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise UserError("budget weights must be finite and at least 0")
    floor, cap = (torch.as_tensor(bound, device=weights.device) for bound in (floor, cap))
    if bool((floor < 0).any() | (cap < 0).any()):
        raise UserError("budget floor and cap must be at least 0")
    low, high = _bounds(floor, cap, keep)
    target = torch.as_tensor(total, dtype=torch.int64, device=weights.device).expand(weights.shape[:1])
    _check_feasible(target, low.sum(-1), high.sum(-1))
    return _divide(weights.where(keep, 0.0), target, low, high)


@dataclass(frozen=True)
class BudgetRule:
    """Turns a selection of tiles into tokens.

    total: tokens in all, or None for all that kept tiles can give. floor, cap: least and most tokens of a
    kept tile. weights: one a tile, relative; None means in proportion to capacity. rungs: instead of all
    these, what a decision may ask of each level, ascending from 0, as shares of the highest, which is all
    that a tile can give: the action set lists their product. Raises UserError for values out of range.
    """

    total: int | None = None
    floor: int = 0
    cap: int | None = None
    weights: tuple[float, ...] | None = None
    rungs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rungs is not None:
            rising = (
                len(self.rungs) > 1 and self.rungs[0] == 0 and all(a < b for a, b in pairwise(self.rungs))
            )
            if not rising or (self.total, self.floor, self.cap, self.weights) != (None, 0, None, None):
                raise UserError(
                    f"budget.rungs={list(self.rungs)} with total={self.total}, floor={self.floor}, "
                    f"cap={self.cap}, weights={self.weights}: allowed: rungs that rise from 0, such as [0, "
                    "64, 144, 256], and no other rule"
                )
        for name, value, least in (("total", self.total, 0), ("floor", self.floor, 0), ("cap", self.cap, 1)):
            if value is not None and value < least:
                raise UserError(f"budget.{name}={value} must be at least {least}")
        if self.total is not None and self.floor < 1:
            raise UserError(
                f"budget.floor={self.floor} with a total may leave kept tiles without tokens; allowed: at "
                "least 1"
            )
        if self.weights is not None and not all(math.isfinite(w) and w >= 0 for w in self.weights):
            raise UserError(f"budget.weights={list(self.weights)} must be finite and at least 0")

    def tokens(self, selection: Tensor, capacity: Tensor) -> Tensor:
        """Tokens of each tile: selection bool [..., T], capacity int [..., T], broadcast together -> int64
        [..., T].

        No tile gets more than its capacity. A total that the kept tiles cannot meet is clamped to what they
        can.
        """
        if self.weights is not None and len(self.weights) != capacity.shape[-1]:
            raise UserError(
                f"budget.weights has {len(self.weights)} numbers; allowed: one for each of "
                f"{capacity.shape[-1]} tiles"
            )
        keep = selection & (capacity > 0)
        capacity = capacity.expand(keep.shape).long()
        cap = capacity if self.cap is None else capacity.clamp(max=self.cap)
        low, high = _bounds(torch.tensor(self.floor, device=cap.device), cap, keep)
        if self.total is None:
            return high
        total = torch.full_like(low[..., 0], self.total).clamp(low.sum(-1), high.sum(-1))
        weights = self._weights(capacity).double().where(keep, 0.0)
        weights, low, high = (x.reshape(-1, capacity.shape[-1]) for x in (weights, low, high))
        return _divide(weights, total.reshape(-1), low, high).reshape(capacity.shape)

    def _weights(self, capacity: Tensor) -> Tensor:
        if self.weights is None:
            return capacity
        return torch.tensor(self.weights, dtype=torch.float64, device=capacity.device).expand(capacity.shape)


@dataclass(frozen=True)
class StochasticBudget:
    """The shares of capacity to train on at each step: a pure function of seed, step and rank.

    kind: tokenflex = 64, 144 or 256 of 256 with p .2, .3, .5 (TokenFLEX, arXiv:2504.03154); uniform =
    anything in [smallest, 1]; sandwich = the largest, the smallest and one between (arXiv:1903.05134); fixed
    = everything. seed >= 0; smallest in (0, 1]. Raises UserError for anything else.
    """

    kind: str
    seed: int
    smallest: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown_name("stochastic budget kind", self.kind, _KINDS)
        if self.seed < 0:
            raise UserError(f"stochastic budget seed={self.seed} must be at least 0")
        if not 0 < self.smallest <= 1:
            raise UserError(f"stochastic budget smallest={self.smallest} must be in (0, 1]")

    def fractions(self, step: int, rank: int = 0) -> tuple[float, ...]:
        """The fractions of capacity, each in (0, 1], to train at this step: three for sandwich, else one."""
        # step and rank are words of the counter, so no two draws share a block of Philox and nothing has to
        # be resumed
        draw = float(
            np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, step, rank])).random()
        )
        between = self.smallest + (1 - self.smallest) * draw
        if self.kind == "tokenflex":
            return ((64 if draw < 0.2 else 144 if draw < 0.5 else 256) / 256,)
        if self.kind == "uniform":
            return (between,)
        if self.kind == "sandwich":
            return (1.0, self.smallest, between)
        return (1.0,)


def scale(capacity: Tensor, fraction: float) -> Tensor:
    """Capacity [..., T] int times a fraction in (0, 1], rounded up: int64 [..., T], at least 1 where there is
    any."""
    if not 0 < fraction <= 1:
        raise UserError(f"fraction={fraction} of the capacity must be in (0, 1]")
    # 0.1 * 30 is a little over 3 in floats and must not round up to 4
    tokens = (capacity.double() * fraction - 1 / _GRID).ceil().long()
    return tokens.clamp(min=1).where(capacity > 0, 0)


def _bounds(floor: Tensor, cap: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Least and most tokens of every tile, int64, shaped like keep."""
    high = cap.long().expand(keep.shape).where(keep, 0)
    return torch.minimum(high, floor.long()), high


def _check_feasible(total: Tensor, least: Tensor, most: Tensor) -> None:
    bad = (total < least) | (total > most)
    if bool(bad.any()):
        row = int(bad.int().argmax())
        raise UserError(
            f"row {row} cannot spend a total of {int(total[row])} tokens; "
            f"allowed with its kept tiles: {int(least[row])} to {int(most[row])}"
        )


def _divide(weights: Tensor, total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`allocate` without its checks, so that it can be traced: weights float64, low and high int64 [B, T],
    total int64 [B]."""
    share = (_shares(weights, total.double(), low.double(), high.double()) * _GRID).round() / _GRID
    tokens = share.floor().long()
    # whole numbers that differ from tile to tile: ONNX has no stable sort
    tiles = share.shape[-1]
    order = ((share - tokens) * _GRID).long() * tiles - torch.arange(tiles, device=share.device)
    rank = order.argsort(dim=-1, descending=True).argsort(dim=-1)
    return tokens + (rank < (total - tokens.sum(-1))[:, None])


def _shares(weights: Tensor, total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The x in [low, high] with sum x = total and x = clip(lambda * weights, low, high). All float64 [B, T],
    total [B].

    The sum grows with lambda and bends only at the edges low / weight and high / weight. A binary search
    finds the last edge whose sum fits; beyond it the free tiles, those between their own two edges, share
    what the others leave.
    """
    weights = weights / weights.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    zero = weights < _NEGLIGIBLE
    spill = (total > torch.where(zero, low, high).sum(-1))[:, None]
    low, high = torch.where(spill & ~zero, high, low), torch.where(~spill & zero, low, high)
    weights = weights.masked_fill(zero, 1.0)

    start, stop = low / weights, high / weights
    edges = torch.cat([start, stop], dim=-1).sort(dim=-1).values
    first = torch.zeros_like(edges[:, :1], dtype=torch.int64)
    last = torch.full_like(first, edges.shape[-1] - 1)
    for _ in range(edges.shape[-1].bit_length()):
        middle = (first + last + 1) // 2
        filled = (weights * edges.gather(-1, middle)).clamp(low, high).sum(-1, keepdim=True)
        fits = filled <= total[:, None]
        first, last = torch.where(fits, middle, first), torch.where(fits, last, middle - 1)
    edge = edges.gather(-1, first)

    free = (start <= edge) & (edge < stop)
    fixed = torch.where(stop <= edge, high, low).masked_fill(free, 0.0)
    portion = weights * free
    portion = portion / portion.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    rest = total[:, None] - fixed.sum(-1, keepdim=True)
    return torch.where(free, (rest * portion).clamp(low, high), fixed)
