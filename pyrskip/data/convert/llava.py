"""LLaVA's format: a JSON array (or JSON lines) of {"id", "image", "conversations": [{"from", "value"}, ...]},
and a folder.

Every human turn that a gpt turn answers is a question on the image. Rows without an image, with several or
with a video are skipped and counted. An image is known by its path in the folder; its first folder is the
question's type, unless the row has "type" or "category".
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.rows import Found, Row, Skipped, image_key
from pyrskip.data.faults import Fault
from pyrskip.data.storage import expand, is_url, open_file, open_in
from pyrskip.errors import UserError
from pyrskip.files import there
from pyrskip.sample import Question

HUMAN, GPT = ("human", "user"), ("gpt", "assistant")


@FORMATS.register("llava")
class Llava(Format):
    """data.files.images is the folder, a path or URL."""

    def check(self) -> None:
        for pattern in filter(None, (self.files.path, self.files.test)):
            expand(pattern)
        images = self.files.images
        if not images:
            raise UserError(
                "data.files.images is empty; allowed for data=llava: the folder that its images are in"
            )
        if not is_url(images) and not Path(there(images)).is_dir():
            raise UserError(f"data.files.images={images!r} is no folder that is there")

    def rows(self, path: str) -> Iterator[Row]:
        with open_file(path) as file:
            first = file.read(64).lstrip()[:1]
            file.seek(0)
            for number, row in enumerate(_array(file, path) if first == b"[" else _lines(file, path)):
                if isinstance(row, Fault):
                    yield row
                    continue
                try:
                    yield self._row(row)
                except (ValueError, TypeError, KeyError) as error:
                    key = row.get("id", number) if isinstance(row, dict) else number
                    yield Fault(path, f"row {key}", f"{type(error).__name__}: {error}")

    def image(self, place: str) -> bytes:
        with open_in(self.files.images, place) as file:
            return file.read()

    def _row(self, row: dict[str, Any]) -> Row:
        if not isinstance(row, dict):
            raise TypeError("the row is no object")
        image = row.get("image")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if image is None:
            return Skipped("a video" if "video" in row else "text only")
        if isinstance(image, list):
            return Skipped("several images")
        if not isinstance(image, str) or not image:
            raise TypeError(f"image={image!r} is no path")
        path = PurePosixPath(image)
        if path.is_absolute() or ".." in path.parts or "://" in image:
            raise ValueError(f"image={image!r} points out of the folder of images")
        kind = row.get("type") or row.get("category") or (path.parts[0] if len(path.parts) > 1 else "all")
        return Found(image_key(str(path)), str(path), tuple(self._questions(row["conversations"], str(kind))))

    def _questions(self, turns: Any, kind: str) -> Iterator[Question]:
        """Raises ValueError where there is none, TypeError where a turn is none."""
        if not isinstance(turns, list):
            raise TypeError("conversations is no list")
        found, text = False, None
        for turn in turns:
            said, value = turn["from"], turn["value"]
            if not isinstance(value, str):
                raise TypeError(f"{value!r} is no text")
            if said in HUMAN:
                text = value.replace("<image>", "").strip()
            elif said in GPT and text and value.strip():
                found = True
                yield Question(text, (value.strip(),), kind, metric=self.files.metric)
                text = None
        if not found:
            raise ValueError("no human turn has an answer")


def _array(file: BinaryIO, path: str) -> Iterator[Any]:
    import ijson

    number = 0
    try:
        for row in ijson.items(file, "item", use_float=True):
            yield row
            number += 1
    except (ijson.JSONError, UnicodeDecodeError) as error:
        yield Fault(path, "", f"cannot be read after {number} rows: {' '.join(str(error).split())}")


def _lines(file: BinaryIO, path: str) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Fault(path, f"line {number}", f"{type(error).__name__}: {error}")
