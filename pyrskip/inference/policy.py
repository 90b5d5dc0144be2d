"""From a gate's raw outputs to the decision that inference runs, in numpy: the mode of the distribution that
was trained.

pyrskip.gates.policies and pyrskip.budget say the same in torch, for training; tests hold the two equal.

Axes: B rows, T tiles, S listed actions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrskip.inference.arrays import Floats, Ints

Bools = NDArray[np.bool_]
POLICIES = ("bernoulli", "categorical", "utility")
UNLIMITED = np.iinfo(np.int64).max
# as in pyrskip.budget: shares are rounded to a grid so that float noise breaks no tie, and a negligible
# weight counts as 0
_GRID = 2.0**20
_NEGLIGIBLE = 1e-280


@dataclass(frozen=True)
class Budget:
    """pyrskip.budget.BudgetRule's members, but for rungs."""

    total: int | None
    floor: int
    cap: int | None
    weights: tuple[float, ...] | None

    def tokens(self, selection: Bools, capacity: Ints) -> Ints:
        """Tokens of each tile. selection, capacity [..., T], broadcast together -> [..., T]."""
        keep = selection & (capacity > 0)
        capacity = np.broadcast_to(capacity, keep.shape)
        cap = capacity if self.cap is None else capacity.clip(max=self.cap)
        high = np.where(keep, cap, 0)
        if self.total is None:
            return high
        tiles = capacity.shape[-1]
        weights = (
            capacity if self.weights is None else np.broadcast_to(np.array(self.weights), capacity.shape)
        )
        low = high.clip(max=self.floor)
        total = np.clip(np.full(low.shape[:-1], self.total), low.sum(-1), high.sum(-1))
        share = weights.astype(np.float64).reshape(-1, tiles)
        rest = low.reshape(-1, tiles), high.reshape(-1, tiles), keep.reshape(-1, tiles)
        return allocate(share, total.reshape(-1), *rest).reshape(keep.shape)


@dataclass(frozen=True)
class Rule:
    """How outputs become decisions. temperature and tilt are the gate's; selection [S, T]: of each listed
    action."""

    policy: str
    temperature: float
    tilt: float
    selection: Bools
    budget: Budget

    def decide(
        self, outputs: Floats, capacity: Ints, cost: Floats, price: Floats, max_tokens: Ints
    ) -> "Decided":
        """outputs [B, T] (bernoulli) or [B, S], capacity [B, T], cost [B, S] relative, price [B], max_tokens
        [B] >= 1."""
        if self.policy == "bernoulli":
            return self._bernoulli(
                outputs - self._tilt * capacity / capacity.sum(-1, keepdims=True), capacity, max_tokens
            )
        if self.policy == "utility":
            score = 1 / (1 + np.exp(-outputs.astype(np.float64))).astype(np.float32)
            logit = (score - (price[:, None] + self._tilt) * cost) / np.float32(self.temperature)
        else:
            logit = outputs - self._tilt * cost
        return self._categorical(logit.astype(np.float32), capacity, max_tokens)

    @property
    def _tilt(self) -> np.float32:
        return np.float32(self.tilt)

    def _bernoulli(self, logit: NDArray[np.floating], capacity: Ints, max_tokens: Ints) -> "Decided":
        glance = np.arange(capacity.shape[1]) == capacity.shape[1] - 1
        free = ~glance & (capacity > 0)
        keep = (logit > 0) & free
        asked = self.budget.tokens(keep | glance, capacity)
        for _ in range(capacity.shape[1]):
            # what matters least goes first, one tile a round, until the row fits
            over = asked.sum(-1) > max_tokens
            if not over.any():
                break
            least = np.where(keep, logit, np.inf).argmin(-1)
            keep &= ~(over[:, None] & (np.arange(capacity.shape[1]) == least[:, None]))
            asked = self.budget.tokens(keep | glance, capacity)
        chance = 1 / (1 + np.exp(-logit.astype(np.float64)))
        confidence = np.where(free, np.where(keep, chance, 1 - chance), 1.0).prod(-1)
        margin = np.where(free, np.abs(logit), np.inf).min(-1)
        return Decided(_clip(asked, max_tokens), confidence, margin)

    def _categorical(self, logit: Floats, capacity: Ints, max_tokens: Ints) -> "Decided":
        asked = self.budget.tokens(self.selection[None], capacity[:, None])
        fits = asked.sum(-1) <= max_tokens[:, None]
        beside = asked[..., :-1].sum(-1)
        fits |= ~fits.any(-1, keepdims=True) & (beside == beside.min(-1, keepdims=True))
        rows = np.arange(len(logit))
        best = np.where(fits, logit, -np.inf).argmax(-1)
        chosen = asked[rows, best]
        # actions that differ in padding alone are one and the same decision
        same = ((asked > 0) == (chosen > 0)[:, None]).all(-1)
        weight = np.exp(logit.astype(np.float64) - logit.max(-1, keepdims=True))
        confidence = (weight * same).sum(-1) / weight.sum(-1)
        scale = self.temperature if self.policy == "utility" else 1.0
        margin = (logit[rows, best] - np.where(fits & ~same, logit, -np.inf).max(-1)) * scale
        return Decided(_clip(chosen, max_tokens), confidence, margin)


@dataclass(frozen=True)
class Decided:
    """asked [B, T] tokens; confidence [B]: the policy's probability of that selection; margin [B]: by how
    much it won, in score (utility) or logits, inf where there was no choice."""

    asked: Ints
    confidence: NDArray[np.float64]
    margin: NDArray[np.floating]


def allocate(weights: NDArray[np.float64], total: Ints, low: Ints, high: Ints, keep: Bools) -> Ints:
    """Divide total [B] among the kept tiles in proportion to their weights, within low and high, all [B, T];
    exact."""
    wanted, least, most = (x.astype(np.float64) for x in (total, low, high))
    share = np.round(_shares(np.where(keep, weights, 0.0), wanted, least, most) * _GRID) / _GRID
    tokens = np.floor(share)
    rank = np.argsort(np.argsort(-(share - tokens), axis=-1, kind="stable"), axis=-1)
    missing = total - tokens.astype(np.int64).sum(-1)
    result: Ints = tokens.astype(np.int64) + (rank < missing[:, None])
    return result


def _shares(
    weights: NDArray[np.float64],
    total: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The x in [low, high] with sum x = total and x = clip(lambda * weights, low, high): see
    pyrskip.budget."""
    tiny = np.finfo(np.float64).tiny
    weights = weights / weights.max(-1, keepdims=True).clip(min=tiny)
    zero = weights < _NEGLIGIBLE
    spill = (total > np.where(zero, low, high).sum(-1))[:, None]
    low, high = np.where(spill & ~zero, high, low), np.where(~spill & zero, low, high)
    weights = np.where(zero, 1.0, weights)

    start, stop = low / weights, high / weights
    edges = np.sort(np.concatenate([start, stop], axis=-1), axis=-1)
    filled = (weights[:, None] * edges[..., None]).clip(low[:, None], high[:, None]).sum(-1)
    # the sum grows with the edge: the last one that fits
    last = (filled <= total[:, None]).sum(-1).clip(min=1) - 1
    edge = np.take_along_axis(edges, last[:, None], axis=-1)

    free = (start <= edge) & (edge < stop)
    fixed = np.where(free, 0.0, np.where(stop <= edge, high, low))
    portion = weights * free
    portion = portion / portion.sum(-1, keepdims=True).clip(min=tiny)
    rest = total[:, None] - fixed.sum(-1, keepdims=True)
    return np.where(free, (rest * portion).clip(low, high), fixed)


def realise(asked: Ints, cells: Ints) -> Ints:
    """Rows and columns that a tile's map is pooled to. asked [..., T], cells [..., T, 2] -> [..., T, 2]; 0
    where nothing is asked or there."""
    rows, columns = cells[..., 0], cells[..., 1]
    on = (asked > 0) & (rows > 0) & (columns > 0)
    rows, columns, asked = rows.clip(min=1), columns.clip(min=1), asked.clip(min=1)

    def side(of: Ints, other: Ints) -> Ints:
        ideal = np.sqrt(asked.astype(np.float64) * of / other)
        whole: Ints = ideal.astype(np.int64).clip(min=1)
        return np.minimum(whole, np.minimum(of, asked))

    tall, wide = side(rows, columns), side(columns, rows)
    by_rows = np.stack([tall, np.minimum(columns, asked // tall)], axis=-1)
    by_columns = np.stack([np.minimum(rows, asked // wide), wide], axis=-1)
    better = by_columns.prod(-1) > by_rows.prod(-1)
    size: Ints = np.where(better[..., None], by_columns, by_rows) * on[..., None]
    return size


def _clip(asked: Ints, max_tokens: Ints) -> Ints:
    """Take from the glance what is still over: it is then pooled further."""
    over = (asked.sum(-1) - max_tokens).clip(min=0)
    return np.concatenate([asked[:, :-1], asked[:, -1:] - over[:, None]], axis=1)
