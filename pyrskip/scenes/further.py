"""Further questions of a scene, for training alone: the picture is there already, and so is every answer.

The mix asks about few of the things in a picture, and an answer of the mix says little about where to look.
Asking for every icon's colour, for the name of whatever is the only thing of its colour, how many of any icon
there are, and for the letters and digits of signs teaches a model to find things, to count and to read them,
from the same pixels.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import permutations

import numpy as np

from pyrskip.sample import Question
from pyrskip.scenes import vocabulary
from pyrskip.scenes.layout import beside, on_side
from pyrskip.scenes.plan import MOST, Ask
from pyrskip.scenes.scene import Scene, Thing, put

PAIRS = 4
"""Pairs of icons whose relation is asked for, at most: pairs are many, and each says little."""


def further_questions(scene: Scene, number: int, rng: np.random.Generator) -> tuple[Question, ...]:
    """At most `number` questions, none of them asked already, in whatever words.

    Every type and needed level (or number, where things are counted) that the scene offers is as likely as
    any other (weighted sampling without replacement, Efraimidis & Spirakis 2006): most things are small, and
    of most there is one.
    """
    had = {(question.type, names) for question, names in zip(scene.questions, scene.names, strict=True)}
    asks = [ask for ask in _asks(scene, rng) if (ask.kind, ask.names) not in had]
    found = [put(ask, scene.things, "train", scene.size, rng) for ask in asks]
    cells = [(q.type, q.answers[0] if q.type == "count" else q.level) for q in found]
    alike = Counter(cells)
    keys = [rng.random() ** alike[cell] for cell in cells]
    return tuple(found[i] for i in np.argsort(keys)[::-1][:number])


def _asks(scene: Scene, rng: np.random.Generator) -> Iterator[Ask]:
    icons = {name: thing for name, thing in scene.things.items() if thing.color}
    colors = [thing.color for thing in icons.values()]
    known = {name: thing for name, thing in icons.items() if thing.what in vocabulary.ICONS}
    once = {name: thing for name, thing in known.items() if thing.number == 1}
    groups = {name: thing for name, thing in known.items() if thing.number > 1}
    if (
        groups and once and rng.random() < len(groups) / (MOST - 1)
    ):  # one alone is as likely as any other number
        alone = list(once)[int(rng.integers(len(once)))]
        groups[alone] = once[alone]
    for name, thing in groups.items():
        yield Ask("count", str(thing.number), {"icons": vocabulary.plural(thing.what)}, (name,))
    for name, thing in once.items():
        yield Ask("object", thing.color, {"icon": thing.what}, (name,))
        if colors.count(thing.color) == 1:
            yield Ask("named", thing.what, {"color": thing.color}, (name,))
        for answer, (axis, sign) in vocabulary.SIDES.items():
            if on_side(axis, sign, scene.size)(_middle(thing)[None], {})[0]:
                yield Ask("position", answer, {"icon": thing.what}, (name,))
    if scene.background.color:
        yield Ask("scene_color", scene.background.color, {}, ())
    pairs = list(permutations(once, 2))
    for first, second in (pairs[i] for i in rng.permutation(len(pairs))[:PAIRS]):
        yield from _relations(first, second, scene)
    for name, thing in scene.things.items():
        if not thing.color:
            text, kind = ("number", "digit") if thing.what.isdigit() else ("word", "letter")
            yield Ask(f"sign_{text}", thing.what.lower(), {}, (name,))
            yield Ask(f"first_{kind}", thing.what[0].lower(), {}, (name,))
            yield Ask(f"last_{kind}", thing.what[-1].lower(), {}, (name,))


def _relations(first: str, second: str, scene: Scene) -> Iterator[Ask]:
    """Which side of the second the first is on, if clearly on one."""
    one, other = scene.things[first], scene.things[second]
    for answer, (axis, sign) in vocabulary.SIDES.items():
        if beside(second, axis, sign, scene.size)(_middle(one)[None], {second: _middle(other)})[0]:
            yield Ask("relation", answer, {"icon": one.what, "other": other.what}, (first, second))


def _middle(thing: Thing) -> np.ndarray:
    x0, y0, x1, y1 = thing.box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])
