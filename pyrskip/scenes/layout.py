"""Where things lie: what answers a question never overlaps another such thing; what answers none lies below,
and may."""

from collections.abc import Callable, Sequence

import numpy as np

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels: the last column and row are not in it."""

Allowed = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]
"""Middles [K, 2] that are tried, and the middles [2] of what lies already by name -> which [K] are
allowed."""

TRIES = 256
COVER = 0.12
"""Largest share of an answering thing's box that a distractor may reach under."""


def place(
    sizes: Sequence[tuple[str, int, int]],
    allowed: dict[str, Allowed],
    canvas: int,
    gap: int,
    rng: np.random.Generator,
) -> dict[str, Box] | None:
    """Boxes that do not overlap, with `gap` pixels between and around them. None where one finds no room.

    sizes: name, width and height; the largest are placed first. allowed: name -> where its middle may be.
    """
    boxes: dict[str, Box] = {}
    middles: dict[str, np.ndarray] = {}
    for name, width, height in sorted(sizes, key=lambda s: -s[1] * s[2]):
        corners = _corners(width, height, canvas, gap, rng)
        if corners is None:
            return None
        middle = corners + np.array([width, height]) / 2
        free = _overlap(corners, width, height, list(boxes.values()), gap).sum(1) == 0
        if name in allowed:
            free &= allowed[name](middle, middles)
        if not free.any():
            return None
        first = int(free.argmax())
        x, y = (int(v) for v in corners[first])
        boxes[name] = (x, y, x + width, y + height)
        middles[name] = middle[first]
    return boxes


def place_below(
    width: int, height: int, answering: Sequence[Box], canvas: int, gap: int, rng: np.random.Generator
) -> Box | None:
    """A distractor's box, which covers little of every answering box and is itself covered by a quarter at
    most."""
    corners = _corners(width, height, canvas, gap, rng)
    if corners is None:
        return None
    overlap = _overlap(corners, width, height, answering, 0)
    areas = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in answering])
    free = (overlap <= COVER * areas).all(1) & (overlap.sum(1) <= 0.25 * width * height)
    if not free.any():
        return None
    x, y = (int(v) for v in corners[int(free.argmax())])
    return x, y, x + width, y + height


def on_side(axis: int, sign: int, canvas: int) -> Allowed:
    """Clearly nearer to one side of the canvas than to the other three."""

    def allowed(middle: np.ndarray, _: dict[str, np.ndarray]) -> np.ndarray:
        offset = middle / canvas - 0.5
        along, across = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
        return np.logical_and(along > 0.17, across < 0.6 * along)

    return allowed


def beside(other: str, axis: int, sign: int, canvas: int) -> Allowed:
    """Clearly on one side of another thing: further along the axis than across it. Allows all while that has
    no place."""

    def allowed(middle: np.ndarray, middles: dict[str, np.ndarray]) -> np.ndarray:
        if other not in middles:
            return np.ones(len(middle), dtype=bool)
        offset = (middle - middles[other]) / canvas
        along, across = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
        clearly: np.ndarray = np.logical_and(along > 0.2, across < along)
        return clearly

    return allowed


def _corners(width: int, height: int, canvas: int, gap: int, rng: np.random.Generator) -> np.ndarray | None:
    """Upper left corners [K, 2] to try, or None where the thing is larger than the canvas."""
    room = np.array([canvas - width - gap, canvas - height - gap])
    if (room < gap).any():
        return None
    return rng.integers(gap, room + 1, (TRIES, 2))


def _overlap(corners: np.ndarray, width: int, height: int, boxes: Sequence[Box], gap: int) -> np.ndarray:
    """Pixels that boxes at these corners share with others, grown by `gap`. [K, 2], N boxes -> [K, N]."""
    others = np.array(boxes).reshape(-1, 4) + np.array([-gap, -gap, gap, gap])
    low = np.maximum(corners[:, None], others[None, :, :2])
    high = np.minimum(corners[:, None] + np.array([width, height]), others[None, :, 2:])
    shared: np.ndarray = (high - low).clip(min=0).prod(-1)
    return shared
