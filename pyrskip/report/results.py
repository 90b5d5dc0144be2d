"""Records of runs as a page: a table an experiment."""

from collections.abc import Sequence

from pyrskip.evaluation.results import Line, Record

PAGE = """# Results

A table an experiment, on its test split, made of the run's own files by
`pyrskip results <run> out=docs/results`. The records are in `docs/results/`; a test holds this page and the
README to them.

| row | what it is |
|---|---|
| everything | the full pyramid: every level is encoded |
| the model alone | the picture in one size, and no gate |
| best fixed choice | the same selection for all questions: the cheapest that keeps what is asked |
| random choices | the gate's own decisions, dealt out to other questions: as cheap, and blind |
| gate | what was trained, at the highest price that keeps what is asked |

What is asked is a share of everything's accuracy, kept on held-out images. FLOPs are those of everything that
runs, the gate included. Times are medians of whole answers, from pixels to text.
"""
NAMES = {
    "full": "everything",
    "reference": "the model alone",
    "fixed": "best fixed choice",
    "random": "random choices, as cheap",
    "gate": "**gate**",
}
HEADINGS = (
    "",
    "accuracy",
    "95% interval",
    "visual tokens",
    "FLOPs, of the model alone",
    "ms, one at a time",
    "ms, 32 at once",
)


def page(records: Sequence[Record]) -> str:
    """docs/results.md."""
    return "\n".join([PAGE, *(section(record) for record in records)])


def section(record: Record) -> str:
    """One experiment in Markdown: its table, what made it, and what is said of the gate."""
    prices = f"{record.prices[0]:g}"
    if len(record.prices) > 1:
        prices += f" to {record.prices[-1]:g}"
    fixed = record.line("fixed").method.removeprefix("fixed:")
    commit = f", commit {record.commit}" if record.commit else ""
    timed = f"; times on {record.device}" if record.device else ""
    said = [
        f"{record.questions:,} questions; {record.seeds} gate{'s' if record.seeds > 1 else ''} on one model; "
        f"{record.date}, pyrskip {record.version}{commit}{timed}. "
        f"Best fixed choice: `{fixed}`; gate at price {prices}."
    ]
    if record.guarantee:
        said.append(f"{record.target:.1%} of everything's accuracy: {record.guarantee}.")
    if record.worth:
        said.append(f"In a line: {record.worth}.")
    return "\n\n".join([f"## {record.experiment}", "\n".join(table(record.lines)), *said]) + "\n"


def table(lines: Sequence[Line]) -> list[str]:
    """The lines of a table in Markdown."""
    rows = [HEADINGS, tuple("---" if n == 0 else "--:" for n in range(len(HEADINGS)))]
    rows += [_cells(line) for line in lines]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cells(line: Line) -> tuple[str, ...]:
    low, high = line.accuracy_ci95
    return (
        NAMES[line.name],
        f"{line.accuracy:.2%}",
        f"{100 * low:.2f} to {high:.2%}",
        f"{line.tokens:,.0f}",
        f"{_flops(line.flops)}, {line.of_reference:.0%}",
        *("" if ms is None else f"{ms:.2f}" for ms in (line.ms, line.ms_b32)),
    )


def _flops(number: float) -> str:
    """A number with three digits and a unit."""
    for unit in ("", " K", " M", " G"):
        if number < 1000:
            return f"{number:#.3g}".rstrip(".") + unit
        number /= 1000
    return f"{number:#.3g}".rstrip(".") + " T"
