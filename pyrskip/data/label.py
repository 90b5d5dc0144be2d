"""Answers for questions that nobody has answered: those that a served model gives to the whole picture.

Scores against them are agreement, not truth: a gate learns where less of a picture gives the same answer.
"""

import base64
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from pyrskip.data.faults import Fault
from pyrskip.errors import UserError
from pyrskip.files import write_json
from pyrskip.models.vlm.client import Client, Request
from pyrskip.models.vlm.journal import Journal, remove
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.picture import seen

AT_ONCE = 8
"""Pictures that are held for each request on its way."""


def label(lines: Path, images: Path, out: Path, config: RemoteConfig) -> tuple[int, list[Fault]]:
    """Write `out` in LLaVA's format: the questions of `lines`, each with the model's own answer.

    lines: of JSON, {"image": <below images>, "question": ...} and perhaps a type. Returns how many are
    answered, and a fault for each that is not. A call that was killed goes on where it was when it is made
    again. Raises UserError where the file, the server or the disk fails.
    """
    greeting = config.body((), "?", most=1)
    client = Client(config.url, config.key, config.parallel, config.timeout, config.retries, greeting)
    place = out.with_name(f".{out.name}.replies")
    client.journal = Journal(place)
    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    questions = _questions(lines, images, faults)
    while some := list(islice(questions, AT_ONCE * config.parallel)):
        replies = client.ask(
            [Request(config.body([url], config.words(row["question"])), ()) for _, row, url in some]
        )
        for (number, row, _), reply in zip(some, replies, strict=True):
            if isinstance(reply, UserError) or not reply.text:
                why = str(reply) if isinstance(reply, UserError) else "the answer is empty"
                faults.append(Fault(lines.name, f"line {number}", why))
                continue
            said = [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": reply.text}]
            kind = {"type": row["type"]} if "type" in row else {}
            rows.append({"id": str(number), "image": row["image"], "conversations": said, **kind})
    if not rows:
        first = f": {faults[0]}" if faults else ""
        raise UserError(f"{lines}: none of its {len(faults)} lines is answered{first}")
    write_json(out, rows)
    client.journal.close()
    remove(place)
    place.rmdir()
    return len(rows), faults


def _questions(lines: Path, images: Path, faults: list[Fault]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Number, row and picture of each line that can be asked about; what cannot is added to faults."""
    try:
        content = lines.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{lines} cannot be read: {error}") from error
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["question"], str) or not row["question"].strip():
                raise ValueError("the question is no text")
            url = _url(images / row["image"])
        except (OSError, ValueError, KeyError, TypeError, Image.DecompressionBombError) as error:
            faults.append(Fault(lines.name, f"line {number}", f"{type(error).__name__}: {error}"))
            continue
        yield number, row, url


def _url(path: Path) -> str:
    """A picture file as a person sees it, as a data URL."""
    file = io.BytesIO()
    with Image.open(path) as image:
        seen(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
