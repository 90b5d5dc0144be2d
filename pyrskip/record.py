"""What a source yields: an image file's bytes with all its questions."""

import re
from dataclasses import dataclass

from pyrskip.picture import SIGNATURES
from pyrskip.sample import Question

KEY = r"[A-Za-z0-9_-]{1,90}"
"""A key as we write it: a dot would end it in a shard, a slash would make it a path, and a tar header holds
100 characters."""


@dataclass(frozen=True)
class Record:
    """An image file's bytes, as they are, with all its questions. key: unique in the source; extension: one
    of SIGNATURES.

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
        assert re.fullmatch(KEY, self.key), self.key
        assert self.extension in SIGNATURES, self.extension
