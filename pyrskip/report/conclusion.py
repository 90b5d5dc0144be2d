"""What a finished run came to, in a screen: the gate beside what it is held against, what is guaranteed, and
where to look next."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyrskip.evaluation.curves import accuracy, average, cost
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.guarantee import said as guaranteed
from pyrskip.evaluation.runs import Finished
from pyrskip.evaluation.worth import said as worth_said
from pyrskip.report.frontier import milliseconds

HEADINGS = ("on the test split", "accuracy", "of full's FLOPs", "ms an answer")
REPORT = "report.html"
"""In a run's directory."""


def conclusion(run: Finished) -> list[str]:
    """Its lines, about a dozen."""
    summary, target = run.summary, headline(run.summary)
    at = summary["targets"][target]
    lines = [*_aligned([HEADINGS, *_rows(run.rows, at)]), ""]
    if summary.get("doubt"):
        lines.append(summary["doubt"])
    if "worth" in summary:
        lines.append(worth_said(summary["worth"]))
    found = [seed["guarantee"] for seed in at["gate"]["seeds"] if "guarantee" in seed]
    if found:
        lines.append(f"{float(target):.1%} of the full pyramid's accuracy: {guaranteed(found)}")
    place, report = run.directory, run.directory / REPORT
    lines.append(f"pictures:     {place}/frontier.png, {place}/selections.png")
    lines.append(f"report:       {report if report.is_file() else f'pyrskip report {place}'}")
    lines.append(f"every method: pyrskip show {place}")
    lines.append(f"next:         pyrskip export run={place} out=exports/{run.label}")
    return lines


def headline(summary: Mapping[str, Any]) -> str:
    """The retention that a run is summed up at: the highest that is guaranteed for every seed, else the
    lowest."""
    targets = summary["targets"]
    names: list[str] = sorted(targets, key=float)
    held = [
        name
        for name in names
        if all(seed.get("guarantee", {}).get("guaranteed") for seed in targets[name]["gate"]["seeds"])
    ]
    return (held or names[:1])[-1]


def _rows(rows: Sequence[Row], at: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The lines of the table. at: the summary's part of one target."""
    test = [row for row in rows if row.split == "test"]
    chosen = {(seed["seed"], seed["price"]) for seed in at["gate"]["seeds"]}
    prices = sorted({price for _, price in chosen})
    price = f"{prices[0]:g}" if len(prices) == 1 else f"{prices[0]:g} to {prices[-1]:g}"
    seeds = "" if len(chosen) == 1 else f"mean of {len(chosen)} seeds, "
    fixed = at["fixed"]["method"]

    def of(method: str) -> list[Row]:
        return [row for row in test if row.method == method]

    def own(method: str) -> list[Row]:
        return [row for row in of(method) if (row.seed, row.price) in chosen]

    yield _line("full pyramid", of("full"))
    yield _line("the model without pyrskip", of("reference"))
    yield _line(f"best fixed selection, {fixed.removeprefix('fixed:')}", of(fixed))
    yield _line("random, at the gate's cost", own("random"))
    yield _line(f"gate, {seeds}price {price}", own("gate"))


def _line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    ms = milliseconds(rows)
    figures = f"{average(rows, accuracy):.2%}", f"{average(rows, cost):.3f}"
    return name, *figures, "" if ms is None else f"{ms:.2f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns of text: the first to the left, figures to the right; a column without figures is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns, strict=True):
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
