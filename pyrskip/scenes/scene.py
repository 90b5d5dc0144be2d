"""One scene, a function of seed, split and number: what was planned gets sizes and places, distractors are
added."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pyrskip.sample import Question
from pyrskip.scenes import vocabulary
from pyrskip.scenes.backgrounds import Background, colored, photograph
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.drawing import PITCH, Patch, draw_icon, draw_sign, lay_together
from pyrskip.scenes.layout import Box, place, place_below
from pyrskip.scenes.levels import CLEAR, COLOR, ICON, LARGE, needed_level
from pyrskip.scenes.plan import Ask, Plan, Wish, make_plan
from pyrskip.scenes.questions import draw_types, phrase

SPLITS = {"train": 0, "test": 1}
ROOM, LESS, ATTEMPTS = 0.5, 0.93, 60
"""Share of the canvas that things may fill, and how much less of it each time that there turned out to be no
place."""
PLAIN = 0.4
"""Share of plain photographs among the backgrounds that are not asked about."""
DISTRACTORS = 4
"""Most things that lie below the others, beside those that a question type wishes for."""


@dataclass(frozen=True)
class Thing:
    """Something on the background. what: an icon or the text of a sign; level: the coarsest that shows it;
    number: of icons that lie together."""

    what: str
    color: str
    box: Box
    patch: Patch
    level: int
    number: int = 1


@dataclass(frozen=True)
class Scene:
    """things: bottom first, by name: 'object', 'count 2', ...; whatever starts with 'distractor' answers
    nothing.

    names: of each question, what one must see to know the answer; none where that is the background.
    """

    size: int
    background: Background
    things: dict[str, Thing]
    questions: tuple[Question, ...]
    names: tuple[tuple[str, ...], ...]

    def paint(self, without: str | None = None) -> Image.Image:
        """The picture, or what it would be without one of its things."""
        picture = self.background.image.copy()
        for name, thing in self.things.items():
            if name != without:
                picture.paste(thing.patch.image, thing.box[:2], thing.patch.image)
        return picture


def make_scene(config: SceneConfig, split: str, index: int) -> Scene:
    """The scene of this number. split: 'train' or 'test'."""
    seeds = np.random.SeedSequence([config.seed, SPLITS[split], index]).spawn(4)
    what, where, behind, words = (np.random.Generator(np.random.PCG64(seed)) for seed in seeds)
    kinds = draw_types(config.types, what)
    plain = "scene_color" not in kinds and behind.random() < PLAIN
    background = (photograph if plain else colored)(config.size, behind)
    plan = make_plan(kinds, config.size, background, what)
    things = _arrange(plan, where)
    things = {**_distractors(plan, things, where), **things}
    questions = tuple(put(ask, things, split, config.size, words) for ask in plan.asks)
    return Scene(config.size, background, things, questions, tuple(ask.names for ask in plan.asks))


def put(ask: Ask, things: dict[str, Thing], split: str, size: int, rng: np.random.Generator) -> Question:
    """A question in words, with its ground truth. split: 'train' or 'test', for its phrasings."""
    shown_by = [things[name] for name in ask.names]
    boxes = [thing.box for thing in shown_by] or [(0, 0, size, size)]
    level = min([thing.level for thing in shown_by] or [needed_level(size, COLOR, size)])
    fractions = tuple((x0 / size, y0 / size, x1 / size, y1 / size) for x0, y0, x1, y1 in boxes)
    return Question(phrase(ask.kind, split, rng, **ask.words), (ask.answer,), ask.kind, level, fractions)


def _arrange(plan: Plan, rng: np.random.Generator) -> dict[str, Thing]:
    """Sizes and places for all that is wished for. Tried with ever less room, until everything free is
    tiny."""
    gap = max(4, plan.size // 100)
    drawn: dict[tuple[str, int], Patch] = {}
    shares: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        wishes = _afford(plan, ROOM * LESS**attempt, rng)
        for name, wish in wishes.items():
            if (name, wish.level) not in drawn:
                drawn[name, wish.level] = _draw(wish, plan.top, shares, rng)
        patches = {name: drawn[name, wish.level] for name, wish in wishes.items()}
        sizes = [(name, *patch.image.size) for name, patch in patches.items()]
        boxes = place(sizes, plan.allowed, plan.size, gap, rng)
        if boxes is not None:
            return {name: _thing(wishes[name], boxes[name], patches[name], plan.size) for name in wishes}
    raise AssertionError(f"no place for {sorted(plan.wishes)}")


def _thing(wish: Wish, box: Box, patch: Patch, size: int) -> Thing:
    level = needed_level(patch.pixels, wish.threshold, size)
    assert level == wish.level, (wish, patch.pixels)
    return Thing(wish.what, wish.color, box, patch, level, wish.number)


def _afford(plan: Plan, room: float, rng: np.random.Generator) -> dict[str, Wish]:
    """The wishes, the free groups of them at levels that leave room for all: in random order, so that none is
    favoured."""
    left = room * plan.size**2 - sum(
        _area(wish, wish.level, plan.top) for wish in plan.wishes.values() if not wish.free
    )
    groups = sorted({wish.group for wish in plan.wishes.values() if wish.free})
    chosen: dict[str, int] = {}
    for group in (groups[i] for i in rng.permutation(len(groups))):
        members = [wish for wish in plan.wishes.values() if wish.group == group]
        level = members[0].level
        while level and sum(_area(wish, level, plan.top) for wish in members) > left:
            level -= 1
        left -= sum(_area(wish, level, plan.top) for wish in members)
        chosen[group] = level
    return {
        name: replace(wish, level=chosen.get(wish.group, wish.level)) for name, wish in plan.wishes.items()
    }


def _area(wish: Wish, level: int, top: int) -> float:
    """About how many pixels something covers when this is the coarsest level that shows it."""
    pixels = sum(LARGE if level == top else CLEAR) / 2 * wish.threshold * 2**level
    if not wish.color:
        return float(pixels**2) * (len(wish.what) + 1.2) * 2.2
    return float(pixels**2) * (wish.number * PITCH**2 if wish.number > 1 else 1.0)


def _draw(wish: Wish, top: int, shares: dict[str, float], rng: np.random.Generator) -> Patch:
    """At a size that its level and nothing coarser shows. shares: of each group, sizes over the level's
    threshold."""
    low, high = LARGE if wish.level == top else CLEAR
    share = shares.setdefault(wish.group, rng.uniform(low + 0.04, high - 0.04)) + rng.uniform(-0.04, 0.04)
    pixels = share * wish.threshold * 2**wish.level
    if wish.color:
        return lay_together([_draw_icon(wish.what, wish.color, pixels, rng) for _ in range(wish.number)])
    tilt = rng.normal(0, 2) if rng.random() < 0.8 else rng.uniform(-12, 12)
    return draw_sign(wish.what, pixels, tilt, rng)


def _draw_icon(icon: str, color: str, pixels: float, rng: np.random.Generator) -> Patch:
    return draw_icon(icon, color, pixels, rng.uniform(-20, 20), bool(rng.random() < 0.5), rng)


def _distractors(plan: Plan, things: dict[str, Thing], rng: np.random.Generator) -> dict[str, Thing]:
    """Icons of any free size that nothing is asked about, each below all that was there before."""
    names = [*vocabulary.DISTRACTORS, *plan.icons]
    colors = [color for color in plan.background.colors if color != plan.reserved]
    taken = [thing.box for thing in things.values()]
    found: dict[str, Thing] = {}
    for number in range(rng.integers(DISTRACTORS + 1)):
        icon, color = names.pop(rng.integers(len(names))), colors[rng.integers(len(colors))]
        pixels = ICON * 2 ** rng.integers(plan.top) * rng.uniform(*CLEAR)
        patch = _draw_icon(icon, color, pixels, rng)
        box = place_below(*patch.image.size, taken, plan.size, max(4, plan.size // 100), rng)
        if box is not None:
            thing = Thing(icon, color, box, patch, needed_level(patch.pixels, ICON, plan.size))
            found = {f"distractor {number}": thing, **found}
            taken.append(box)
    return found
