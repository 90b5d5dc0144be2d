"""What a sweep came to: a table of its jobs, and one frontier of all of them, as a table and a figure.

Jobs that differ in their seed alone are one line, and so are their prices, whether each is a job or a place
on a dial.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from pathlib import Path
from statistics import mean

from rich.console import Console

from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.runs import load_runs
from pyrskip.files import write_whole
from pyrskip.report.plots import plot_runs
from pyrskip.report.styles import CYCLE
from pyrskip.report.tables import Column, Table, print_table
from pyrskip.sweeps.jobs import STATES, Job

TABLE, FIGURE = "sweep.csv", "sweep.png"
DRAWN = len(CYCLE)


@dataclass(frozen=True)
class Point:
    """A line's figures at a price, means over jobs: accuracy in [0, 1], cost in relative FLOPs. low, high:
    the mean of the 95 % intervals. front: no other of the sweep's points is as good and cheaper, or as cheap
    and better, on validation."""

    line: str
    price: float
    gates: int
    val_accuracy: float
    val_cost: float
    accuracy: float
    low: float
    high: float
    cost: float
    front: bool = False


def rows_of(jobs: Sequence[Job]) -> dict[str, list[Row]]:
    """Line -> the rows of the finished jobs' frontiers. A gate that serves one price is a point of its line;
    of one that serves many, the price it was trained at makes another line."""
    found: dict[str, list[Row]] = {}
    for job in jobs:
        if job.state == "done" and (job.directory / "frontier.json").is_file():
            rows = load_runs(job.directory)[0].rows
            single = len({row.price for row in rows if row.method == "gate"}) == 1
            pooled = ("seed", "reward.price") if single else ("seed",)
            line = ",".join(o for o in job.varied if o.split("=")[0] not in pooled) or "gate"
            found.setdefault(line, []).extend(rows)
    return found


def points_of(lines: dict[str, list[Row]]) -> list[Point]:
    """In the order of their cost on test."""
    points = []
    for line, rows in lines.items():
        gate = [row for row in rows if row.method == "gate" and row.price is not None]
        for price in sorted({row.price for row in gate if row.price is not None}):
            val, test = (
                [r for r in gate if r.price == price and r.split == split] for split in ("val", "test")
            )
            points.append(
                Point(
                    line=line,
                    price=price,
                    gates=len(test),
                    val_accuracy=mean(r.accuracy for r in val),
                    val_cost=mean(r.relative_flops for r in val),
                    accuracy=mean(r.accuracy for r in test),
                    low=mean(r.accuracy_ci95[0] for r in test),
                    high=mean(r.accuracy_ci95[1] for r in test),
                    cost=mean(r.relative_flops for r in test),
                )
            )
    best = [
        not any(_beats(q, p, first=j < i) for j, q in enumerate(points) if j != i)
        for i, p in enumerate(points)
    ]
    return sorted((replace(p, front=on) for p, on in zip(points, best, strict=True)), key=lambda p: p.cost)


def point_of(job: Job) -> tuple[float, float] | None:
    """A finished job's (accuracy, relative FLOPs) on validation, means over its gates and prices; None where
    it has no frontier."""
    points = points_of(rows_of([job]))
    return (mean(p.val_accuracy for p in points), mean(p.val_cost for p in points)) if points else None


def print_status(jobs: Sequence[Job], console: Console) -> None:
    """Every job by what varies, with its state and what it reached on validation; then the directories of
    those that failed or were given up, with the last line of why."""
    keys = list(dict.fromkeys(override.split("=")[0] for job in jobs for override in job.varied))
    rows = []
    for job in jobs:
        own = dict(override.split("=", 1) for override in job.varied)
        point = point_of(job)
        silent = f"silent for {job.silent / 60:.0f} min" if job.state == "running" else ""
        rows.append([*(own.get(key, "") for key in keys), job.state, *(point or ("", "")), silent])
    columns = [*map(Column, (*keys, "state")), Column("val accuracy", ".2%"), Column("val cost", ".3f")]
    print_table(Table(counted(jobs), [*columns, Column("")], rows, names=len(keys) or 1), console)
    for job in jobs:
        if job.why:
            console.print(f"{job.directory} {job.state}: {job.why}", markup=False, highlight=False)


def print_points(points: Sequence[Point], console: Console) -> None:
    """The points that nothing of the sweep beats on validation, as they came out on test."""
    names = {"": None, "price": ".3g", "gates": "d", "accuracy": ".2%", "95 %": "", "cost": ".3f"}
    rows = [
        [p.line, p.price, p.gates, p.accuracy, f"{p.low:.2%} to {p.high:.2%}", p.cost]
        for p in points
        if p.front
    ]
    print_table(Table("the sweep's front", [Column(*of) for of in names.items()], rows), console)


def counted(jobs: Sequence[Job]) -> str:
    states = [job.state for job in jobs]
    return f"{len(jobs)} jobs: " + ", ".join(
        f"{states.count(state)} {state}" for state in STATES if state in states
    )


def write_overview(sweep: Path, jobs: Sequence[Job]) -> list[Point]:
    """Write sweep.csv and sweep.png; nothing where no job is done."""
    lines = rows_of(jobs)
    points = points_of(lines)
    if not points:
        return []
    table = StringIO(newline="")
    writer = csv.DictWriter(table, [f.name for f in fields(Point)])
    writer.writeheader()
    writer.writerows(asdict(p) for p in points)
    write_whole(sweep / TABLE, table.getvalue())
    # those with most points on the front, of more than can be told apart
    best = sorted(lines, key=lambda line: -sum(p.front for p in points if p.line == line))[:DRAWN]
    plot_runs({line: lines[line] for line in best}, sweep / FIGURE)
    return points


def _beats(a: Point, b: Point, first: bool) -> bool:
    """Whether a is as good and as cheap as b on validation; of two that are alike the first beats the
    other."""
    alike = (a.val_accuracy, a.val_cost) == (b.val_accuracy, b.val_cost)
    return first if alike else a.val_accuracy >= b.val_accuracy and a.val_cost <= b.val_cost
