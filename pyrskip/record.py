"""What a source yields: an image file's bytes with all its questions."""

import re
from dataclasses import dataclass

from pyrskip.sample import Question


@dataclass(frozen=True)
class Record:
    """An image file's bytes, as they are, with all its questions. key: unique in the source; extension: png,
    jpg or webp.

    further: questions that are asked too where flex trains on the image, and nowhere else. closeups:
    likewise, images of parts of it, which flex may train on first.
    """

    key: str
    image: bytes
    extension: str
    questions: tuple[Question, ...]
    further: tuple[Question, ...] = ()
    closeups: "tuple[Record, ...]" = ()

    def __post_init__(self) -> None:
        # a dot would end the key in a shard, a slash would make it a path, and a tar header holds 100
        # characters
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,90}", self.key), self.key
        assert self.extension in ("png", "jpg", "webp"), self.extension
