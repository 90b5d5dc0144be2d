"""What tests of scenes share: where things lie."""

from collections.abc import Sequence

from pyrskip.scenes.scene import Scene, Thing
from pyrskip.scenes.vocabulary import SIDES


def middles(scene: Scene, things: Sequence[Thing]) -> list[tuple[float, float]]:
    """In image coordinates, side 1."""
    return [((t.box[0] + t.box[2]) / 2 / scene.size, (t.box[1] + t.box[3]) / 2 / scene.size) for t in things]


def clearly(side: str, middle: tuple[float, float], other: tuple[float, float] = (0.5, 0.5)) -> bool:
    """Whether a middle lies clearly on that side of another, or of the canvas's."""
    axis, sign = SIDES[side]
    return sign * (middle[axis] - other[axis]) > 0.15
