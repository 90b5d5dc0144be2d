"""LLaVA's format: a JSON array (or JSON lines) of {"id", "image", "conversations": [{"from", "value"}, ...]},
and a folder; with the names that ShareGPT, ms-swift and LLaMA-Factory have for them: "images", and "messages"
of {"role", "content"}, whose content may be parts.

Every human turn that a gpt turn answers is a question on the image; one without an answer is a fault of its
own. Rows without an image, with several or with a video are skipped and counted. An image is known by its
path in the folder; its first folder is the question's type, unless the row has "type" or "category".
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pyrskip.data.convert.answers import missing, text_of
from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.json_rows import json_rows
from pyrskip.data.convert.rows import SEVERAL, WITHOUT, Found, Row, Skipped, image_key
from pyrskip.data.faults import Fault
from pyrskip.data.storage import is_url, open_file, open_in
from pyrskip.errors import UserError
from pyrskip.files import there
from pyrskip.sample import Question

TURNS = frozenset(("conversations", "messages", "conversation"))
PICTURES = frozenset(("image", "images"))
HUMAN, GPT, BESIDE = "asks", "answers", "neither"
SIDES = {
    **dict.fromkeys(("human", "user"), HUMAN),
    **dict.fromkeys(("gpt", "assistant", "bot"), GPT),
    **dict.fromkeys(("system", "developer", "tool", "tool_call", "tool_response"), BESIDE),
    **dict.fromkeys(("function", "function_call", "observation"), BESIDE),
}
"""Who speaks -> whether they ask or answer."""
END = {"from": "human", "value": ""}
"""Stands behind the last turn."""
SHOWN = "<image>"
UNUSUAL = frozenset(("", ".", ".."))
"""Parts that a path may have and a name of a file has not."""


@FORMATS.register("llava")
class Llava(Format):
    """data.files.images is the folder, a path or URL."""

    def patterns(self) -> tuple[str, ...]:
        return self.files.path, self.files.test

    def check(self) -> None:
        super().check()
        images = self.files.images
        if not images:
            raise UserError(
                "data.files.images is empty; allowed for data=llava: the folder that its images are in"
            )
        if not is_url(images) and not Path(there(images)).is_dir():
            raise UserError(f"data.files.images={images!r} is no folder that is there")

    def rows(self, path: str) -> Iterator[Row]:
        with open_file(path) as file:
            for row in json_rows(file, path, TURNS, PICTURES):
                if isinstance(row, Fault):
                    yield row
                    continue
                place, value = row.place, row.value
                if isinstance(value, dict) and "id" in value:
                    place = f"row {value['id']}"
                try:
                    yield self._row(value, path, place)
                except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                    yield Fault(path, place, f"{type(error).__name__}: {error}")

    def image(self, place: str) -> bytes:
        with open_in(self.files.images, place) as file:
            return file.read()

    def _row(self, row: dict[str, Any], source: str, where: str) -> Row:
        if not isinstance(row, dict):
            raise TypeError("the row is no object")
        turns = row.get("conversations")
        if not turns:
            turns = row.get("messages") or row.get("conversation") or turns
        if row.get("video") or row.get("videos"):
            return Skipped("a video")
        images = _pictures(row.get("image"))
        images += [one for one in _pictures(row.get("images")) if one not in images]
        images = images or _parts(turns)
        if not images and not turns:
            raise ValueError("the row has neither conversations nor messages")
        if not images:
            return Skipped("an empty picture field" if PICTURES & row.keys() else WITHOUT)
        if len(images) > 1:
            return Skipped(SEVERAL)
        (image,) = images
        if not isinstance(image, str):
            raise TypeError(f"image={image!r} is no path")
        name, parts = image, tuple(image.split("/"))
        if not UNUSUAL.isdisjoint(parts):
            path = PurePosixPath(image)
            if path.is_absolute() and path.is_relative_to(self.files.images):
                path = path.relative_to(self.files.images)
            name, parts = str(path), path.parts
        if parts[0].startswith("/") or ".." in parts or "://" in image:
            raise ValueError(f"image={image!r} points out of the folder of images")
        kind = row.get("type") or row.get("category") or (parts[0] if len(parts) > 1 else "all")
        questions, faults = self._questions(turns, str(kind), source, where)
        return Found(image_key(name), name, questions, faults)

    def _questions(
        self, turns: Any, kind: str, source: str, where: str
    ) -> tuple[tuple[Question, ...], tuple[Fault, ...]]:
        """Raises ValueError where no turn is answered, TypeError or KeyError where a turn is none."""
        if not isinstance(turns, list):
            raise TypeError("conversations is no list, and neither is messages")
        questions: list[Question] = []
        faults: list[Fault] = []
        question, metric = None, self.files.metric

        for turn in (*turns, END):
            # what nearly all turns are
            name, value = turn.get("from"), turn.get("value")
            side = SIDES.get(name)
            if side is None or type(value) is not str:
                side, value = _said(turn)
            if side is HUMAN:
                if question:
                    faults.append(Fault(source, where, f"there is no answer to {question[:40]!r}"))
                question = value.replace(SHOWN, "").strip()
            elif side is GPT:
                value = value.strip()
                if question and value:
                    questions.append(Question(question, (value,), kind, metric=metric))
                elif question:
                    faults.append(Fault(source, where, f"there is no answer to {question[:40]!r}"))
                elif value and turn is not turns[0]:
                    faults.append(Fault(source, where, f"there is no question to the answer {value[:40]!r}"))
                question = None
        if not questions:
            raise ValueError("no human turn has an answer")
        return tuple(questions), tuple(faults)


def _said(turn: Any) -> tuple[str, str]:
    """Who speaks, one of SIDES' values, and what. Raises ValueError, TypeError or KeyError."""
    name = turn["from"] if "from" in turn else turn["role"]
    side = SIDES.get(name) or SIDES.get(str(name).strip().lower())
    if side is None:
        raise ValueError(f"{name!r} is nobody who speaks; allowed: {', '.join(SIDES)}")
    value = turn["content"] if "content" in turn and "value" not in turn else turn["value"]
    if type(value) is not str:
        if isinstance(value, list):
            value = "\n".join(part.get("text") or "" if isinstance(part, dict) else part for part in value)
        elif side is HUMAN and value is not None:
            raise TypeError(f"{value!r} is no text")
        value = text_of(value)
    return side, value


def _pictures(value: Any) -> list[Any]:
    """The paths that a picture field gives."""
    found = []
    for one in value if isinstance(value, list) else (value,):
        one = (one.get("path") or one.get("url")) if isinstance(one, dict) else one
        if not missing(one):
            found.append(one)
    return found


def _parts(turns: Any) -> list[Any]:
    """The paths in the parts of messages."""
    found: list[Any] = []
    for turn in turns if isinstance(turns, list) else ():
        parts = turn.get("content") if isinstance(turn, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                found += _pictures(part.get("image") or part.get("image_url"))
    return found
