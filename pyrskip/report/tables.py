"""Tables of figures: one description, shown on the terminal or in the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

WIDTH = 120
"""Columns that a table has at least where it is written to a file."""


@dataclass(frozen=True)
class Column:
    """name: its heading; format: of its numbers on the terminal, as `format` takes it. Text stands as it is,
    to the left in a column without a format; None is an empty cell."""

    name: str
    format: str | None = None

    def cell(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return format(value, self.format or "")


@dataclass(frozen=True)
class Table:
    """rows: cells by columns. note: what the figures mean. rules: numbers of rows that a line is drawn
    above, on the terminal."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    rules: frozenset[int] = frozenset()


def print_table(table: Table, console: Console | None = None) -> None:
    """As wide as the terminal is; where it is written to a file, as wide as it needs."""
    grid = Grid(title=table.title, caption=table.note)
    for column in table.columns:
        text = column.format is None  # of numbers no digit goes to another line
        grid.add_column(column.name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for number, row in enumerate(table.rows):
        if number in table.rules:
            grid.add_section()
        grid.add_row(*(column.cell(value) for column, value in zip(table.columns, row, strict=True)))
    if console is None:
        console = Console()
        if not console.is_terminal:
            needed = Console(width=10_000).measure(grid).maximum
            console = Console(width=max(WIDTH, needed))
    console.print(grid, markup=False)
