"""What `pyrskip predict` is to answer: the lines of a file or of stdin, an image, the images of a folder.

What a file is, its content says rather than its name. What is wrong with a line is that line's own error.
"""

import io
import json
import math
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pyrskip.errors import UserError
from pyrskip.inference.decider import Request
from pyrskip.inference.images import is_image
from pyrskip.picture import EXTENSIONS, FORMATS

IMAGES = tuple(f".{extension}" for extension in EXTENSIONS)
LINES = (".jsonl", ".ndjson", ".json")
"""Names that count where the content says nothing."""
DIAL = ("price", "max_tokens", "retention", "safe")
LOOKED_AT = 1 << 16
"""Bytes of a file that tell what it is."""
TOLD = 20
"""Files of a folder that are left out by name."""
BLANK = string.whitespace + "\ufeff"
# with a byte order mark or a JSON value at the front, so that no damaged first line is taken for one of them
WIDE = {
    "utf-32": rb"\xff\xfe\0\0|\0\0\xfe\xff",
    "utf-16": rb"\xff\xfe[^\0]\0|\xfe\xff\0[^\0]",
    "utf-16-le": rb"[{\[]\0[^\0]\0",
    "utf-16-be": rb"\0[{\[]\0[^\0]",
}
CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
FORM = '{"image": path, "question": text}'

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Line:
    """A line of input. record: as given; error: why there is no request; time: how often its id, image and
    question have come up, this line included."""

    id: str
    record: dict[str, Any]
    request: Request | None
    error: str = ""
    time: int = 1

    @property
    def key(self) -> Key:
        return (*key_of(self.record | {"id": self.id}), self.time)


def key_of(record: dict[str, Any]) -> tuple[str, str, str]:
    """What a line of input, or of output, is known by."""
    return str(record.get("id")), str(record.get("image")), str(record.get("question"))


def read_lines(source: str, question: str | None, dial: dict[str, Any]) -> Iterator[Line]:
    """Lines of a file or stdin ('-'), or one an image. dial: DIAL's keys, of lines that say none. Raises
    UserError where the source is none of them."""
    path = Path(source)
    if source != "-" and not os.path.exists(source):  # Path's raises for a name that is too long
        raise UserError(
            f"input={source} does not exist; allowed: a file of JSON lines, an image, a folder of them, or -"
        )
    if source == "-" or _holds_lines(path):
        if question is not None:
            raise UserError("question= is for an image or a folder; the lines of a file ask their own")
        return _of_lines(None if source == "-" else path, dial)
    if not question:
        if path.is_dir() or path.suffix.lower() in IMAGES or is_image(path):
            raise UserError(f"question= is missing: what to ask of {source}")
        raise UserError(
            f"input={source} holds no JSON line and is no image; allowed: lines of {FORM}, or "
            f"{', '.join(FORMATS)}"
        )
    files = _images_in(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"input={source} holds no images; allowed: {', '.join(FORMATS)}")
    return (
        Line(str(file), {"image": str(file), "question": question}, Request(file, question, **dial))
        for file in files
    )


def _images_in(folder: Path) -> list[Path]:
    """Its images, by their content or their names. What else there is is told."""
    found: list[Path] = []
    others: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not path.name.startswith(".") and (path.suffix.lower() in IMAGES or is_image(path)):
            found.append(path)
        else:
            others.append(repr(str(path.relative_to(folder))))
    if others:
        more = f" and {len(others) - TOLD} more" * (len(others) > TOLD)
        print(
            f"left out, hidden or no {', '.join(FORMATS)}: {', '.join(others[:TOLD])}{more}", file=sys.stderr
        )
    return found


def _holds_lines(path: Path) -> bool:
    if not path.is_file():  # what is read of a pipe is gone
        return not path.is_dir()
    beginning, named = _beginning(path, LOOKED_AT), path.suffix.lower() in LINES
    text = beginning.decode(_encoding(beginning), "replace").strip(BLANK)
    held = any(isinstance(value_of(line), dict) for line in text.splitlines())
    if is_image(path):  # a damaged first line may begin as one does
        return named and held
    return named or held or (text[:1] in ("[", "{") and "\0" not in text)


def _beginning(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise UserError(f"input={path} cannot be read: {error.strerror}") from error


def _encoding(beginning: bytes) -> str:
    return next((name for name, mark in WIDE.items() if re.match(mark, beginning)), "utf-8")


def _of_lines(path: Path | None, dial: dict[str, Any]) -> Iterator[Line]:
    folder = path.parent if path and path.is_file() else Path()
    seen: Counter[tuple[str, str, str]] = Counter()
    with _opened(path) as file:
        for number, given in _records(file):
            id_, record, error = _parsed(given, number)
            key = key_of(record | {"id": id_})
            seen[key] += 1
            yield Line(id_, record, None if error else _request(record, folder, dial), error, seen[key])


def _opened(path: Path | None) -> AbstractContextManager[Iterable[str]]:
    """Bytes that are no UTF-8 come as lone surrogates, so that they cost no line but their own."""
    if path is None:
        if isinstance(sys.stdin, io.TextIOWrapper) and isinstance(sys.stdin.buffer, io.BufferedReader):
            encoding = _encoding(sys.stdin.buffer.peek(4))
            sys.stdin.reconfigure(encoding=encoding, errors=_errors(encoding))
        return nullcontext(sys.stdin)
    encoding = _encoding(_beginning(path, 4)) if path.is_file() else "utf-8"
    return path.open(encoding=encoding, errors=_errors(encoding))


def _errors(encoding: str) -> str:
    return "surrogateescape" if encoding == "utf-8" else "replace"


def _records(lines: Iterable[str]) -> Iterator[tuple[str, object]]:
    """The number and the text of each line that is not blank; where all are one array or object, of each
    member and its value."""
    numbered = ((str(number), line) for number, line in enumerate(lines, 1) if line.strip(BLANK))
    first = list(islice(numbered, 1))
    begins = first[0][1].strip(BLANK) if first else ""
    if begins.startswith("[") or begins == "{":
        first += numbered
        whole = value_of("".join(line for _, line in first))
        if whole is not None:
            members = whole if isinstance(whole, list) else [whole]
            yield from ((str(number), member) for number, member in enumerate(members, 1))
            return
        if begins.startswith("["):  # an array that is damaged, of a member a line
            texts = ((number, line.strip(BLANK).rstrip(",")) for number, line in first)
            first = [(number, text.removeprefix("[")) for number, text in texts if text not in ("[", "]")]
    yield from chain(first, numbered)


def value_of(text: str) -> object:
    """None where a text is no JSON."""
    try:
        return _loaded(text)
    except (ValueError, RecursionError):
        return None


def _loaded(text: str) -> object:
    return json.loads(text.strip(BLANK), parse_constant=CONSTANTS.get)


def _parsed(given: object, number: str) -> tuple[str, dict[str, Any], str]:
    """The id, the record (empty where it cannot be written again), and what is wrong ('': nothing)."""
    id_ = number
    try:
        record = _loaded(given) if isinstance(given, str) else given
        if not isinstance(record, dict):
            return number, {}, f"line {number} is no {FORM}"
        if record.get("id") is not None:
            own = str(record["id"])
            own.encode()
            id_ = own
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        return id_, {}, f"line {number} is nested too deeply"
    except ValueError as error:  # of numbers that no JSON has, or of thousands of digits, too
        if isinstance(error, UnicodeEncodeError) or re.search("[\ud800-\udfff]", str(given)):
            return id_, {}, f"line {number} holds a byte that is no UTF-8, or half of a character"
        return id_, {}, f"line {number} is no JSON: {error}"
    fits = all(isinstance(record.get(key), str) for key in ("image", "question"))
    return id_, record, "" if fits else f"line {number} is no {FORM}"


def _request(record: dict[str, Any], folder: Path, dial: dict[str, Any]) -> Request:
    own = {key: record[key] for key in DIAL if record.get(key) is not None}
    asks = [key for key, value in own.items() if value is not False]
    rest = {key: value for key, value in dial.items() if not any(_apart(key, of) for of in asks)}
    return Request(folder / record["image"], record["question"], **(rest | own))


def _apart(key: str, other: str) -> bool:
    """Whether two of DIAL's keys are not of one request: a retention stands alone, `safe` with a price."""
    return key != other and ("retention" in (key, other) or {key, other} == {"safe", "max_tokens"})
