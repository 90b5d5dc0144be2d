"""A pyramid for pictures that nobody has measured yet: its size and its levels."""

from collections.abc import Sequence
from io import BytesIO
from statistics import median

from PIL import Image

from pyrskip.data.reader import ShardDataset

GLANCE = 64
"""Pixels a side of the coarsest level that are still worth a look."""
LARGEST = 512
"""Pixels a side that two cores train on within an hour; a GPU takes more."""
STRIDE = 16
"""Sides of every level are multiples of it: an encoder's map of that stride has whole cells."""
MEASURED = 300
"""Pictures that are measured."""


def propose(sides: Sequence[int], largest: int = LARGEST) -> tuple[int, int]:
    """Size and levels for pictures of these longer sides, in pixels: their median or `largest`, whichever is
    less, and as many levels as leave a glance of GLANCE to 2 GLANCE pixels."""
    wanted = max(min(round(median(sides)), largest), 2 * GLANCE)
    levels = (wanted // GLANCE).bit_length()
    glance = (wanted >> (levels - 1)) // STRIDE * STRIDE
    return glance << (levels - 1), levels


def longer_sides(data: ShardDataset, count: int = MEASURED) -> list[int]:
    """Of pictures that are taken evenly from a split, by their headers alone; what cannot be read is left
    out."""
    rows = range(0, len(data), -(-len(data) // count) or 1)
    sides = []
    for content, _ in data.raw(rows):
        try:
            with Image.open(BytesIO(content if isinstance(content, bytes) else b"")) as picture:
                sides.append(max(picture.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    return sides


def said(sides: Sequence[int]) -> str:
    """The proposal in a line, with the keys to copy."""
    size, levels = propose(sides)
    return (
        f"half of the pictures have a longer side of {round(median(sides))} px or more; proposed, for two "
        f"cores: pyramid.size={size} pyramid.levels={levels}"
    )
