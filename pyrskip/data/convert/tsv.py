"""VLMEvalKit's format: a tab-separated table with `question`, `answer`, a base64 `image` and options `A`,
`B`, ...

An image of fewer than 65 characters is the index of an earlier row that holds it. Options are written under
the question, a line 'A. text' each, and `hint` above it, as its prompts do. `category` is the question's
type.
"""

import base64
import csv
import io
import string
from collections.abc import Iterator
from typing import BinaryIO

from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.rows import Found, Row, Skipped, content_key, ordered
from pyrskip.data.faults import Fault
from pyrskip.data.storage import open_file
from pyrskip.errors import UserError
from pyrskip.sample import Question

REFERENCE = 64
"""Characters up to which an image is the index of another row."""
LONGEST = 1 << 30
"""Characters of a cell; csv's own limit is below an image's."""


@FORMATS.register("tsv")
class Tsv(Format):
    def rows(self, path: str) -> Iterator[Row]:
        keys: dict[str, str] = {}  # index of a row with an image of its own -> the image's key
        with open_file(path) as file:
            records = _records(file)
            _, _, header = next(records, (0, 0, []))
            for wanted in ("question", "answers", "image"):
                if self._name(wanted) not in header:
                    raise UserError(
                        f"{path} has no column for data.files.columns.{wanted} (named {self._name(wanted)}); "
                        f"it has {', '.join(header) or 'none'}"
                    )
            for number, (start, length, cells) in enumerate(records):
                try:
                    row = {
                        name: cell for name, cell in zip(header, cells, strict=True) if cell and cell != "nan"
                    }
                    yield self._row(
                        row, number, f"{path}\t{start}\t{length}\t{header.index(self._name('image'))}", keys
                    )
                except (ValueError, KeyError) as error:
                    yield Fault(path, f"row {number}", f"{type(error).__name__}: {error}")

    def image(self, place: str) -> bytes:
        path, start, length, column = place.rsplit("\t", 3)
        with open_file(path) as file:
            file.seek(int(start))
            (_, _, cells) = next(_records(io.BytesIO(file.read(int(length)))))
        return base64.b64decode(cells[int(column)], validate=True)

    def _row(self, row: dict[str, str], number: int, place: str, keys: dict[str, str]) -> Row:
        image = row[self._name("image")]
        if image.startswith("["):
            return Skipped("several images")
        options = [f"{letter}. {row[letter]}" for letter in string.ascii_uppercase if letter in row]
        text = "\n".join([*filter(None, [row.get("hint")]), row[self._name("question")], *options])
        question = Question(
            text,
            ordered([row[self._name("answers")]]),
            row.get(self._name("type"), "all"),
            metric=self.files.metric,
        )
        if len(image) <= REFERENCE:
            if image not in keys:
                raise ValueError(f"image={image} is no row before this one with an image of its own")
            return Found(keys[image], None, (question,))
        key = content_key(base64.b64decode(image, validate=True))
        keys[row.get("index", str(number))] = key
        return Found(key, place, (question,))

    def _name(self, role: str) -> str:
        return self.files.columns.get(role, {"answers": "answer", "type": "category"}.get(role, role))


def _records(file: BinaryIO) -> Iterator[tuple[int, int, list[str]]]:
    """Where each record begins, how many bytes it is long, and its cells; a quoted cell may hold line
    breaks."""
    csv.field_size_limit(LONGEST)
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line in file:
            position += len(line)
            yield line.decode("utf-8-sig" if position == len(line) else "utf-8")

    start = 0
    for cells in csv.reader(lines(), delimiter="\t"):
        if cells:
            yield start, position - start, cells
        start = position
