"""What a scene will hold and be asked, before anything has a size or a place. One function a question type.

Answers are drawn here, and never given up for want of room, so that no answer is rarer than it should be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pyrskip.scenes import vocabulary
from pyrskip.scenes.backgrounds import Background
from pyrskip.scenes.layout import Allowed, beside, on_side
from pyrskip.scenes.levels import ICON, NUMBER, WORD, levels
from pyrskip.scenes.questions import MIX

LARGE_DISTRACTOR = 0.3
"""How often there is a large object that nothing is asked about, where no other is large."""
SIGN_LEVELS = (0.5, 0.3, 0.2)
"""How often the text of a sign needs level 0, 1, 2: there is no room for larger ones."""
MOST = 5
"""Most things that are to be counted."""
GROUP_DISTRACTOR = 0.75
"""How often there is a group of icons that nothing is asked about."""


@dataclass(frozen=True)
class Wish:
    """Something to be drawn: an icon of a colour, or several such side by side, or a sign where there is no
    colour.

    level: the coarsest that is to show it. A free one is made smaller where there is no room. group: things
    of one size. number: of icons. threshold: pixels that it must have on that level, an icon's longer side or
    a text's height.
    """

    what: str
    color: str
    level: int
    group: str
    threshold: float = ICON
    free: bool = True
    number: int = 1


@dataclass(frozen=True)
class Ask:
    """A question: the answer, what stands in the phrasing's {}, and the names of the wishes that one must see
    to know."""

    kind: str
    answer: str
    words: dict[str, str]
    names: tuple[str, ...]


@dataclass
class Plan:
    """Wishes by name, and where some of them must lie."""

    size: int
    background: Background
    rng: np.random.Generator
    wishes: dict[str, Wish] = field(default_factory=dict)
    allowed: dict[str, Allowed] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.top = levels(self.size) - 1
        self.icons = [str(name) for name in self.rng.permutation(list(vocabulary.ICONS))]
        # the tiny object is asked for by its colour: only a large object may share it
        self.reserved = self.choose(self.background.colors)

    def choose(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def add(self, name: str, level: int, free: bool = True, group: str = "", number: int = 1) -> str:
        """Wish for an icon that the scene does not hold yet, or so many of it, in any colour. Returns the
        icon."""
        colors = [c for c in self.background.colors if level == self.top or c != self.reserved]
        icon = self.icons.pop()
        self.wishes[name] = Wish(icon, self.choose(colors), level, group or name, free=free, number=number)
        return icon

    def any_level(self) -> int:
        """The level of an object that is neither large nor, on purpose, tiny."""
        return int(self.rng.integers(self.top))


def make_plan(kinds: Sequence[str], size: int, background: Background, rng: np.random.Generator) -> Plan:
    """kinds: the types of the scene's questions, in the order that they are asked in."""
    plan = Plan(size, background, rng)
    for kind in MIX:
        if kind in kinds:
            _TYPES[kind](plan)
    if not any(wish.level == plan.top for wish in plan.wishes.values()) and rng.random() < LARGE_DISTRACTOR:
        plan.add("distractor large", plan.top, free=False)
    if rng.random() < GROUP_DISTRACTOR:
        plan.add("distractor group", plan.any_level(), number=2 + int(rng.integers(MOST - 1)))
    plan.asks.sort(key=lambda ask: kinds.index(ask.kind))
    return plan


def _scene_color(plan: Plan) -> None:
    assert plan.background.color is not None
    plan.asks.append(Ask("scene_color", plan.background.color, {}, ()))


def _large_object(plan: Plan) -> None:
    icon = plan.add("large", plan.top, free=False)
    plan.asks.append(Ask("large_object", icon, {}, ("large",)))


def _object(plan: Plan) -> None:
    """Ask about an object of any level; at the coarsest it is the large object, if there is one."""
    level, name = int(plan.rng.integers(plan.top + 1)), "object"
    if level == plan.top and "large" in plan.wishes:
        name = "large"
    else:
        plan.add(name, level, free=level < plan.top)
    wish = plan.wishes[name]
    plan.asks.append(Ask("object", wish.color, {"icon": wish.what}, (name,)))


def _tiny_object(plan: Plan) -> None:
    """Ask about a tiny object beside one or two as tiny ones of another colour."""
    icon = plan.icons.pop()
    plan.wishes["tiny"] = Wish(icon, plan.reserved, 0, "tiny", free=False)
    for number in range(1 + int(plan.rng.integers(2))):
        plan.add(f"distractor tiny {number}", 0, free=False)
    plan.asks.append(Ask("tiny_object", icon, {"color": plan.reserved}, ("tiny",)))


def _count(plan: Plan) -> None:
    """Ask for the number of icons that lie together. Small models never learn to count scattered ones: they
    learn pictures by heart instead."""
    number = 1 + int(plan.rng.integers(MOST))
    icon = plan.add("count", plan.any_level(), number=number)
    plan.asks.append(Ask("count", str(number), {"icons": vocabulary.plural(icon)}, ("count",)))


def _position(plan: Plan) -> None:
    icon, answer = plan.add("position", plan.any_level()), plan.choose(list(vocabulary.SIDES))
    plan.allowed["position"] = on_side(*vocabulary.SIDES[answer], plan.size)
    plan.asks.append(Ask("position", answer, {"icon": icon}, ("position",)))


def _relation(plan: Plan) -> None:
    """On which side of another object one is: either of two may be the one."""
    names, level, answer = ("first", "second"), plan.any_level(), plan.choose(list(vocabulary.SIDES))
    one, other = names if plan.choose(names) == "first" else names[::-1]
    icons = {name: plan.add(name, level, group="relation") for name in names}
    axis, sign = vocabulary.SIDES[answer]
    plan.allowed[one] = beside(other, axis, sign, plan.size)
    plan.allowed[other] = beside(one, axis, -sign, plan.size)
    plan.asks.append(Ask("relation", answer, {"icon": icons[one], "other": icons[other]}, (one, other)))


def _sign_word(plan: Plan) -> None:
    _sign(plan, "word", vocabulary.WORDS, WORD)


def _sign_number(plan: Plan) -> None:
    _sign(plan, "number", vocabulary.NUMBERS, NUMBER)


def _sign(plan: Plan, name: str, texts: Sequence[str], threshold: float) -> None:
    answer, shares = plan.choose(texts), np.array(SIGN_LEVELS[: plan.top])
    level = int(plan.rng.choice(len(shares), p=shares / shares.sum()))
    plan.wishes[name] = Wish(answer.upper(), "", level, name, threshold)
    plan.asks.append(Ask(f"sign_{name}", answer, {}, (name,)))


_TYPES: dict[str, Callable[[Plan], None]] = {
    "scene_color": _scene_color,
    "large_object": _large_object,
    "object": _object,
    "tiny_object": _tiny_object,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "sign_word": _sign_word,
    "sign_number": _sign_number,
}
assert _TYPES.keys() == MIX.keys()
