"""A finished frontier for people: pictures in its run's directory, and tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import pstdev
from typing import Any

from rich.console import Console

from pyrskip.evaluation.curves import average, groups, high, low, of_tiles
from pyrskip.evaluation.evaluate import Evaluation
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.guarantee import said
from pyrskip.evaluation.methods import style_of
from pyrskip.evaluation.runs import GALLERY
from pyrskip.evaluation.worth import said as worth_said
from pyrskip.report.gallery import write_gallery
from pyrskip.report.peers import plot_peers
from pyrskip.report.plots import plot_frontier
from pyrskip.report.selections import plot_selections
from pyrskip.report.tables import Column, Table, print_table

PRICES_SHOWN = 6
"""Prices of the terminal's table, about."""
COLUMNS = (
    *(Column("method"), Column("price", ".3g"), Column("seeds", "d"), Column("accuracy %", ".1f")),
    *(Column("±", ".1f"), Column("low", ".1f"), Column("high", ".1f")),
    *(Column("retention %", ".1f"), Column("x full", ".3f"), Column("x ref", ".3f")),
    *(Column("tokens", ".1f"), Column("ms", ".2f")),
)


def present(evaluation: Evaluation, out: Path, quiet: bool = False) -> None:
    """Write `out`/frontier.png, selections.png, frontier/gallery/ and, where there are peers, peers.png, and
    print the tables. Raises UserError where they cannot be written."""
    inputs, rows = evaluation.frontier.inputs, evaluation.frontier.rows
    plot_frontier(rows, out / "frontier.png")
    if inputs.peers:
        plot_peers(rows, out / "peers.png")
    plot_selections(evaluation.samples, inputs.pyramid, out / "selections.png")
    decided = (evaluation.action, inputs.tables["test"], inputs.pyramid, evaluation.price)
    write_gallery(evaluation.gallery, *decided, out / GALLERY)
    if not quiet:
        print_methods(rows)
        print_summary(evaluation.summary)


def print_methods(rows: Sequence[Row], console: Console | None = None) -> None:
    """The test split, a line a method and price (a few, evenly chosen); no selections of single tiles, and no
    pruners behind a gate, of which there are as many lines as of the gate for each."""
    prices = sorted({r.price for r in rows if r.price is not None})
    few = {None, *prices[:: -(-len(prices) // PRICES_SHOWN) or 1], *prices[-1:]}
    shown = [r for r in rows if r.price in few and not of_tiles(r) and not _behind_gate(r)]
    note = (
        "±: standard deviation over seeds; low, high: 95 %, paired bootstrap over images, averaged over "
        "seeds; x full: FLOPs over the mean full pyramid's; x ref: over the model's without pyrskip; ms: one "
        "answer at batch 1, gate included; frontier.json holds every price"
    )
    print_table(method_table(shown, "Accuracy and cost on the test split", note), console)


def method_table(rows: Sequence[Row], title: str, note: str) -> Table:
    """A line a method and price on the test split, seeds averaged."""
    lines: list[list[str | float | None]] = []
    rules, last = set(), None
    for group in groups([r for r in rows if r.split == "test"]):
        first, section = group[0], style_of(group[0].method).section
        if section != last and lines:
            rules.add(len(lines))
        last = section
        times = [r.total_ms for r in group if r.total_ms is not None]
        lines.append(
            [
                first.method,
                first.price,
                None if first.seed is None else len(group),
                100 * average(group, lambda r: r.accuracy),
                100 * pstdev(r.accuracy for r in group) if len(group) > 1 else None,
                100 * average(group, low),
                100 * average(group, high),
                None if first.retention is None else 100 * average(group, lambda r: r.retention or 0.0),
                average(group, lambda r: r.relative_flops),
                average(group, lambda r: r.flops_of_reference),
                average(group, lambda r: r.tokens),
                sum(times) / len(times) if times else None,
            ]
        )
    return Table(title, COLUMNS, lines, note, frozenset(rules))


def _behind_gate(row: Row) -> bool:
    return row.method.startswith("gate+pruned:")


def print_summary(summary: Mapping[str, Any]) -> None:
    """What was asked, what is guaranteed, and what test says, a line a target."""
    print(
        f"floor: {summary['lookup_accuracy']:.1%} by looking up the question alone; full pyramid "
        f"{summary['full']['accuracy']:.2%}"
    )
    print(worth_said(summary["worth"]))
    for target, at in summary["targets"].items():
        gate, fixed = at["gate"], at["fixed"]
        asked = f"{float(target):.1%} of full asked, {said([seed['guarantee'] for seed in gate['seeds']])}"
        if "retention" not in gate:
            print(f"{asked}: full is right on no test question")
            continue
        ratio, kept, cost = gate["cost_over_fixed"], gate["retention"], gate["relative_flops"]
        print(
            f"{asked}: on test the gate keeps {kept['mean']:.2%} at {cost['mean']:.3f} of full's FLOPs, "
            f"{ratio['mean']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, {ratio['seeds']} seeds) of the "
            f"cheapest fixed selection's, held to the same ({fixed['method']}, {fixed['retention']:.2%} at "
            f"{fixed['relative_flops']:.3f}){_at_equal(gate)}"
        )
    real = summary["real_inference"]
    print(
        f"real inference on {real['questions']} test questions: accuracy {real['accuracy']:.2%}, from the "
        f"table {real['accuracy_from_table']:.2%}; {real['decisions_that_differ']} decisions and "
        f"{real['scores_that_differ']} scores differ; {real['tiles_encoded']} tiles encoded, "
        f"{real['tiles_asked_for']} decided"
    )
    if summary["budget_weights"] is not None:
        print(
            "learned budget weights: "
            f"budget.weights=[{','.join(f'{weight:.4g}' for weight in summary['budget_weights'])}]"
        )
    print(summary["note"])


def _at_equal(gate: Mapping[str, Any]) -> str:
    """What a gate costs of fixed selections that retain as much; nothing where none do."""
    ratio = gate.get("cost_over_hull")
    if ratio is None:
        return ""
    seeds = f"{ratio['min']:.2f} to {ratio['max']:.2f}, {ratio['seeds']} seeds"
    return f"; {ratio['mean']:.2f} ({seeds}) of what mixed fixed selections cost that keep as much"
