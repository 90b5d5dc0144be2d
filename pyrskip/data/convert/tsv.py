"""VLMEvalKit's format: a tab-separated table with `question`, `answer`, a base64 `image` and options `A`,
`B`, ...

An image of fewer than 65 characters is the index of another row, which holds it. Options are written under
the question, a line 'A. text' each, and `hint` above it, as its prompts do. `category` is the question's
type. A cell that is in quotes as a whole may hold tabs, line breaks and quotes that are written twice.
"""

import base64
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pyrskip.data.convert.answers import NOTHING, list_in, listed, missing
from pyrskip.data.convert.choices import Choices, Later, with_options
from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.rows import SEVERAL, WITHOUT, Found, Row, Skipped, content_key
from pyrskip.data.convert.text import MARK, decode, encoding_of, lines
from pyrskip.data.faults import Fault
from pyrskip.data.storage import open_file
from pyrskip.errors import UserError
from pyrskip.sample import Question

REFERENCE = 64
"""Characters up to which an image is the index of another row."""
USUAL = {"answers": ("answer", "answers"), "type": ("category",)}
QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)(")?')


@dataclass(frozen=True)
class _Asking:
    """A row without its image: key and place of its own one, or the index of the row that holds it."""

    number: int
    row: dict[str, str]
    index: str
    key: str = ""
    place: str | None = None


@FORMATS.register("tsv")
class Tsv(Format):
    def rows(self, path: str) -> Iterator[Row]:
        with open_file(path) as file:
            encoding = encoding_of(file)
            records = _records(file, encoding)
            header = next((cells for _, _, cells in records if cells and any(map(str.strip, cells))), [])
            header = [name.strip(f" {MARK}") for name in header]
            table = _Table(self, path, header)
            image, waiting = self.name("image", header), deque[_Asking]()
            column = header.index(image)  # _Table has seen that it is there
            for number, (start, length, cells) in enumerate(records):
                try:
                    row = _row(header, cells)
                    place = f"{path}\t{start}\t{length}\t{column}\t{encoding}"
                    asking = _asking(number, row, row.pop(image, ""), place)
                    if isinstance(asking, Skipped):
                        yield asking
                        continue
                    try:
                        yield table.read(asking, last=False)
                    except Later:
                        waiting.append(asking)
                except ValueError as error:
                    yield Fault(path, f"row {number}", f"{type(error).__name__}: {error}")
            while waiting:
                yield table.read(waiting.popleft(), last=True)

    def image(self, place: str) -> bytes:
        path, start, length, column, encoding = place.rsplit("\t", 4)
        with open_file(path) as file:
            file.seek(int(start))
            cells, _ = _cells(decode(file.read(int(length)), encoding).rstrip("\r\n"))
        return _decoded(_images(cells[int(column)])[0])

    def name(self, role: str, header: Sequence[str]) -> str:
        """Of the column that is there for this; the usual one where none is."""
        usual = USUAL.get(role, (role,))
        return self.files.columns.get(role) or next((name for name in usual if name in header), usual[0])


class _Table:
    """What the rows of a file have told so far."""

    def __init__(self, form: Tsv, path: str, header: Sequence[str]) -> None:
        self._path, self._metric = path, form.files.metric
        roles = ("question", "answers", "image", "type")
        self._question, self._answers, _, self._type = names = [form.name(role, header) for role in roles]
        for role, name in zip(roles[:3], names, strict=False):
            if name not in header:
                raise UserError(
                    f"{path} has no column for data.files.columns.{role} (named {name}); it has "
                    f"{', '.join(header) or 'none'}"
                )
        self._choices = Choices(header, form.files.metric)
        self._keys: dict[str, str] = {}  # index of a row with an image of its own -> the image's key
        self._others: dict[str, str] = {}  # index of another row -> the index that it refers to
        self._places: dict[str, str] = {}  # of images of rows that are no question, by their keys

    def read(self, asking: _Asking, last: bool) -> Row:
        """last: all rows have been here. Raises Later where they are needed to tell."""
        row, key, place = asking.row, asking.key, asking.place
        own = _index(row.get("index", str(asking.number)))
        if key:
            self._keys.setdefault(own, key)
        else:
            self._others.setdefault(own, asking.index)
        try:
            if self._question not in row:
                raise ValueError("there is no question")
            options = self._choices.options(row)
            question = Question(
                with_options(row[self._question], options, row.get("hint")),
                self._choices.answers(listed(row.get(self._answers)), options, last),
                row.get(self._type, "all"),
                metric=self._metric,
            )
            if not key:
                key = self._referred(asking.index)
                place = self._places.get(key)
                if not key and not last:
                    raise Later
                if not key:
                    raise ValueError(f"image={asking.index} is no row with an image of its own")
            return Found(key, place, (question,))
        except (ValueError, Later) as error:
            if place is not None:
                self._places[key] = place
            if isinstance(error, Later):
                raise
            return Fault(self._path, f"row {asking.number}", f"{type(error).__name__}: {error}")

    def _referred(self, index: str) -> str:
        """The key of the image that an index leads to, or ''."""
        for _ in range(len(self._others) + 1):
            if index in self._keys or index not in self._others:
                break
            index = self._others[index]
        return self._keys.get(index, "")


def _row(header: Sequence[str], cells: Sequence[str] | None) -> dict[str, str]:
    """Column -> cell, for cells that are there. Raises ValueError."""
    if cells is None:
        raise ValueError(
            "a cell begins with a quote that does not end it; allowed: quotes around a whole cell"
        )
    if len(cells) != len(header) and (len(cells) < len(header) or any(cells[len(header) :])):
        raise ValueError(f"{len(cells)} cells for {len(header)} columns")
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip() not in NOTHING}


def _asking(number: int, row: dict[str, str], cell: str, place: str) -> "_Asking | Skipped":
    images = _images(cell)
    if len(images) != 1:
        return Skipped(SEVERAL if images else WITHOUT)
    (image,) = images
    if len(image) <= REFERENCE:
        return _Asking(number, row, _index(image))
    return _Asking(number, row, "", content_key(_decoded(image)), place)


def _images(cell: str) -> list[str]:
    """Of a cell: a list of one image is that image, as VLMEvalKit's toliststr has it."""
    if not cell.startswith("["):
        return [] if missing(cell) or cell in ("None", "null") else [cell.strip()]
    found = list_in(cell)
    return [str(one).strip() for one in found or () if not missing(one) and str(one) not in ("None", "null")]


def _decoded(image: str) -> bytes:
    if image.startswith("data:"):
        image = image.partition(",")[2]
    return base64.b64decode("".join(image.split()) if "\n" in image else image, validate=True)


def _index(text: str) -> str:
    """A column of numbers in which one was missing has 3.0 for 3."""
    return text.strip().removesuffix(".0")


def _records(file: BinaryIO, encoding: str) -> Iterator[tuple[int, int, list[str] | None]]:
    """Where each record begins, how many bytes it is long, and its cells: None where a cell begins with a
    quote that does not end, and the record is taken to end with its line."""
    ahead: deque[tuple[int, str]] = deque()
    source = lines(file, encoding)
    start, width = 0, 0

    def more() -> tuple[int, str]:
        return ahead.popleft() if ahead else next(source, (0, ""))

    while (line := more())[0]:
        length, text = line
        cells: list[str] | None
        opened = None
        if text.startswith('"') or '\t"' in text:
            cells, opened = _cells(text.rstrip("\r\n"))
        else:
            cells = text.rstrip("\r\n").split("\t")
        if opened is not None:
            cells, taken = _joined(text, width, more)
            if cells is None:
                ahead.extendleft(reversed(taken))
            else:
                length += sum(size for size, _ in taken)
        if text.strip(f" \r\n{MARK}"):
            width = width or len(cells or ())
            yield start, length, cells
        start += length


def _joined(
    first: str, width: int, more: Callable[[], tuple[int, str]]
) -> tuple[list[str] | None, list[tuple[int, str]]]:
    """A line in which a cell is left open, with those that follow: the cells of the record, or None where the
    lines are records of their own; and the lines that were read for it."""
    texts, taken = [first], []
    while (line := more())[0]:
        taken.append(line)
        texts.append(line[1])
        if '"' in line[1]:
            cells, opened = _cells("".join(texts).rstrip("\r\n"))
            if opened is None:
                whole = len(cells) == width and not any(_swallows(i, cells[i], width) for i in range(width))
                return (cells if whole else None), taken
        if line[1].count("\t") >= width - 1:
            break
    return None, taken


def _swallows(column: int, cell: str, width: int) -> bool:
    """Whether the lines of a cell look like the ends and beginnings of records: as many tabs as columns are
    left before and behind this one."""
    if "\n" not in cell:
        return False
    first, *_, final = tabs = [line.count("\t") for line in cell.split("\n")]
    behind = width - 1 - column
    return 0 < behind <= first or 0 < column <= final or max(tabs[1:-1], default=0) >= width - 1


def _cells(record: str) -> tuple[list[str], int | None]:
    """The cells of a record, and where the quote is that is open at its end, or None. A quote that does not
    end with its cell is part of the text."""
    cells: list[str] = []
    at = 0
    while True:
        quoted = QUOTED.match(record, at)
        if quoted and not quoted[2]:
            return [*cells, quoted[1]], at
        if quoted and record[quoted.end() : quoted.end() + 1] in ("", "\t"):
            cells.append(quoted[1].replace('""', '"'))
            end = quoted.end()
        else:
            end = record.find("\t", at)
            end = len(record) if end < 0 else end
            if quoted and "\n" in quoted[1]:
                return [*cells, quoted[1]], at
            cells.append(record[at:end])
        if end >= len(record):
            return cells, None
        at = end + 1
