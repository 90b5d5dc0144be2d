"""Methods and runs at equal cost: what each answers right for the same FLOPs, and by how much more than the
first.

Axes: N test questions. A method that has no point at a cost takes the mix of its two points around it, which
costs just that on average; above its dearest point it takes that one. Seeds are averaged question by
question.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Interval
from pyrskip.evaluation.methods import METHODS
from pyrskip.evaluation.scores import Scored

COSTS = (0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8)
RESAMPLES = 1000


@dataclass(frozen=True)
class Equal:
    """A method of a run at a relative cost (1 = the first run's mean full pyramid). gain: accuracy over the
    first's at the same cost, None where it has none. Intervals are of 95 %, by paired bootstrap over
    images."""

    run: str
    method: str
    relative_flops: float
    accuracy: float
    accuracy_ci95: Interval
    gain: float | None
    gain_ci95: Interval | None


def at_equal_cost(
    runs: Sequence[Scored], methods: Sequence[str], costs: Sequence[float] = COSTS
) -> list[Equal]:
    """Every method of every run at every cost that it can be had for. Raises UserError for a method that no
    run has."""
    for method in methods:
        if not any(row.method == method for run in runs for row in run.rows):
            known = sorted({row.method for run in runs for row in run.rows})
            raise UserError(
                f"method={method}: no run has it; allowed: {', '.join(known)} ({METHODS.page} says how to "
                "register another)"
            )
    unit = next(row.flops / row.relative_flops for row in runs[0].rows if row.method == "full")
    bootstrap = runs[0].bootstrap(RESAMPLES)
    found = []
    for cost in costs:
        first: Tensor | None = None
        for i, (run, method) in enumerate((run, method) for run in runs for method in methods):
            score = score_at(run, method, cost * unit)
            if i == 0:
                first = score
            if score is None:
                continue
            gain = None if first is None or i == 0 else score - first
            found.append(
                Equal(
                    run=run.label,
                    method=method,
                    relative_flops=cost,
                    accuracy=float(score.mean()),
                    accuracy_ci95=bootstrap.interval(score),
                    gain=None if gain is None else float(gain.mean()),
                    gain_ci95=None if gain is None else bootstrap.interval(gain),
                )
            )
    return found


def score_at(run: Scored, method: str, flops: float) -> Tensor | None:
    """What a method scores on every question for so many FLOPs, [N]; None where a seed of it is always
    dearer, or it is not there."""
    seeds: dict[int | None, dict[float, Tensor]] = {}
    for row, score in zip(run.rows, run.score, strict=True):
        if row.method == method:
            seeds.setdefault(row.seed, {})[row.flops] = score
    mixed = []
    for points in seeds.values():
        costs = sorted(points)
        after = bisect_left(costs, flops)
        if after == 0 and costs[0] > flops:
            return None
        if after == len(costs) or costs[after] == flops:
            mixed.append(points[costs[min(after, len(costs) - 1)]])
            continue
        low, high = costs[after - 1], costs[after]
        share = (flops - low) / (high - low)
        mixed.append((1 - share) * points[low] + share * points[high])
    return torch.stack(mixed).mean(0) if mixed else None
