"""Further questions of a scene, for training alone: the picture is there already, and so is every answer.

The mix asks about few of the things in a picture, and an answer of the mix says little about where to look. Asking for every
icon's colour, for the name of whatever is the only thing of its colour, how many things a colour has, and for the letters and
digits of signs teaches a model to find things, to count and to read them, from the same pixels.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import permutations

import numpy as np

from pyrskip.data.scenes import vocabulary
from pyrskip.data.scenes.layout import beside, on_side
from pyrskip.data.scenes.plan import Ask
from pyrskip.data.scenes.scene import Scene, Thing, put
from pyrskip.sample import Question

PAIRS = 4
"""Pairs of icons whose relation is asked for, at most: pairs are many, and each says little."""
ONCE = {"scene_color", "sign_word", "sign_number"}
"""What is there once at most, so that to ask for it in other words would be to ask again."""


def further_questions(scene: Scene, number: int, rng: np.random.Generator) -> tuple[Question, ...]:
    """At most `number` questions, none of them asked already.

    Every type and needed level (or number, where things are counted) that the scene offers is as likely as any other (weighted
    sampling without replacement, Efraimidis & Spirakis 2006): most things are small, and of most colours there is one.
    """
    asked = {question.text for question in scene.questions}, {question.type for question in scene.questions} & ONCE
    questions = {q.text: q for q in _find(scene, rng) if q.text not in asked[0] and q.type not in asked[1]}
    found = list(questions.values())
    cells = [(q.type, q.answers[0] if q.type == "count_color" else q.level) for q in found]
    alike = Counter(cells)
    keys = [rng.random() ** alike[cell] for cell in cells]
    return tuple(found[i] for i in np.argsort(keys)[::-1][:number])


def _find(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for ask in _asks(scene, rng):
        yield put(ask, scene.things, "train", scene.size, rng)


def _asks(scene: Scene, rng: np.random.Generator) -> Iterator[Ask]:
    icons = {name: thing for name, thing in scene.things.items() if thing.color}
    whats, colors = ([getattr(thing, part) for thing in icons.values()] for part in ("what", "color"))
    once = {n: t for n, t in icons.items() if whats.count(t.what) == 1 and t.what in vocabulary.ICONS}
    for name, thing in once.items():
        yield Ask("object", thing.color, {"icon": thing.what}, (name,))
        if colors.count(thing.color) == 1:
            yield Ask("named", thing.what, {"color": thing.color}, (name,))
        for answer, (axis, sign) in vocabulary.SIDES.items():
            if on_side(axis, sign, scene.size)(_middle(thing)[None], {})[0]:
                yield Ask("position", answer, {"icon": thing.what}, (name,))
    shared = [color for color, number in Counter(colors).items() if number > 1]
    alone = [color for color in dict.fromkeys(colors) if color not in shared]
    for color in shared + alone[:1]:
        names = tuple(name for name, thing in icons.items() if thing.color == color)
        yield Ask("count_color", str(len(names)), {"color": color}, names)
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
