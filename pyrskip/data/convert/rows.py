"""What the rows of annotation files tell, and what their formats share."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pyrskip.data.faults import Fault
from pyrskip.picture import SIGNATURES
from pyrskip.sample import Question


@dataclass(frozen=True)
class Found:
    """Questions on an image, or where an image is, or both. image: its key; place: what the format finds its
    bytes by."""

    image: str
    place: str | None = None
    questions: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for text that no file can hold: JSON may escape halves of characters."""
        for text in (self.place or "", *(t for q in self.questions for t in (q.text, q.type, *q.answers))):
            text.encode()


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


def ordered(answers: Iterable[object]) -> tuple[str, ...]:
    """Answers as text, repeats included, the most frequent first: what comes first is what a model learns to
    write.

    Raises ValueError where there is none, or one is no text or number.
    """
    texts = [_text(answer) for answer in answers]
    if not any(texts):
        raise ValueError("there is no answer")
    texts = [text for text in texts if text]
    counts = Counter(texts)
    return tuple(sorted(texts, key=lambda text: -counts[text]))


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is no answer")
    return str(value).strip()
