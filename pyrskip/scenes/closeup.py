"""Close-ups of a scene, for training alone: small windows with a few whole things in them, as large as in the
scene itself.

To find one of a dozen things among a thousand tokens, by a name that no token says yet, is learned slowly.
Among the few of a window it is learned in minutes on a CPU, and then carries over to whole scenes, where
single things look just the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from PIL import Image

from pyrskip.sample import Question
from pyrskip.scenes.further import further_questions
from pyrskip.scenes.layout import Box
from pyrskip.scenes.scene import Scene, Thing

SIDE = 128
"""Side of a window in pixels: icons that need level 0, 1 or 2 fit, large objects and larger signs do not."""
TRIES = 12
"""Windows that are tried around a thing: most cut something in two. The first that does not is taken, so many
hold one thing alone: its name is learned before anything has to be found."""
MARGIN = 2
OFTEN = 4.0
"""How many times as often as a single icon a sign or a group is what a window is around: reading and counting
take the most examples."""


def closeups(
    scene: Scene, number: int, further: int, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, tuple[Question, ...]]]:
    """At most `number` windows that cut nothing, each with at most `further` questions about what is in
    it."""
    picture, things = scene.paint(), list(scene.things.values())
    share = np.array([1.0 if thing.color and thing.number == 1 else OFTEN for thing in things])
    order = np.argsort(-(rng.random(len(things)) ** (1 / share)))
    windows = (_window(things[i], things, scene.size, rng) for i in order)
    for window in islice((w for w in windows if w is not None), number):
        inside = {
            name: _moved(thing, window) for name, thing in scene.things.items() if _meet(thing.box, window)
        }
        questions = further_questions(
            replace(scene, size=SIDE, things=inside, questions=(), names=()), further, rng
        )
        if questions:
            yield picture.crop(window), questions


def _window(thing: Thing, things: list[Thing], size: int, rng: np.random.Generator) -> Box | None:
    """A window around the thing that cuts nothing; None where none was found."""
    tried = (_around(thing.box, size, rng) for _ in range(TRIES))
    return next((w for w in tried if w is not None and not any(_cut(other.box, w) for other in things)), None)


def _around(box: Box, size: int, rng: np.random.Generator) -> Box | None:
    """A window that holds the box, anywhere in it; None where it does not fit."""
    corner = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        first, last = max(0, high + MARGIN - SIDE), min(size - SIDE, low - MARGIN)
        if first > last:
            return None
        corner.append(int(rng.integers(first, last + 1)))
    x, y = corner
    return x, y, x + SIDE, y + SIDE


def _meet(box: Box, window: Box) -> bool:
    return box[0] < window[2] and box[2] > window[0] and box[1] < window[3] and box[3] > window[1]


def _cut(box: Box, window: Box) -> bool:
    """Whether a part of the box alone is in the window."""
    whole = box[0] >= window[0] and box[1] >= window[1] and box[2] <= window[2] and box[3] <= window[3]
    return _meet(box, window) and not whole


def _moved(thing: Thing, window: Box) -> Thing:
    x0, y0, x1, y1 = thing.box
    return replace(thing, box=(x0 - window[0], y0 - window[1], x1 - window[0], y1 - window[1]))
