"""Rules side by side: what the gates of a sweep over rules and policies come to at equal cost.

Costs are relative FLOPs, gates' own included. Figures are means over gates, of every flex seed and gate seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Interval
from pyrskip.evaluation.frontier import hull_at, regret
from pyrskip.evaluation.hull import value_at
from pyrskip.evaluation.runs import Finished

STEPS = 40
"""Costs that a line is drawn at."""


@dataclass(frozen=True)
class Entry:
    """A trained gate at a price, on the test split.

    seed: the gate's; flex_seed: of the model that it decides for. retention: accuracy over the full
    pyramid's, 0 where that is 0. random: accuracy of the gate's own decisions dealt out to other questions,
    at the same cost; hull: of the mix of two fixed selections at the same cost, None below the cheapest.
    regret: by how much the reward of `oracle:type` is higher at this price, in score.
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
    random: float
    hull: float | None
    regret: float

    @property
    def pair(self) -> str:
        return f"{self.rule}, {self.policy}"

    @property
    def gate(self) -> tuple[int, int]:
        """Which of a pair's gates it is."""
        return self.flex_seed, self.seed


@dataclass(frozen=True)
class Spread:
    """The mean over gates, and the standard deviation between them, 0 of one."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Standing:
    """What a pair's gates come to over the prices at which they cost low to high; points: how many those are,
    over all gates. None where they never cost that; above_hull also where no hull costs as little. Accuracies
    and regret are in score."""

    rule: str
    policy: str
    points: int
    relative_flops: Spread | None
    retention: Spread | None
    above_random: Spread | None
    above_hull: Spread | None
    regret: Spread | None


def entries_of(runs: Sequence[Finished]) -> list[Entry]:
    """Every gate of these runs at every price, in the order of the runs. Raises UserError where two runs have
    the same gate at the same price."""
    found: list[Entry] = []
    holder: dict[tuple[str, tuple[int, int], float], Finished] = {}
    for run in runs:
        for entry in _entries(run):
            first = holder.setdefault((entry.pair, entry.gate, entry.price), run)
            if first is not run:
                raise UserError(
                    f"{first.directory} and {run.directory} both hold a gate of {entry.pair} with "
                    f"seed={entry.seed} and flex.seed={entry.flex_seed} at price {entry.price:g}; allowed: "
                    "runs that differ in rule, policy, seed, flex.seed or price"
                )
            found.append(entry)
    return found


def _entries(run: Finished) -> list[Entry]:
    rows = {(r.method, r.price, r.seed): r for r in run.rows if r.split == "test"}
    return [
        Entry(
            rule=run.rule,
            policy=run.config["gate"]["policy"],
            price=price,
            seed=seed,
            flex_seed=run.config["flex"]["seed"],
            accuracy=row.accuracy,
            accuracy_ci95=row.accuracy_ci95,
            retention=row.retention or 0.0,
            relative_flops=row.relative_flops,
            random=rows["random", price, seed].accuracy,
            hull=hull_at(run.rows, "test", row.relative_flops),
            regret=regret(row, rows["oracle:type", price, None]),
        )
        for (method, price, seed), row in rows.items()
        if method == "gate" and price is not None and seed is not None
    ]


def by_pair(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    pairs: dict[str, list[Entry]] = {}
    for entry in entries:
        pairs.setdefault(entry.pair, []).append(entry)
    return pairs


def standings(entries: Sequence[Entry], low: float, high: float) -> list[Standing]:
    """A pair each, the farthest above random first, those that never cost low to high last."""
    found = [_standing(of_pair, low, high) for of_pair in by_pair(entries).values()]
    return sorted(found, key=lambda s: -s.above_random.mean if s.above_random else float("inf"))


def _standing(entries: Sequence[Entry], low: float, high: float) -> Standing:
    within = [e for e in entries if low <= e.relative_flops <= high]

    def spread(value: Callable[[Entry], float | None]) -> Spread | None:
        gates: dict[tuple[int, int], list[float]] = {}
        for entry in within:
            if (one := value(entry)) is not None:
                gates.setdefault(entry.gate, []).append(one)
        means = [mean(of_gate) for of_gate in gates.values()]
        return Spread(mean(means), stdev(means) if len(means) > 1 else 0.0) if means else None

    return Standing(
        rule=entries[0].rule,
        policy=entries[0].policy,
        points=len(within),
        relative_flops=spread(lambda e: e.relative_flops),
        retention=spread(lambda e: e.retention),
        above_random=spread(lambda e: e.accuracy - e.random),
        above_hull=spread(lambda e: None if e.hull is None else e.accuracy - e.hull),
        regret=spread(lambda e: e.regret),
    )


def band(entries: Sequence[Entry]) -> list[tuple[float, float, float, float]]:
    """(cost, mean, least, greatest retention over a pair's gates) along the costs that all of them reach,
    linear between a gate's prices; nothing where they reach no range of costs together."""
    gates: dict[tuple[int, int], dict[float, float]] = {}
    for entry in entries:
        gates.setdefault(entry.gate, {})[entry.relative_flops] = entry.retention
    low, high = max(min(points) for points in gates.values()), min(max(points) for points in gates.values())
    if high <= low:
        return []
    found = []
    for cost in (low + (high - low) * i / (STEPS - 1) for i in range(STEPS)):
        at = [
            value
            for points in gates.values()
            if (value := value_at(sorted(points.items()), cost)) is not None
        ]
        found.append((cost, mean(at), min(at), max(at)))
    return found


def curves_behind(runs: Sequence[Finished], method: str) -> list[list[tuple[float, float]]]:
    """(cost, retention) on test of a method that runs no gate, cheapest first; a curve a flex seed."""
    curves: dict[int, dict[float, float]] = {}
    for run in runs:
        of_model = curves.setdefault(run.config["flex"]["seed"], {})
        of_model |= {
            r.relative_flops: r.retention or 0.0 for r in run.rows if r.method == method and r.split == "test"
        }
    return [sorted(points.items()) for points in curves.values()]
