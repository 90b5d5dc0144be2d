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
from pyrskip.data.storage import is_url, open_file
from pyrskip.errors import UserError
from pyrskip.sample import Question

TURNS, PICTURES, VIDEOS = (
    ("conversations", "messages", "conversation"),
    ("image", "images"),
    ("video", "videos"),
)
HUMAN, GPT = ("human", "user"), ("gpt", "assistant", "bot")
BESIDE = (
    "system",
    "developer",
    "tool",
    "tool_call",
    "tool_response",
    "function",
    "function_call",
    "observation",
)
"""Who else may speak, and neither asks nor answers."""
SHOWN = "<image>"


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
        if not is_url(images) and not Path(images).is_dir():
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
                except (ValueError, TypeError, KeyError) as error:
                    yield Fault(path, place, f"{type(error).__name__}: {error}")

    def image(self, place: str) -> bytes:
        with open_file(f"{self.files.images.rstrip('/')}/{place}") as file:
            return file.read()

    def _row(self, row: dict[str, Any], source: str, where: str) -> Row:
        if not isinstance(row, dict):
            raise TypeError("the row is no object")
        turns = next((row[name] for name in TURNS if not missing(row.get(name))), None)
        if any(row.get(name) for name in VIDEOS):
            return Skipped("a video")
        images = _pictures(row) or _parts(turns)
        if not images:
            return Skipped("an empty picture field" if any(name in row for name in PICTURES) else WITHOUT)
        if len(images) > 1:
            return Skipped(SEVERAL)
        (image,) = images
        if not isinstance(image, str):
            raise TypeError(f"image={image!r} is no path")
        path = PurePosixPath(image)
        if path.is_absolute() and path.is_relative_to(self.files.images):
            path = path.relative_to(self.files.images)
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ValueError(f"image={image!r} points out of the folder of images")
        kind = row.get("type") or row.get("category") or (path.parts[0] if len(path.parts) > 1 else "all")
        questions, faults = self._questions(turns, str(kind), source, where)
        return Found(image_key(str(path)), str(path), questions, faults)

    def _questions(
        self, turns: Any, kind: str, source: str, where: str
    ) -> tuple[tuple[Question, ...], tuple[Fault, ...]]:
        """Raises ValueError where no turn is answered, TypeError or KeyError where a turn is none."""
        if not isinstance(turns, list):
            raise TypeError(f"{TURNS[0]} is no list, and neither is {TURNS[1]}")
        questions: list[Question] = []
        faults: list[Fault] = []
        asked: str | None = None

        for number, turn in enumerate([*turns, None]):
            said, value = ("", "") if turn is None else _said(turn)
            if said in BESIDE:
                continue
            if said in GPT and asked and value:
                questions.append(Question(asked, (value,), kind, metric=self.files.metric))
            elif said in GPT and value and (number > 0 or asked == ""):
                faults.append(Fault(source, where, f"there is no question to the answer {value[:40]!r}"))
            elif asked:
                faults.append(Fault(source, where, f"there is no answer to {asked[:40]!r}"))
            asked = value if said in HUMAN else None
        if not questions:
            raise ValueError("no human turn has an answer")
        return tuple(questions), tuple(faults)


def _said(turn: Any) -> tuple[str, str]:
    """Who speaks, and what. Raises ValueError, TypeError or KeyError."""
    said = str(turn["from"] if "from" in turn else turn["role"]).strip().lower()
    value = turn["content"] if "content" in turn and "value" not in turn else turn["value"]
    if isinstance(value, list):
        value = "\n".join(part.get("text") or "" if isinstance(part, dict) else part for part in value)
    if said in GPT:
        return said, text_of(value)
    if said not in (*HUMAN, *BESIDE):
        raise ValueError(f"{said!r} is nobody who speaks; allowed: {', '.join((*HUMAN, *GPT, *BESIDE))}")
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return said, (value or "").replace(SHOWN, "").strip()


def _pictures(row: dict[str, Any]) -> list[Any]:
    """The paths that a row gives, each once."""
    found: list[Any] = []
    for name in PICTURES:
        value = row.get(name)
        for one in value if isinstance(value, list) else [value]:
            one = one.get("path") or one.get("url") if isinstance(one, dict) else one
            if not missing(one) and one not in found:
                found.append(one)
    return found


def _parts(turns: Any) -> list[Any]:
    """The paths in the parts of messages."""
    found: list[Any] = []
    for turn in turns if isinstance(turns, list) else ():
        parts = turn.get("content") if isinstance(turn, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                shown = part.get("image") or part.get("image_url")
                found += _pictures({"image": shown})
    return found
