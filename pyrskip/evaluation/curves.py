"""What a frontier's rows say of a method: its curve, seeds averaged."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.methods import style_of


@dataclass(frozen=True)
class Curve:
    """Means over seeds along a method's prices: x relative FLOPs, y accuracy, low and high its interval, in
    percent."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seed alone, method by method; rows without a seed stay alone."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for i, row in enumerate(rows):
        found.setdefault((row.method, row.price) if row.seed is not None else (i,), []).append(row)
    return sorted(found.values(), key=lambda group: _place(group[0].method))


def average(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return mean(value(row) for row in rows)


def accuracy(row: Row) -> float:
    return row.accuracy


def low(row: Row) -> float:
    return row.accuracy_ci95[0]


def high(row: Row) -> float:
    return row.accuracy_ci95[1]


def cost(row: Row) -> float:
    return row.relative_flops


def milliseconds(times: Iterable[float | None]) -> float | None:
    """The mean of those that were timed; None where none was."""
    known = [time for time in times if time is not None]
    return mean(known) if known else None


def curve(rows: Sequence[Row]) -> Curve:
    points = sorted(groups(rows), key=lambda g: (g[0].price or 0.0, average(g, cost)))
    y, below, above = ([100 * average(g, value) for g in points] for value in (accuracy, low, high))
    return Curve([average(g, cost) for g in points], y, below, above)


def of_tiles(row: Row) -> bool:
    """A fixed selection of single tiles: there may be thousands, so the files alone list them."""
    return row.method.startswith("fixed:") and "." in row.method


def _place(method: str) -> tuple[int, int]:
    """In the tables' order."""
    style = style_of(method)
    return style.section, style.place
