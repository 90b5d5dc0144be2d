"""What a finished run came to, in five lines: the gate beside what it is held against. A record of it is
small enough to be kept with the code, and pages are held to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyrskip.errors import UserError
from pyrskip.evaluation.curves import accuracy, average, cost, curve, high, low, milliseconds
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.guarantee import said as guaranteed
from pyrskip.evaluation.runs import Finished
from pyrskip.evaluation.verdict import said as verdict_said

CURVES = ("gate", "random", "hull")
"""Methods whose curve a record holds."""
Point = tuple[float, float, float, float]
"""FLOPs over full's, accuracy, and the ends of its 95% interval, in percent."""


@dataclass(frozen=True)
class Line:
    """A method on the test split, seeds averaged. name: full, reference, fixed, random or gate; method: as
    frontier.json calls it. accuracy: 0..1, with its 95% interval; tokens, flops: means an answer; of_full,
    of_reference: FLOPs over theirs; ms, ms_b32: milliseconds an answer, alone and 32 at once, None where
    nothing was timed."""

    name: str
    method: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    tokens: float
    flops: float
    of_full: float
    of_reference: float
    ms: float | None
    ms_b32: float | None


@dataclass(frozen=True)
class Record:
    """A run in short. date: when its frontier was drawn, in UTC; commit: of the code, empty where it is not
    known; device: that was timed, empty where nothing says which. target: the share of full's accuracy that
    the gate's prices are for; guarantee, worth: what is said of it, empty where nothing is. curves: by
    method."""

    experiment: str
    date: str
    commit: str
    version: str
    device: str
    seeds: int
    prices: tuple[float, ...]
    questions: int
    target: float
    guarantee: str
    worth: str
    lines: tuple[Line, ...]
    curves: dict[str, list[Point]]

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)


def record(run: Finished) -> Record:
    summary, versions = run.summary, run.versions
    target = headline(summary)
    seeds = summary["targets"][target]["gate"]["seeds"]
    found = [seed["guarantee"] for seed in seeds if "guarantee" in seed]
    drawn = datetime.fromtimestamp((run.directory / "frontier.json").stat().st_mtime, UTC)
    test = [row for row in run.rows if row.split == "test"]
    full = next(row for row in test if row.method == "full")
    return Record(
        experiment=run.label,
        date=drawn.date().isoformat(),
        commit=versions.get("commit", ""),
        version=versions.get("pyrskip", ""),
        device=summary.get("device", ""),
        seeds=len(seeds),
        prices=tuple(sorted({seed["price"] for seed in seeds})),
        questions=sum(of["n"] for of in full.by_type.values()),
        target=float(target),
        guarantee=guaranteed(found) if found else "",
        worth=verdict_said(summary["worth"]) if "worth" in summary else "",
        lines=tuple(lines(run)),
        curves={method: _curve([row for row in test if row.method == method]) for method in CURVES},
    )


def lines(run: Finished) -> Iterator[Line]:
    """The five lines, at the run's headline."""
    test = [row for row in run.rows if row.split == "test"]
    at = run.summary["targets"][headline(run.summary)]
    chosen = {(seed["seed"], seed["price"]) for seed in at["gate"]["seeds"]}
    methods = {"full": "full", "reference": "reference", "fixed": at["fixed"]["method"]}
    for name, method in methods.items():
        yield _line(name, [row for row in test if row.method == method])
    for name in ("random", "gate"):
        yield _line(name, [row for row in test if row.method == name and (row.seed, row.price) in chosen])


def headline(summary: Mapping[str, Any]) -> str:
    """The retention that a run is summed up at: the highest that is guaranteed for every seed, else the
    lowest."""
    targets = summary["targets"]
    names: list[str] = sorted(targets, key=float)
    kept = [
        name
        for name in names
        if all(seed.get("guarantee", {}).get("guaranteed") for seed in targets[name]["gate"]["seeds"])
    ]
    return (kept or names[:1])[-1]


def read_record(path: Path) -> Record:
    """Raises UserError for what is no record."""
    try:
        plain = json.loads(path.read_text())
        own = [Line(**{**line, "accuracy_ci95": tuple(line["accuracy_ci95"])}) for line in plain["lines"]]
        curves = {name: [tuple(point) for point in points] for name, points in plain["curves"].items()}
        return Record(**{**plain, "prices": tuple(plain["prices"]), "lines": tuple(own), "curves": curves})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no record of a run ({error}); allowed: what pyrskip results wrote"
        ) from error


def _line(name: str, rows: Sequence[Row]) -> Line:
    return Line(
        name=name,
        method=rows[0].method,
        accuracy=average(rows, accuracy),
        accuracy_ci95=(average(rows, low), average(rows, high)),
        tokens=average(rows, lambda row: row.tokens),
        flops=average(rows, lambda row: row.flops),
        of_full=average(rows, cost),
        of_reference=average(rows, lambda row: row.flops_of_reference),
        ms=milliseconds(row.total_ms for row in rows),
        ms_b32=milliseconds(row.total_ms_b32 for row in rows),
    )


def _curve(rows: Sequence[Row]) -> list[Point]:
    of = curve(rows)
    points = zip(of.x, of.y, of.low, of.high, strict=True)
    return [(round(x, 4), round(y, 2), round(below, 2), round(above, 2)) for x, y, below, above in points]
