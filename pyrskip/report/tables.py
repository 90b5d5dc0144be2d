"""Tables of figures: one description, shown on the terminal or in the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

WIDTH = 120
"""Columns that a table has at least where it is written to a file."""
TEXT, FRAME = 20, 3
"""Columns that text has before it goes to another line, and those between two columns of a table."""


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
    above, on the terminal. names: so many first columns say what a row is of."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    rules: frozenset[int] = frozenset()
    names: int = 1


def print_table(table: Table, console: Console | None = None) -> None:
    """As wide as the terminal is; where it is written to a file, as wide as it needs. Columns that do not fit
    stand in a further table below, behind those again that say what a row is of."""
    every, names = range(len(table.columns)), list(range(table.names))
    if console is None:
        console = Console()
        if not console.is_terminal:
            needed = Console(width=10_000).measure(_grid(table, every)).maximum
            console = Console(width=max(WIDTH, needed))
    parts = [names]
    for column in every[table.names :]:
        wider = [*parts[-1], column]
        if parts[-1] == names or _needed(table, wider) <= console.width:
            parts[-1] = wider
        else:
            parts.append([*names, column])
    for number, columns in enumerate(parts):
        grid = _grid(table, columns)
        grid.title = None if number else table.title
        grid.caption = table.note if number + 1 == len(parts) else None
        console.print(grid, markup=False)


def _needed(table: Table, columns: Sequence[int]) -> int:
    """How wide a terminal has to be for these columns: for text so wide that it goes to few lines."""
    width = 1
    for at in columns:
        column = table.columns[at]
        cells = (*column.name.split("\n"), *(column.cell(row[at]) for row in table.rows))
        longest = max(map(len, cells))
        width += FRAME + (longest if column.format is not None else min(longest, TEXT))
    return width


def _grid(table: Table, columns: Sequence[int]) -> Grid:
    grid = Grid()
    for column in (table.columns[at] for at in columns):
        text = column.format is None  # of numbers no digit goes to another line
        grid.add_column(column.name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for number, row in enumerate(table.rows):
        if number in table.rules:
            grid.add_section()
        grid.add_row(*(table.columns[at].cell(row[at]) for at in columns))
    return grid
