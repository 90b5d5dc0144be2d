"""The text of annotation files: UTF-8 or UTF-16, with or without a byte order mark.

A byte that is no UTF-8 becomes half a character, which only what reads that very text stumbles over.
"""

import io
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterator
from typing import BinaryIO

HEAD = 64
MARK = "\ufeff"
_ERRORS = {"utf-8": "surrogateescape", "utf-16-le": "surrogatepass", "utf-16-be": "surrogatepass"}


def encoding_of(file: BinaryIO) -> str:
    """'utf-8', 'utf-16-le' or 'utf-16-be', by where the first bytes are zero: those of English keys and
    names are, and no mark or single row can make them so. The file is at its beginning afterwards."""
    head = file.read(HEAD)
    file.seek(0)
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 8 < len(head) or min(even, odd) * 8 > max(even, odd):
        return "utf-8"
    return "utf-16-be" if even > odd else "utf-16-le"


def decoder(encoding: str) -> IncrementalDecoder:
    """Of bytes that come in parts."""
    return getincrementaldecoder(encoding)(_ERRORS[encoding])


def decode(content: bytes, encoding: str) -> str:
    return content.decode(encoding, _ERRORS[encoding])


def lines(file: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    """Each line with its end, and how many bytes it is long. A byte order mark stays in it."""
    if encoding == "utf-8":
        for line in file:
            yield len(line), line.decode(encoding, "surrogateescape")
        return
    text = io.TextIOWrapper(file, encoding, _ERRORS[encoding], newline="\n")
    try:
        for read in text:
            yield len(read.encode(encoding, _ERRORS[encoding])), read
    finally:
        text.detach()
