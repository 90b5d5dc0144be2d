"""Rules side by side: what a comparison's gates come to, as a list, a table and a figure.

Costs are relative FLOPs, gates' own included. Intervals are over gates, of every flex seed and gate seed, and
over images (bootstrap).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from pyrskip.evaluation.bootstrap import Interval

DASHES: dict[str, Any] = {
    "categorical": "--",
    "rungs": "-.",
    "autoregressive": ":",
    "sequential": (0, (3, 1, 1, 1)),
}


@dataclass(frozen=True)
class Entry:
    """A trained gate at a price, on the test split.

    seed: the gate's; flex_seed: of the model that it decides for. retention: accuracy over the full
    pyramid's, 0 where that is
    0. regret: what `oracle:type` is worth more at this price, in score. seconds: of training until 95 % of
    the rise in reward
    was reached for good. random: accuracy of the gate's own decisions dealt out to other questions, at the
    same cost; hull: of
    the mix of two fixed selections at the same cost, None below the cheapest.
    """

    rule: str
    policy: str
    price: float
    seed: int
    flex_seed: int
    accuracy: float
    accuracy_ci95: Interval
    retention: float
    relative_flops: float
    regret: float
    seconds: float
    random: float
    hull: float | None

    @property
    def gate(self) -> tuple[int, int]:
        """Which of a pair's gates it is: flex seed and gate seed."""
        return self.flex_seed, self.seed


@dataclass(frozen=True)
class Mark:
    """What is not trained, for the figure: a fixed selection of the hull, or an oracle at a price."""

    method: str
    flex_seed: int
    retention: float
    relative_flops: float


def by_pair(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    pairs: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        pairs.setdefault((entry.rule, entry.policy), []).append(entry)
    return pairs


def standing(entries: Sequence[Entry], low: float = 0.2, high: float = 0.45) -> dict[str, Any]:
    """A pair's figures over the prices at which it costs low to high: the mean over its gates, and in
    `deviation` the standard deviation between them, 0 of one. NaN where it never costs that. Gains and regret
    are in score.
    """
    within = [e for e in entries if low <= e.relative_flops <= high]
    gates = [[e for e in within if e.gate == gate] for gate in sorted({e.gate for e in within})]
    hulls = [[e.accuracy - e.hull for e in of_gate if e.hull is not None] for of_gate in gates]
    figures = {
        "accuracy": [_mean([e.accuracy for e in of_gate]) for of_gate in gates],
        "retention": [_mean([e.retention for e in of_gate]) for of_gate in gates],
        "relative_flops": [_mean([e.relative_flops for e in of_gate]) for of_gate in gates],
        "gain_over_random": [_mean([e.accuracy - e.random for e in of_gate]) for of_gate in gates],
        "gain_over_hull": [_mean(gains) for gains in hulls if gains],
        "regret": [_mean([e.regret for e in of_gate]) for of_gate in gates],
    }
    return {
        "points": len(within),
        "seconds": _mean([e.seconds for e in entries]),
        "deviation": {name: stdev(values) if len(values) > 1 else 0.0 for name, values in figures.items()},
        **{name: _mean(values) for name, values in figures.items()},
    }


def curve(entries: Sequence[Entry], steps: int = 40) -> list[tuple[float, float, float, float]]:
    """(cost, mean, least, greatest retention over gates) along the costs that every gate reaches, linear
    between its prices."""
    gates = [
        sorted({e.relative_flops: e.retention for e in entries if e.gate == gate}.items())
        for gate in {e.gate for e in entries}
    ]
    low, high = max(points[0][0] for points in gates), min(points[-1][0] for points in gates)
    if high <= low:
        return []
    grid = [low + (high - low) * i / (steps - 1) for i in range(steps)]
    at = [[_between(points, cost) for points in gates] for cost in grid]
    return [(cost, _mean(values), min(values), max(values)) for cost, values in zip(grid, at, strict=True)]


def plot_comparison(entries: Sequence[Entry], marks: Sequence[Mark], path: Path) -> None:
    """Retention against cost: a line a pair with the range of its gates; behind them the hull and oracle of
    each flex seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for method, style in (("hull", "k--"), ("oracle:type", "k:")):
        label: str | None = {"hull": "fixed selections (hull)"}.get(method, method)
        for flex_seed in sorted({m.flex_seed for m in marks}):
            of = [m for m in marks if m.method == method and m.flex_seed == flex_seed]
            points = sorted((m.relative_flops, m.retention) for m in of)
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1)
            label = None
    colours = {rule: f"C{i}" for i, rule in enumerate(sorted({e.rule for e in entries}))}
    for (rule, policy), of_pair in by_pair(entries).items():
        line = curve(of_pair)
        if not line:
            continue
        cost, mean, least, most = zip(*line, strict=True)
        axes.plot(
            cost,
            mean,
            linestyle=DASHES.get(policy, "-"),
            color=colours[rule],
            label=f"{rule}, {policy}",
            linewidth=1.3,
        )
        axes.fill_between(cost, least, most, color=colours[rule], alpha=0.08, linewidth=0)
    axes.set_xlabel("cost, FLOPs over the full pyramid's (gate included)")
    axes.set_ylabel("accuracy over the full pyramid's")
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    figure.savefig(path, dpi=130)


def print_comparison(entries: Sequence[Entry]) -> None:
    """A line a pair, best first, over the prices at which it costs 0.2 to 0.45."""
    flex, seeds = len({e.flex_seed for e in entries}), len({e.seed for e in entries})
    title = (
        f"rules at a cost of 0.2 to 0.45, mean over prices and gates; ± deviation between gates ({flex} "
        f"flex x {seeds} seeds)"
    )
    table = Table(title=title, title_justify="left")
    for name in (
        "rule",
        "policy",
        "cost",
        "retention",
        "over random",
        "over hull",
        "regret",
        "seconds to 95 %",
        "points",
    ):
        table.add_column(name, justify="left" if name in ("rule", "policy") else "right")
    rows = [(pair, standing(of_pair)) for pair, of_pair in by_pair(entries).items()]
    for (rule, policy), s in sorted(rows, key=lambda row: -_low(row[1]["gain_over_random"])):
        figures = [f"{s[k]:.3f}" for k in ("relative_flops", "retention")]
        figures += [
            f"{s[k]:.3f} ±{s['deviation'][k]:.3f}" for k in ("gain_over_random", "gain_over_hull", "regret")
        ]
        table.add_row(rule, policy, *figures, f"{s['seconds']:.1f}", str(s["points"]))
    Console(width=140).print(table)


def as_list(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    """What comparison.json holds."""
    return [asdict(entry) for entry in entries]


def _between(points: Sequence[tuple[float, float]], cost: float) -> float:
    for (left, below), (right, above) in pairwise(points):
        if left <= cost <= right:
            return below + (above - below) * (cost - left) / (right - left)
    return points[0][1] if cost <= points[0][0] else points[-1][1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _low(value: float) -> float:
    return value if value == value else -1.0
