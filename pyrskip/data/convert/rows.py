"""What the rows of annotation files tell, and what their formats share."""

import hashlib
import re
from dataclasses import dataclass

from pyrskip.data.faults import Fault
from pyrskip.picture import SIGNATURES
from pyrskip.sample import Question


@dataclass(frozen=True)
class Found:
    """Questions on an image, or where an image is, or both. image: its key; place: what the format finds its
    bytes by; faults: what else the row asks, and cannot be used."""

    image: str
    place: str | None = None
    questions: tuple[Question, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for text that no file can hold: JSON may escape halves of characters, and bytes
        may be no UTF-8."""
        texts: list[str] = []
        for question in self.questions:
            texts += (question.text, *question.answers, question.type)
        try:
            "\n".join((*texts, self.place or "")).encode()
        except UnicodeEncodeError as error:
            shown = error.object[max(0, error.start - 20) : error.end + 20]
            raise ValueError(f"{shown!r} holds bytes that are no UTF-8, or surrogates") from error


WITHOUT, SEVERAL = "text only", "several images"
"""Reasons that formats share."""


@dataclass(frozen=True)
class Skipped:
    """A row that is whole, but nothing for a gate to learn from. Counted by reason."""

    reason: str


Row = Found | Skipped | Fault


def image_key(name: str) -> str:
    """A record's key for an image of that name: readable, and as different as the names are."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", re.sub(r"\.[^./]*$", "", name)).strip("-")[-60:]
    return f"{stem or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def content_key(content: bytes) -> str:
    """A record's key for an embedded image: the same bytes are the same image, wherever they are."""
    return hashlib.sha256(content).hexdigest()[:24]


def image_extension(content: bytes) -> str:
    """Told from the bytes, whatever the name says. Raises ValueError for what no shard may hold."""
    if not content:
        raise ValueError("the image has no bytes")
    for extension, signature in SIGNATURES.items():
        if content.startswith(signature):
            return extension
    raise ValueError(f"the image is no {', '.join([*SIGNATURES][:-1])} or {[*SIGNATURES][-1]}")
