"""What a finished run came to, in a screen: the gate beside what it is held against, what is guaranteed, and
where to look next."""

from collections.abc import Iterator, Sequence

from pyrskip.evaluation.results import Record, record
from pyrskip.evaluation.runs import Finished

HEADINGS = ("on the test split", "accuracy", "FLOPs, x full", "ms an answer")
UNLIKE = 0.02
"""How far the test split's full pyramid may be from the mean of what gates learn from without a word."""
REPORT = "report.html"
"""In a run's directory."""


def conclusion(run: Finished) -> list[str]:
    """Its lines, about a dozen."""
    of, place, report = record(run), run.directory, run.directory / REPORT
    lines, full = [*table(of), ""], of.line("full").of_full
    if abs(full - 1) > UNLIKE:
        lines.append(
            f"x full: over the full pyramid's mean on the pictures that gates learn from; those of the test "
            f"split take {full:.2f} times as many FLOPs"
        )
    if run.summary.get("doubt"):
        lines.append(run.summary["doubt"])
    if of.worth:
        lines.append(of.worth)
    if of.guarantee:
        lines.append(f"{of.target:.1%} of the full pyramid's accuracy: {of.guarantee}")
    lines.append(f"pictures:     {place}/frontier.png, {place}/selections.png")
    lines.append(f"report:       {report if report.is_file() else f'pyrskip report {place}'}")
    lines.append(f"every method: pyrskip show {place}")
    lines.append(f"next:         pyrskip export run={place} out=exports/{run.label}")
    return lines


def table(of: Record) -> Iterator[str]:
    """Its lines of figures, below their headings."""
    low, high = of.prices[0], of.prices[-1]
    price = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    names = {
        "full": "full pyramid",
        "reference": "the model without pyrskip",
        "fixed": f"best fixed selection, {of.line('fixed').method.removeprefix('fixed:')}",
        "random": "random, at the gate's cost",
        "gate": f"gate, {'' if of.seeds == 1 else f'{of.seeds} seeds, '}price {price}",
    }
    rows = [
        (
            names[line.name],
            f"{line.accuracy:.2%}",
            f"{line.of_full:.3f}",
            "" if line.ms is None else f"{line.ms:.2f}",
        )
        for line in of.lines
    ]
    return _aligned([HEADINGS, *rows])


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns of text: the first to the left, figures to the right; a column without figures is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for first, *rest in zip(*columns, strict=True):
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
