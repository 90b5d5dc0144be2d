"""A finished frontier for people: pictures in its run's directory, and tables for the terminal."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from typing import Any

from rich.console import Console

from pyrskip.errors import unknown_name
from pyrskip.evaluation.curves import accuracy, average, cost, groups, high, low, milliseconds, of_tiles
from pyrskip.evaluation.evaluate import Evaluation
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.guarantee import said
from pyrskip.evaluation.methods import style_of
from pyrskip.evaluation.runs import GALLERY
from pyrskip.evaluation.verdict import said as verdict_said
from pyrskip.report.gallery import write_gallery
from pyrskip.report.peers import plot_peers
from pyrskip.report.plots import plot_frontier
from pyrskip.report.selections import plot_selections
from pyrskip.report.tables import Column, Table, print_table

PRICES_SHOWN = 6
"""Prices of the terminal's table, about."""
COLUMNS: tuple[tuple[Column, Callable[[Sequence[Row]], str | float | None]], ...] = (
    (Column("method"), lambda g: g[0].method),
    (Column("price", ".3g"), lambda g: g[0].price),
    (Column("seeds", "d"), lambda g: None if g[0].seed is None else len(g)),
    (Column("accuracy %", ".1f"), lambda g: 100 * average(g, accuracy)),
    (Column("±", ".1f"), lambda g: 100 * pstdev(map(accuracy, g)) if len(g) > 1 else None),
    (Column("low", ".1f"), lambda g: 100 * average(g, low)),
    (Column("high", ".1f"), lambda g: 100 * average(g, high)),
    (
        Column("retention %", ".1f"),
        lambda g: None if g[0].retention is None else 100 * average(g, lambda r: r.retention or 0.0),
    ),
    (Column("x full", ".3f"), lambda g: average(g, cost)),
    (Column("x ref", ".3f"), lambda g: average(g, lambda r: r.flops_of_reference)),
    (Column("tokens", ".1f"), lambda g: average(g, lambda r: r.tokens)),
    (Column("ms", ".2f"), lambda g: milliseconds(r.total_ms for r in g)),
)
"""Columns of a table of methods, each with its value of rows that differ in their seed alone."""
OF_TYPE = ("method", "price", "seeds", "accuracy %", "±", "low", "high", "x full")
"""Those that are known of a question type."""
SORTS = {"method": "method", "price": "price", "accuracy": "accuracy %", "retention": "retention %"}
SORTS |= {"cost": "x full", "tokens": "tokens", "ms": "ms"}
"""What a table is sorted by -> its column."""


def draw(evaluation: Evaluation, out: Path) -> None:
    """Write `out`/frontier.png, selections.png, frontier/gallery/ and, where there are peers, peers.png.
    Raises UserError where they cannot be written."""
    inputs, rows = evaluation.frontier.inputs, evaluation.frontier.rows
    plot_frontier(rows, out / "frontier.png")
    if inputs.peers:
        plot_peers(rows, out / "peers.png")
    plot_selections(evaluation.samples, inputs.pyramid, out / "selections.png")
    decided = (evaluation.action, inputs.tables["test"], inputs.pyramid, evaluation.price)
    write_gallery(evaluation.gallery, *decided, out / GALLERY)


def print_methods(
    rows: Sequence[Row],
    console: Console | None = None,
    methods: Sequence[str] = (),
    kind: str = "",
    sort: str = "",
) -> None:
    """The test split, a line a method and price.

    methods: names, or patterns such as 'fixed:*', of those that are shown; kind: the question type that the
    figures are of. Without either a few prices are shown, evenly chosen, no selections of single tiles, and
    no pruners behind a gate, of which there are as many lines as of the gate for each. sort: of SORTS,
    behind a '-' the other way round. Raises UserError for what is not there.
    """
    if methods:
        there = dict.fromkeys(row.method for row in rows)
        for name in methods:
            if not fnmatch.filter(there, name):
                raise unknown_name("method", name, there)
        shown = [row for row in rows if any(fnmatch.fnmatchcase(row.method, name) for name in methods)]
    else:
        shown = [row for row in rows if not of_tiles(row) and not _behind_gate(row)]
    if kind:
        shown = _of_type(shown, kind)
    if not methods and not kind:
        prices = sorted({row.price for row in rows if row.price is not None})
        few = {None, *prices[:: -(-len(prices) // PRICES_SHOWN) or 1], *prices[-1:]}
        shown = [row for row in shown if row.price in few]
    of = f", questions of type {kind}" if kind else ""
    note = (
        "±: standard deviation over seeds; low, high: 95 %, paired bootstrap over images, averaged over "
        "seeds; x full: FLOPs over the full pyramid's mean on what gates learn from; x ref: over the model's "
        "without pyrskip; ms: one answer at batch 1, gate included; method=<names> and type=<name> show "
        "every price"
    )
    table = method_table(shown, f"Accuracy and cost on the test split{of}", note)
    if kind:
        table = _columns_of(table, OF_TYPE)
    print_table(_sorted(table, sort) if sort else table, console)


def method_table(rows: Sequence[Row], title: str, note: str) -> Table:
    """A line a method and price on the test split, seeds averaged."""
    lines: list[list[str | float | None]] = []
    rules, last = set(), None
    for group in groups([r for r in rows if r.split == "test"]):
        section = style_of(group[0].method).section
        if section != last and lines:
            rules.add(len(lines))
        last = section
        lines.append([value(group) for _, value in COLUMNS])
    return Table(title, [column for column, _ in COLUMNS], lines, note, frozenset(rules), names=2)


def _of_type(rows: Sequence[Row], kind: str) -> list[Row]:
    """Rows with the figures of one question type in place of those of all."""
    kinds = {name for row in rows for name in row.by_type}
    if kind not in kinds:
        raise unknown_name("type", kind, sorted(kinds))
    found = [(row, row.by_type[kind]) for row in rows if kind in row.by_type]
    keys = ("accuracy", "accuracy_ci95", "relative_flops")
    return [replace(row, **{key: of[key] for key in keys}) for row, of in found]


def _columns_of(table: Table, names: Sequence[str]) -> Table:
    places = [place for place, column in enumerate(table.columns) if column.name in names]
    rows = [[row[place] for place in places] for row in table.rows]
    return replace(table, columns=[table.columns[place] for place in places], rows=rows)


def _sorted(table: Table, sort: str) -> Table:
    """Sorted by a column; rows without a figure in it come last."""
    name, names = sort.removeprefix("-"), [column.name for column in table.columns]
    allowed = [key for key, column in SORTS.items() if column in names]
    if name not in allowed:
        raise unknown_name("sort", name, allowed)
    place = names.index(SORTS[name])
    empty = [row for row in table.rows if row[place] is None]
    known = [row for row in table.rows if row[place] is not None]
    known.sort(key=lambda row: row[place], reverse=sort.startswith("-"))
    return replace(table, rows=[*known, *empty], rules=frozenset())


def _behind_gate(row: Row) -> bool:
    return row.method.startswith("gate+pruned:")


def print_summary(summary: Mapping[str, Any]) -> None:
    """What was asked, what is guaranteed, and what test says, a line a target."""
    print(
        f"floor: {summary['lookup_accuracy']:.1%} by looking up the question alone; full pyramid "
        f"{summary['full']['accuracy']:.2%}"
    )
    print(verdict_said(summary["worth"]))
    for target, at in summary["targets"].items():
        gate, fixed = at["gate"], at["fixed"]
        promise = f"{float(target):.1%} of full asked, {said([seed['guarantee'] for seed in gate['seeds']])}"
        if "retention" not in gate:
            print(f"{promise}: full is right on no test question")
            continue
        ratio, kept, cost = gate["cost_over_fixed"], gate["retention"], gate["relative_flops"]
        print(
            f"{promise}: on test the gate keeps {kept['mean']:.2%} at {cost['mean']:.3f} of full's FLOPs, "
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
