"""The frontier: accuracy against cost, one curve a method, computed from rollout tables alone.

Axes: N questions, M images, S listed actions, T tiles, P prices. What is chosen (a price, the hull, an oracle
by type) is chosen on validation or the gate's training rollouts and only measured on test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrskip.evaluation.bootstrap import Bootstrap, Interval
from pyrskip.evaluation.hull import cost_at, value_at
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods import METHODS, Decisions
from pyrskip.evaluation.timing import GATED, Clock
from pyrskip.progress import each
from pyrskip.rollouts.table import OUTSIDE

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Row:
    """A method on a split, as frontier.json lists it. Costs are means a question; times are milliseconds a
    question at batch 1, and at batch 32 where the name says so, None where nothing was timed.

    price and seed are None where the method has none. retention: accuracy over full's on the split, never
    clipped, None where that is 0. relative: over the mean full pyramid on the gate's training split. by_type:
    accuracy, accuracy_ci95, relative_flops and n of each question type.
    """

    method: str
    price: float | None
    seed: int | None
    split: str
    accuracy: float
    accuracy_ci95: Interval
    retention: float | None
    retention_of_reference: float | None
    tokens: float
    relative_tokens: float
    flops: float
    relative_flops: float
    flops_of_reference: float
    kv_bytes: float
    encode_ms: float | None
    gate_ms: float | None
    total_ms: float | None
    encode_ms_b32: float | None
    gate_ms_b32: float | None
    total_ms_b32: float | None
    by_type: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Point:
    """A row with what it is the mean of: action [N] where the method decides for sure and no pruner is behind
    it, else score [N] float64."""

    row: Row
    action: Tensor | None
    score: Tensor | None


@dataclass(frozen=True)
class Frontier:
    """Every method's points on validation and on test, in the order of frontier.json."""

    points: tuple[Point, ...]
    inputs: Inputs
    bootstrap: Mapping[str, Bootstrap] = field(repr=False)

    @property
    def rows(self) -> list[Row]:
        return [point.row for point in self.points]

    def select(
        self, method: str, split: str, price: float | None = None, seed: int | None = None
    ) -> list[Point]:
        """The points of a method; of every price or seed where none is given."""
        return [
            p
            for p in self.points
            if p.row.method == method
            and p.row.split == split
            and (price is None or p.row.price == price)
            and (seed is None or p.row.seed == seed)
        ]

    def score(self, point: Point) -> Tensor:
        """What a point scores on every question, [N] float64."""
        if point.score is not None:
            return point.score
        assert point.action is not None
        return Decisions(point.action).mean(self.inputs.tables[point.row.split].score)


def frontier(inputs: Inputs) -> Frontier:
    """Every method on validation and test."""
    points: list[Point] = []
    bootstraps, key = {}, _order(inputs)
    for split in SPLITS:
        bootstraps[split] = Bootstrap(inputs.tables[split].image_of, inputs.resamples)
        ruler = _Ruler(inputs, split, bootstraps[split])
        found = [
            (key(name, decisions), ruler.point(name, decisions))
            for name, method in each(METHODS.items(), f"frontier, {split}", "method")
            for decisions in method.decisions(inputs, split)
        ]
        points += [point for _, point in sorted(found, key=lambda pair: pair[0])]
    return Frontier(tuple(points), inputs, bootstraps)


def _order(inputs: Inputs) -> Callable[[str, Decisions], tuple[float, ...]]:
    """Methods stand as they are registered, but those of a gate's seed stand behind 'gate', seed by seed, and
    those that have a price and no seed behind the oracles, price by price."""
    place = {name: number for number, name in enumerate(METHODS)}
    gates, seeds = list(inputs.gates), list(inputs.seeds)

    def key(name: str, of: Decisions) -> tuple[float, ...]:
        if of.gate is not None or of.seed is not None:
            seed = -1 if of.seed is None else seeds.index(of.seed)
            return place["gate"], gates.index(of.gate or "gate"), seed, place[name]
        if of.price is not None:
            return place["oracle:type"], of.price, place[name]
        return (place[name],)

    return key


def hull_at(rows: Sequence[Row], split: str, relative_flops: float) -> float | None:
    """Accuracy of the random mix of two fixed selections of the hull that costs this much on average.

    None below the cheapest; the dearest vertex's accuracy above it.
    """
    return value_at(_hull(rows, split), relative_flops)


def hull_cost(rows: Sequence[Row], split: str, accuracy: float) -> float | None:
    """Relative FLOPs of the cheapest mix of two fixed selections of the hull that is as accurate; None where
    none is."""
    return cost_at(_hull(rows, split), accuracy)


def _hull(rows: Sequence[Row], split: str) -> list[tuple[float, float]]:
    """(relative FLOPs, accuracy) of the hull's vertices, cheapest first."""
    return sorted((r.relative_flops, r.accuracy) for r in rows if r.method == "hull" and r.split == split)


def regret(row: Row, oracle: Row) -> float:
    """By how much an oracle's reward is higher than a row's at the row's price, in score."""
    assert row.price is not None
    best, own = (r.accuracy - row.price * r.relative_flops for r in (oracle, row))
    return best - own


class _Ruler:
    """Measures decisions on one split."""

    def __init__(self, inputs: Inputs, split: str, bootstrap: Bootstrap) -> None:
        self.inputs, self.split, self.bootstrap = inputs, split, bootstrap
        table = self.table = inputs.tables[split]
        gate = inputs.tables["gate"]
        self.full_tokens = float(gate.cost.tokens[:, gate.actions.full].double().mean())
        self.full, self.reference = (
            float(table.score[:, column].double().mean())
            for column in (table.actions.full, table.column("reference"))
        )
        self.reference_flops = float(table.cost.flops[:, table.column("reference")].mean())
        self.types = sorted(set(table.types))
        # [1 + types, N]: all questions, and those of each type
        self.masks = torch.tensor([[True] * len(table)] + [[t == k for t in table.types] for k in self.types])

    def point(self, name: str, decisions: Decisions) -> Point:
        peer = decisions.peer
        table = self.table if peer is None else self.inputs.peers[peer][self.split]
        cost, unit = table.cost, self.inputs.unit
        score, flops = decisions.mean(table.score), decisions.mean(cost.flops)
        if decisions.gate is not None:
            own = self.inputs.gate_flops[decisions.gate]
            flops = flops + (own if decisions.first is None else self.inputs.asked_flops)
        if decisions.encodes_all:
            flops = flops + self._unencoded(decisions)
        if decisions.first is not None:
            first = decisions.first.clamp(min=0)
            again = self.inputs.encoded_twice(self.split, first, decisions.action)
            flops = flops + decisions.earlier(cost.flops) - again.where(decisions.first >= 0, 0.0)
        accuracy, mean_flops = float(score.mean()), float(flops.mean())
        tokens = float((decisions.mean(cost.tokens) + decisions.earlier(cost.tokens)).mean())
        kv_bytes = float(decisions.mean(cost.kv_bytes).mean())
        interval, *intervals = self.bootstrap.intervals_of_ratios(score * self.masks, self.masks)
        timing = self.inputs.timing
        encode, gate, total = self._times(decisions, timing.single if timing else None)
        encode_b32, gate_b32, total_b32 = self._times(decisions, timing.batched if timing else None)
        row = Row(
            method=f"{name}:{decisions.variant}" if decisions.variant else name,
            price=decisions.price,
            seed=decisions.seed,
            split=self.split,
            accuracy=accuracy,
            accuracy_ci95=interval,
            retention=_ratio(accuracy, self.full),
            retention_of_reference=_ratio(accuracy, self.reference),
            tokens=tokens,
            relative_tokens=tokens / self.full_tokens,
            flops=mean_flops,
            relative_flops=mean_flops / unit,
            flops_of_reference=mean_flops / self.reference_flops,
            kv_bytes=kv_bytes,
            encode_ms=encode,
            gate_ms=gate,
            total_ms=total,
            encode_ms_b32=encode_b32,
            gate_ms_b32=gate_b32,
            total_ms_b32=total_b32,
            by_type={
                kind: {
                    "accuracy": float(score[mask].mean()),
                    "accuracy_ci95": interval,
                    "relative_flops": float(flops[mask].mean()) / unit,
                    "n": int(mask.sum()),
                }
                for kind, mask, interval in zip(self.types, self.masks[1:], intervals, strict=True)
            },
        )
        action = decisions.certain if peer is None else None
        return Point(row, action, score if action is None else None)

    def _unencoded(self, decisions: Decisions) -> Tensor:
        """FLOPs of encoding, and maybe projecting, the tiles that are skipped, [N] float64."""
        inputs = self.inputs
        of_image = (inputs.tile_flops if decisions.projects_all else inputs.encode_flops)[self.split]
        assert of_image is not None
        flops = of_image[self.table.image_of].double()
        shares = [1.0] if decisions.share is None else decisions.share.tolist()
        actions = zip(decisions.action.view(len(shares), -1), shares, strict=True)
        return torch.stack(
            [share * (flops * self._skipped(action)).sum(-1) for action, share in actions]
        ).sum(0)

    def _skipped(self, column: Tensor) -> Tensor:
        """The tiles that a column of each question skips, [N] -> [N, T] bool; none by decisions outside of
        the set."""
        table = self.table
        outside = (column >= len(table.actions)) & (column < table.first_drawn)
        return (table.steps(torch.arange(len(table)), column) == 0) & ~outside[:, None]

    def _times(
        self, decisions: Decisions, clock: Clock | None
    ) -> tuple[float | None, float | None, float | None]:
        """Encode, gate and total milliseconds, the decisions' own averaged. Of pruners the full pyramid's
        alone are measured."""
        peer = decisions.peer
        if clock is None or (peer is not None and decisions.gate is not None):
            return None, None, None
        if peer is not None:
            return clock.encode[str(peer)], 0.0, clock.total[str(peer)]
        gate = clock.gate[decisions.gate] if decisions.gate is not None else 0.0
        if decisions.first is not None:
            encode, total = self._turns(decisions, decisions.first, clock)
            return encode, gate, total + gate
        encode, total = self._mean_times(decisions, clock, decisions.gate is not None)
        if decisions.encodes_all:
            every = clock.encode[self.table.actions.names[self.table.actions.full]]
            encode, total = every, total - encode + every
        return encode, gate, total + gate

    def _turns(self, decisions: Decisions, first: Tensor, clock: Clock) -> tuple[float, float]:
        """Encode and total milliseconds. Of a second turn what the first encoded is encoded already, as
        behind a gate the glance is."""
        encode = total = 0.0
        for two in (False, True):
            turns = (first >= 0) == two
            if not turns.any():
                continue
            looked, answered = self._mean_times(Decisions(decisions.action[turns]), clock, two)
            if two:
                before = self._mean_times(Decisions(first[turns]), clock, False)
                answered += before[1] - before[0]
            share = float(turns.double().mean())
            encode, total = encode + share * looked, total + share * answered
        return encode, total

    def _mean_times(self, decisions: Decisions, clock: Clock, gated: bool) -> tuple[float, float]:
        """Encode and total milliseconds, averaged. gated: the glance is encoded before the rest."""
        actions = self.table.actions.names
        names = [GATED * gated + name for name in actions] + list(OUTSIDE)
        cost = self.table.cost.flops
        share = decisions.columns(cost.shape[1])
        # what is not listed takes as long as what is and costs as much
        own, listed = cost[:, len(names) :].mean(0), cost[:, : len(actions)].mean(0)
        order = listed.argsort()

        def mean(of: Mapping[str, float]) -> float:
            times = np.array([of[name] for name in names])
            between = np.interp(own, listed[order], times[: len(actions)][order])
            return float(share.numpy() @ np.concatenate([times, between]))

        return mean(clock.encode), mean(clock.total)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
