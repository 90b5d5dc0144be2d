"""Methods and runs held against each other, on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from pyrskip.evaluation.above import LEVEL, Candidate
from pyrskip.evaluation.comparison import Entry, Spread, standings
from pyrskip.evaluation.equal import Equal
from pyrskip.evaluation.harness import Point
from pyrskip.evaluation.scores import Scored
from pyrskip.report.tables import Column, Table, print_table

CANDIDATES = 12
"""Lines of the table of candidates."""


def print_equal(found: Sequence[Equal], runs: Sequence[Scored], methods: Sequence[str]) -> None:
    """A line a cost, a column a run and method; empty where it cannot be had for so little."""
    columns = [(run.label, method) for run in runs for method in methods]
    cells = {(e.run, e.method, e.relative_flops): _gain(e) for e in found}
    costs = dict.fromkeys(e.relative_flops for e in found)
    table = Table(
        title="Accuracy % at equal FLOPs on the test split",
        columns=[Column("x full", ".3g"), *(Column(f"{run}\n{method}", "") for run, method in columns)],
        rows=[[cost, *(cells.get((*column, cost)) for column in columns)] for cost in costs],
        note="x full: FLOPs over the first run's mean full pyramid's; in brackets what it is above the "
        "first column, with its 95 % interval, by paired bootstrap over images",
    )
    print_table(table)


def print_harness(found: Sequence[Point], metric: str, own: float) -> None:
    """The run without a gate first, a line a run."""
    names = ("accuracy %", "95 % low", "95 % high", "tokens kept", "95 % low", "95 % high", "retention")
    table = Table(
        title=f"lmms-eval, {found[0].documents} documents, {metric}",
        columns=[
            Column("samples"),
            *(Column(n, f) for n, f in zip(names, [".2f"] * 3 + [".3f"] * 4, strict=True)),
        ],
        rows=[
            [
                Path(of.path).name,
                *(100 * value for value in (of.score, *of.score_ci95)),
                of.kept,
                *of.kept_ci95,
                of.retention,
            ]
            for of in found
        ],
        note="tokens kept: prompt tokens of all turns over those without a gate"
        + (f", {own:.1f} for the gate itself included" if own else "")
        + "; retention: score over that without a gate; intervals by paired bootstrap over documents",
    )
    print_table(table)


def print_above(candidates: Sequence[Candidate]) -> None:
    """The candidates of the largest gains, and what came out."""
    runs = len(candidates[0].gain_of_runs)
    names = ("price", "x full", "gain", "95 % low", "95 % high", "runs above", "p", "p, Holm")
    formats = (".3g", ".3f", "+.2f", "+.2f", "+.2f", "", ".4f", ".3f")
    table = Table(
        title=f"Above the full pyramid? {len(candidates)} candidates, {runs} runs, test split",
        columns=[Column("method"), *(Column(*pair) for pair in zip(names, formats, strict=True))],
        rows=[
            [
                c.method,
                c.price,
                c.relative_flops,
                *(100 * points for points in (c.gain, *c.gain_ci95)),
                f"{sum(gain > 0 for gain in c.gain_of_runs)} of {runs}",
                c.p,
                c.p_holm,
            ]
            for c in candidates[:CANDIDATES]
        ],
        note="gain: accuracy over the full pyramid's, in points; p: one-sided, paired bootstrap over images",
    )
    print_table(table)
    significant = sum(c.significant for c in candidates)
    print(
        f"{significant or 'none'} of {len(candidates)} significantly above full (p, Holm below {LEVEL:g}, "
        "and above in every run)"
    )


def print_comparison(entries: Sequence[Entry], low: float, high: float) -> None:
    """A line a pair of rule and policy, over the prices at which its gates cost low to high."""
    gates, models = len({e.gate for e in entries}), len({e.flex_seed for e in entries})
    names = ("% of full", "above random", "above hull", "regret")
    columns = [
        Column("rule"),
        Column("policy"),
        Column("x full", ".3f"),
        *(Column(name, "") for name in names),
    ]
    table = Table(
        title=f"Rules at {low:g} to {high:g} of full's FLOPs, test split; gates a pair: {gates}, flex seeds: "
        f"{models}",
        columns=[*columns, Column("points", "d")],
        rows=[
            [
                s.rule,
                s.policy,
                s.relative_flops and s.relative_flops.mean,
                *map(_spread, (s.retention, s.above_random, s.above_hull, s.regret)),
                s.points,
            ]
            for s in standings(entries, low, high)
        ],
        note="means over prices and gates, ± the standard deviation between gates, in points of accuracy; "
        "random: the same decisions dealt out to other questions; hull: fixed selections mixed at the same "
        "cost; regret: to oracle:type; points: gates x prices that cost this much",
        names=2,
    )
    print_table(table)


def _spread(of: Spread | None) -> str | None:
    return None if of is None else f"{100 * of.mean:.1f} ±{100 * of.deviation:.1f}"


def _gain(equal: Equal) -> str:
    if equal.gain is None or equal.gain_ci95 is None:
        return f"{100 * equal.accuracy:.1f}"
    low, high = equal.gain_ci95
    return f"{100 * equal.accuracy:.1f} ({100 * equal.gain:+.1f}, {100 * low:+.1f} to {100 * high:+.1f})"
