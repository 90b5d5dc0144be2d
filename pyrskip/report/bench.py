"""What decisions take on the clock, on the terminal."""

from collections.abc import Sequence

from pyrskip.evaluation.bench import PHASES, Timed
from pyrskip.report.tables import Column, Table, print_table


def print_bench(rows: Sequence[Timed], title: str) -> None:
    times = (*PHASES, "total", "total_p90")
    columns = [Column("at once", "d"), Column("decision")]
    columns += [Column(name.replace("total_p90", "p90"), ".2f") for name in times]
    columns += [Column("x full, time", ".3f"), Column("x full, FLOPs", ".3f")]
    cells = [[r.questions, r.decision, *(getattr(r, name) for name in times), r.time, r.flops] for r in rows]
    if any(r.memory is not None for r in rows):
        columns.append(Column("MiB", ".0f"))
        cells = [[*cell, r.memory] for cell, r in zip(cells, rows, strict=True)]
    starts = frozenset(i for i, row in enumerate(rows) if i and row.questions != rows[i - 1].questions)
    note = "milliseconds a question: medians, and the 90th percentile of the total"
    print_table(Table(title, columns, cells, note, starts, names=2))
