"""Question types of scenes: how often each is asked, and in which words."""

import numpy as np

from pyrskip.errors import UserError

MIX: dict[str, float] = {
    "scene_color": 0.45,
    "large_object": 0.50,
    "object": 0.85,
    "tiny_object": 0.60,
    "count": 0.50,
    "position": 0.50,
    "relation": 0.50,
    "sign_word": 0.55,
    "sign_number": 0.55,
}
"""Type -> share of the images that ask it, once each. They sum to the questions an image has, five. Fixed
before any gate."""

# Words in {} are icons' names or a colour; they say nothing about the answer. A held-out phrasing is asked
# in the test split alone, and is made of words that the others hold, so that only its order is new.
_COMMON: dict[str, tuple[str, ...]] = {
    "scene_color": (
        "what colour is the background?",
        "what is the colour of the background?",
        "which colour fills the picture?",
        "name the main colour of the scene",
        "what is the main colour behind the objects?",
        "which colour is behind everything?",
        "tell me the colour of the background",
    ),
    "large_object": (
        "what is the large object?",
        "which object is the large one?",
        "name the large object",
        "what is the biggest object in the picture?",
        "which object fills most of the scene?",
        "what large thing do you see?",
        "tell me what the biggest thing is",
    ),
    "object": (
        "what colour is the {icon}?",
        "what is the colour of the {icon}?",
        "which colour does the {icon} have?",
        "name the colour of the {icon}",
        "tell me the colour of the {icon}",
        "the {icon} is of which colour?",
        "there is one {icon}, what colour is it?",
    ),
    "tiny_object": (
        "what is the tiny {color} object?",
        "which tiny object is {color}?",
        "name the tiny {color} object",
        "what is the tiny thing that is {color}?",
        "there is a tiny {color} thing, what is it?",
        "tell me what the tiny {color} object is",
        "which object is tiny and {color}?",
    ),
    "count": (
        "how many {icons} are there?",
        "how many {icons} are in the picture?",
        "count the {icons}",
        "what is the number of {icons}?",
        "tell me how many {icons} there are",
        "how many {icons} does the scene have?",
        "the picture has how many {icons}?",
    ),
    "position": (
        "where is the {icon}: left, right, top or bottom?",
        "on which side of the picture is the {icon}?",
        "is the {icon} on the left, right, top or bottom?",
        "which side is the {icon} on?",
        "tell me on which side the {icon} is",
        "where do you see the {icon}?",
        "name the side that the {icon} is on",
    ),
    # always in this order: which of two is asked about need not be learned twice
    "relation": (
        "the {icon} is on which side of the {other}?",
        "is the {icon} on the left, right, top or bottom of the {other}?",
        "does the {icon} stand on the left, right, top or bottom of the {other}?",
        "tell me whether the {icon} is on the left, right, top or bottom of the {other}",
        "where is the {icon}, seen from the {other}?",
        "tell me where the {icon} is, seen from the {other}",
        "name the side that the {icon} is on, seen from the {other}",
    ),
    "sign_word": (
        "which word is on the sign?",
        "what word does the sign show?",
        "read the word on the sign",
        "what is the word that the sign shows?",
        "which word can you read?",
        "tell me the word on the sign",
        "what word do you see in the picture?",
    ),
    "sign_number": (
        "which number is on the sign?",
        "what number does the sign show?",
        "read the number on the sign",
        "what is the number that the sign shows?",
        "which number can you read?",
        "tell me the number on the sign",
        "what number do you see in the picture?",
    ),
}
# Asked in training alone, beside the mix (pyrskip/scenes/further.py).
_FURTHER: dict[str, tuple[str, ...]] = {
    "named": (
        "what is the {color} object?",
        "which object is {color}?",
        "name the {color} object",
        "what is the thing that is {color}?",
        "there is a {color} thing, what is it?",
        "tell me what the {color} object is",
        "what {color} thing is in the picture?",
    ),
    "first_letter": (
        "which letter does the word on the sign begin with?",
        "what is the first letter of the word on the sign?",
    ),
    "last_letter": (
        "which letter does the word on the sign end with?",
        "what is the last letter of the word on the sign?",
    ),
    "first_digit": (
        "which digit does the number on the sign begin with?",
        "what is the first digit of the number on the sign?",
    ),
    "last_digit": (
        "which digit does the number on the sign end with?",
        "what is the last digit of the number on the sign?",
    ),
}
_HELD_OUT: dict[str, tuple[str, ...]] = {
    "scene_color": ("which colour does the background have?", "name the colour behind everything"),
    "large_object": ("which thing is the biggest?", "name the biggest object in the scene"),
    "object": ("which colour is the {icon}?", "do you see the {icon}? name the colour of it"),
    "tiny_object": ("name the {color} object that is tiny", "which {color} thing is tiny?"),
    "count": ("what number of {icons} is in the scene?", "how many {icons} do you see?"),
    "position": ("name the side of the picture the {icon} is on", "what side of the scene is the {icon} on?"),
    "relation": (
        "on which side is the {icon}, seen from the {other}?",
        "is the {icon}, seen from the {other}, on the left, right, top or bottom?",
    ),
    "sign_word": ("name the word on the sign", "what word can you read in the scene?"),
    "sign_number": ("name the number on the sign", "what number can you read in the scene?"),
}
PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": _COMMON | _FURTHER,
    "test": {kind: (*phrasings, *_HELD_OUT[kind]) for kind, phrasings in _COMMON.items()},
}
"""Split of the source -> type -> phrasings, all equally likely."""


def check_types(types: tuple[str, ...]) -> None:
    """Raises UserError where a type is unknown, twice there, or none is given."""
    for kind in types:
        if kind not in MIX:
            raise UserError(f"data.scenes.types={kind!r} is unknown; allowed: {', '.join(MIX)}")
    if not types or len(set(types)) < len(types):
        raise UserError(
            f"data.scenes.types={list(types)}: allowed: at least one type, each once, of {', '.join(MIX)}"
        )


def draw_types(types: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """The types that one image asks, at least one: each with its share of MIX, and always as many as the
    shares sum to.

    Systematic sampling: in random order, the shares lie end to end and one point in each unit of length is
    hit.
    """
    order = [types[i] for i in rng.permutation(len(types))]
    ends = np.cumsum([MIX[kind] for kind in order])
    ends = ends / min(1.0, ends[-1])
    hits = np.floor(np.concatenate([[0.0], ends]) + rng.random() + 1e-9)
    return [kind for kind, before, after in zip(order, hits[:-1], hits[1:], strict=True) if after > before]


def phrase(kind: str, split: str, rng: np.random.Generator, **words: str) -> str:
    """The text of a question. split: 'train' or 'test'; words: what stands in {}."""
    phrasings = PHRASINGS[split][kind]
    return phrasings[rng.integers(len(phrasings))].format(**words)
