"""The rows of a JSON file, one at a time: an array, JSON lines, or arrays inside an object.

What cannot be read ends with the row that it is in: reading goes on at the next place where a row can be
read. NaN and Infinity are read, as Python's json reads them.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from pyrskip.data.convert.text import MARK, decoder, encoding_of, lines
from pyrskip.data.faults import Fault

CHUNK = 1 << 20
"""Bytes read at a time."""
LONGEST = 4 << 20
"""Characters of a row. What is longer is taken for a row that lost its end."""
TOKEN = 16
"""Characters that the end of what was read may cut off a number, a word or an escape by."""
LOOK = 20
"""Lines looked at to tell JSON lines."""

BLANK = re.compile(rf"[\s,{MARK}]*")
START = re.compile(r"[,\n\[}]\s*(?=\{)")
KEY = re.compile(rf'[\s{MARK}]*[{{,]\s*"([^"\\]*)"\s*:\s*')
OBJECTS = re.compile(r"\[\s*\{")
BEGIN = re.compile(r"""\{\s*["']([^"']+)["']\s*:""")
NEXT = re.compile(rf"[\s{MARK}]*(.?)", re.DOTALL)
END = re.compile(r"[\]}\s]*\Z")

_decode = json.JSONDecoder(strict=False).raw_decode


class Numbered(NamedTuple):
    """place: which row or line it is."""

    place: str
    value: Any


def json_rows(
    file: BinaryIO, path: str, marks: frozenset[str], others: frozenset[str]
) -> Iterator[Numbered | Fault]:
    """path: for faults, whose `lost` counts rows. marks: keys that rows have, and no object inside a row;
    others: keys that rows have too."""
    encoding = encoding_of(file)
    left = _Left(file, encoding)
    left.skip()
    if _are_lines(left.text[left.at :], marks):
        file.seek(0)
        yield from _lines(file, path, encoding)
    else:
        yield from _Stream(left, path, marks, others).rows()


def _are_lines(text: str, marks: frozenset[str]) -> bool:
    """Whether the first line is a row, or two of the first lines are."""
    rows = [_is_row(_loaded(line), marks) for line in text.split("\n", LOOK)[:LOOK]]
    return rows[0] or sum(rows) > 1


def _is_row(value: Any, marks: frozenset[str]) -> bool:
    return isinstance(value, dict) and not marks.isdisjoint(value)


def _swallows(value: Any, marks: frozenset[str]) -> bool:
    """Whether the list that ends a value ends with a row: it lost its own end, and has the file's."""
    if isinstance(value, dict) and value:
        value = value[next(reversed(value))]
    return isinstance(value, list) and bool(value) and _is_row(value[-1], marks)


def _loaded(line: str) -> Any:
    try:
        return json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None


def _lines(file: BinaryIO, path: str, encoding: str) -> Iterator[Numbered | Fault]:
    for number, (_, line) in enumerate(lines(file, encoding), 1):
        if text := line.strip(f" \t\r\n{MARK}").rstrip(","):
            try:
                yield Numbered(f"line {number}", json.loads(text, strict=False))
            except (ValueError, RecursionError) as error:
                yield Fault(path, f"line {number}", f"{type(error).__name__}: {error}")


class _Left:
    """What is left of a file: text[at:], and what is to be read."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._decoder, self._whole = file, decoder(encoding), encoding == "utf-8"
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Read on. False at the end of the file."""
        chunk = self._file.read(CHUNK)
        self.ended = not chunk
        self.text = self.text[self.at :] + self._decoder.decode(chunk, self.ended and self._whole)
        self.at = 0
        return not self.ended

    def skip(self) -> bool:
        """To what is neither blank nor comma. False where nothing follows."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return True
            if not self.more():
                return False

    def value(self, start: int = 0) -> tuple[Any, int]:
        """The value at text[at + start], and how far behind `at` it ends. Raises ValueError or
        RecursionError."""
        while True:
            try:
                value, end = _decode(self.text, self.at + start)
                end -= self.at
                # what follows a value tells whether it is one
                if self.ended or len(self.text) - self.at - end > TOKEN or not self.more():
                    return value, end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + TOKEN > len(self.text)
                if not cut or len(self.text) - self.at > LONGEST or self.ended:
                    raise
                self.more()


class _Stream:
    """Rows with commas, blanks or nothing between them."""

    def __init__(self, left: _Left, path: str, marks: frozenset[str], others: frozenset[str]) -> None:
        self._left, self._path, self._marks, self._others = left, path, marks, others
        self._number, self._first = 0, ""

    def rows(self) -> Iterator[Numbered | Fault]:
        first = self._left.text[self._left.at : self._left.at + 1]
        if first == "{":
            yield from self._inside()
        yield from self._values(array=first == "[")

    def _inside(self) -> Iterator[Numbered | Fault]:
        """The rows of each array in an object, and those that are values of it. None where the object is a
        row itself."""
        left, at = self._left, 0
        while key := KEY.match(left.text, left.at + at):
            if key[1] in self._marks or key[1] in self._others:
                return
            at = key.end() - left.at
            if OBJECTS.match(left.text, key.end()):
                left.at, at = key.end(), 0
                yield from self._values(array=True, inside=True)
                continue
            try:
                value, at = left.value(at)
            except (ValueError, RecursionError):
                return
            if _is_row(value, self._marks):
                left.at, at = left.at + at, 0
                yield self._numbered(value)

    def _values(self, array: bool, inside: bool = False) -> Iterator[Numbered | Fault]:
        """array: at its bracket. inside: only up to the array's end."""
        left, opened = self._left, array
        left.at += array
        while left.skip():
            if END.match(left.text, left.at) and left.text[left.at :].strip():
                if not left.ended:
                    left.more()
                    continue
                return
            if left.text[left.at] == "]" and opened:
                opened = False
                left.at += 1
                if inside:
                    return
                continue
            if left.text[left.at] == "[" and array and not opened:  # a second array behind the first
                opened = True
                left.at += 1
                continue
            try:
                value, end = left.value()
                if _swallows(value, self._marks):
                    raise ValueError("other rows are inside it")
                if not _is_row(value, self._marks):
                    behind = NEXT.match(left.text, left.at + end)[1]  # type: ignore[index]
                    if behind not in ("", ",", "]", "{"[: isinstance(value, dict)]):
                        raise ValueError(f"{behind!r} is not what a row ends with")
                left.at += end
                yield self._numbered(value)
                continue
            except (ValueError, RecursionError) as error:
                reason = f"{type(error).__name__}: {error}"
            reason, place = f"cannot be read after {self._number} rows: {reason}", f"row {self._number}"
            lost = self._next_row()
            self._number += lost
            yield Fault(self._path, place, reason, lost)
            opened = opened and left.at < len(left.text)
        if opened:
            reason = f"cannot be read after {self._number} rows: the file ends and its array does not"
            yield Fault(self._path, f"row {self._number}", reason)

    def _numbered(self, value: Any) -> Numbered:
        if not self._first and _is_row(value, self._marks):
            self._first = next(iter(value))
        self._number += 1
        return Numbered(f"row {self._number - 1}", value)

    def _next_row(self) -> int:
        """Go to where the next row can be read, or to the end. How many rows are left out: one, and those
        that begin behind it, told by the first key of rows that can be read."""
        left, at, lost = self._left, 1, 1
        while True:
            while found := START.search(left.text, left.at + at):
                at = found.end() - left.at
                try:
                    value, _ = left.value(at)
                except (ValueError, RecursionError):
                    continue
                if _is_row(value, self._marks):
                    self._first = self._first or next(iter(value))
                    lost += self._begun(at)
                    left.at += at
                    return lost
            far = len(left.text) - left.at
            if left.ended or far > LONGEST:
                lost += self._begun(far)
                left.at += far
            if left.ended:
                return lost
            left.more()
            at = max(1, min(far, len(left.text)) - TOKEN)

    def _begun(self, far: int) -> int:
        """Rows that begin in the next `far` characters, but not with the first of them."""
        text, at = self._left.text, self._left.at
        own = BEGIN.match(text, at)
        first = self._first or (own[1] if own else "")
        begin = re.compile(rf"""\{{\s*["']{re.escape(first)}["']\s*:""")
        return len(begin.findall(text, at + 1, at + far))
