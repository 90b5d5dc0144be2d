"""The frontier: accuracy against cost, one curve a method, computed from rollout tables alone.

Axes: N questions, M images, S listed actions, T tiles, P prices. What is chosen (a price, the hull, an oracle
by type) is chosen on validation or the gate's training rollouts and only played on test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrskip.evaluation.bootstrap import Bootstrap, Interval
from pyrskip.evaluation.hull import upper_hull, value_at
from pyrskip.evaluation.plays import Inputs, Play, plays, product_of_rungs
from pyrskip.evaluation.timing import GATED, Clock
from pyrskip.gates.heuristics import proportional_actions, whole
from pyrskip.rollouts.table import OUTSIDE, RolloutTable
from pyrskip.rollouts.weights import learned_weights

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
    """A row with what it is the mean of: score [N] float64, and action [N] where the method decides for
    sure."""

    row: Row
    score: Tensor
    action: Tensor | None


@dataclass(frozen=True)
class Frontier:
    """weights [T]: the budget weights that were learned where the tables list every combination of rungs."""

    points: tuple[Point, ...]
    inputs: Inputs
    weights: tuple[float, ...] | None
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


def frontier(inputs: Inputs) -> Frontier:
    """Every method on validation and test."""
    val = inputs.tables["val"]
    hulls, learned = {"hull": _hull(val, range(len(val.actions)))}, None
    if product_of_rungs(val.actions):
        learned = learned_weights(inputs.tables["gate"], inputs.pyramid)
        for name, weights in (("capacity", whole(inputs.pyramid).double()), ("learned", learned)):
            hulls[f"budget:{name}"] = _hull(val, proportional_actions(weights, inputs.pyramid, val.actions))
    points: list[Point] = []
    bootstraps = {}
    for split in SPLITS:
        bootstraps[split] = Bootstrap(inputs.tables[split].image_of, inputs.resamples)
        ruler = _Ruler(inputs, split, bootstraps[split])
        points += [ruler.point(play) for play in plays(inputs, split, hulls)]
    return Frontier(tuple(points), inputs, None if learned is None else tuple(learned.tolist()), bootstraps)


def hull_at(rows: Sequence[Row], split: str, relative_flops: float) -> float | None:
    """Accuracy of the random mix of two fixed selections of the hull that costs this much on average.

    None below the cheapest; the dearest vertex's accuracy above it.
    """
    hull = sorted((r.relative_flops, r.accuracy) for r in rows if r.method == "hull" and r.split == split)
    return value_at(hull, relative_flops)


def _hull(val: RolloutTable, candidates: Sequence[int]) -> list[int]:
    """Those of the listed actions that are vertices of their upper hull on validation."""
    cost, score = val.cost.flops.mean(0).tolist(), _means(val.score)
    return [candidates[i] for i in upper_hull([cost[c] for c in candidates], [score[c] for c in candidates])]


class _Ruler:
    """Measures plays on one split."""

    def __init__(self, inputs: Inputs, split: str, bootstrap: Bootstrap) -> None:
        self.inputs, self.split, self.bootstrap = inputs, split, bootstrap
        table = self.table = inputs.tables[split]
        gate = inputs.tables["gate"]
        self.full_tokens = float(gate.cost.tokens[:, gate.actions.full].double().mean())
        self.full, self.reference = (
            _means(table.score)[c] for c in (table.actions.full, table.column("reference"))
        )
        self.reference_flops = float(table.cost.flops[:, table.column("reference")].mean())
        tile_flops = inputs.tile_flops[split]
        # [N, S]: what the encoder would still spend on the tiles that an action skips
        if tile_flops is not None:
            self.unencoded = tile_flops[table.image_of].double() @ (~table.actions.selection).double().T
        self.masks = {k: torch.tensor([t == k for t in table.types]) for k in sorted(set(table.types))}

    def point(self, play: Play) -> Point:
        cost, unit = self.table.cost, self.inputs.unit
        score = (play.weight * self.table.score).sum(-1)
        flops = (play.weight * cost.flops).sum(-1)
        if play.gate is not None:
            flops = flops + self.inputs.gate_flops[play.gate]
        if play.encodes_all:
            flops = flops + (play.weight[:, : self.unencoded.shape[1]] * self.unencoded).sum(-1)
        accuracy, mean_flops = float(score.mean()), float(flops.mean())
        tokens, kv_bytes = (float((play.weight * of).sum(-1).mean()) for of in (cost.tokens, cost.kv_bytes))
        timing = self.inputs.timing
        encode, gate, total = self._times(play, timing.single if timing else None)
        encode_b32, gate_b32, total_b32 = self._times(play, timing.batched if timing else None)
        row = Row(
            method=play.method,
            price=play.price,
            seed=play.seed,
            split=self.split,
            accuracy=accuracy,
            accuracy_ci95=self.bootstrap.interval(score),
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
                    "accuracy_ci95": self.bootstrap.interval_of_ratio(score * mask, mask),
                    "relative_flops": float(flops[mask].mean()) / unit,
                    "n": int(mask.sum()),
                }
                for kind, mask in self.masks.items()
            },
        )
        certain = bool((play.weight.amax(-1) == 1).all())
        return Point(row, score, play.weight.argmax(-1) if certain else None)

    def _times(self, play: Play, clock: Clock | None) -> tuple[float | None, float | None, float | None]:
        """Encode, gate and total milliseconds, the decisions' own averaged."""
        if clock is None:
            return None, None, None
        names = [GATED * (play.gate is not None) + name for name in self.table.actions.names] + list(OUTSIDE)
        share = play.weight.mean(0).tolist()
        both = (clock.encode, clock.total)
        encode, total = (sum(p * of[name] for p, name in zip(share, names, strict=True)) for of in both)
        if play.encodes_all:
            every = clock.encode[self.table.actions.names[self.table.actions.full]]
            encode, total = every, total - encode + every
        gate = clock.gate[play.gate] if play.gate is not None else 0.0
        return encode, gate, total + gate


def _means(score: Tensor) -> list[float]:
    means: list[float] = score.double().mean(0).tolist()
    return means


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
