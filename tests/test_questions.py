"""Claims about questions on scenes: the question alone gives nothing away."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from pyrskip import scenes
from pyrskip.scenes.backgrounds import CONTRAST, contrast
from pyrskip.scenes.plan import Plan, make_plan
from pyrskip.scenes.questions import _HELD_OUT, MIX, PHRASINGS, draw_types
from pyrskip.scenes.vocabulary import BACKGROUNDS, COLORS


@pytest.fixture(scope="module")
def asked() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Split -> type -> texts and answers, of scenes that are planned and not drawn: 5,000 for training, 2,000
    for testing."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {
        "train": defaultdict(list),
        "test": defaultdict(list),
    }
    for split, number in (("train", 5000), ("test", 2000)):
        for index in range(number):
            plan, words = planned(split, index)
            for ask in plan.asks:
                found[split][ask.kind].append(
                    (scenes.scene.phrase(ask.kind, split, words, **ask.words), ask.answer)
                )
    return found


def planned(split: str, index: int) -> tuple[Plan, np.random.Generator]:
    what, behind, words = (np.random.default_rng([7, len(split), index, part]) for part in range(3))
    kinds = draw_types(tuple(MIX), what)
    color = list(BACKGROUNDS)[behind.integers(len(BACKGROUNDS))]
    shown = tuple(c for c in COLORS if c != color and contrast(c, (BACKGROUNDS[color],)) >= CONTRAST)
    return make_plan(kinds, 512, scenes.scene.Background(None, color, shown), what), words  # type: ignore[arg-type]


def test_the_mix_is_kept_and_every_image_asks_five() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_types(tuple(MIX), rng) for _ in range(4000)]
    assert {len(kinds) for kinds in drawn} == {5} == {round(sum(MIX.values()), 6)}
    assert all(len(set(kinds)) == 5 for kinds in drawn)
    shares = Counter(kind for kinds in drawn for kind in kinds)
    assert all(abs(shares[kind] / 4000 - share) < 0.03 for kind, share in MIX.items())
    assert {len(draw_types(("object",), rng)) for _ in range(50)} == {1}


def test_the_question_alone_is_worth_no_more_than_the_most_frequent_answer(asked: Any) -> None:
    for kind in MIX:
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for text, answer in asked["train"][kind]:
            answers[text][answer] += 1
        most = Counter(answer for _, answer in asked["train"][kind]).most_common(1)[0][0]
        test = asked["test"][kind]
        majority = sum(answer == most for _, answer in test) / len(test)
        lookup = sum(
            answer == (answers[text].most_common(1)[0][0] if text in answers else most)
            for text, answer in test
        )
        assert abs(lookup / len(test) - majority) < 0.05, kind


def test_answers_of_a_type_are_about_equally_frequent(asked: Any) -> None:
    number = {
        "scene_color": 8,
        "large_object": 24,
        "object": 9,
        "tiny_object": 24,
        "count": 5,
        "position": 4,
        "relation": 4,
    }
    for kind, expected in (number | {"sign_word": 48, "sign_number": 50}).items():
        answers = Counter(answer for _, answer in asked["train"][kind])
        assert len(answers) == expected, kind
        assert answers.most_common(1)[0][1] / answers.total() < 1.5 / expected, kind


def words(text: str) -> list[str]:
    """Punctuation is apart from them, as in the tokenizer."""
    return text.translate(str.maketrans("", "", "?,:")).split()


def test_there_are_many_phrasings_and_held_out_ones_are_for_testing_alone(asked: Any) -> None:
    known = {word for kind in MIX for text in PHRASINGS["train"][kind] for word in words(text)}
    for kind in MIX:
        held_out = set(_HELD_OUT[kind])
        assert len(PHRASINGS["train"][kind]) >= 6 and len(held_out) >= 2
        assert not held_out & {text for phrasings in PHRASINGS["train"].values() for text in phrasings}
        assert {word for text in held_out for word in words(text)} <= known | {"{icon}", "{icons}"}
        plain = {text for text in held_out if "{" not in text}
        texts = {split: {text for text, _ in asked[split][kind]} for split in asked}
        assert not plain & texts["train"] and plain <= texts["test"]


def test_phrasings_of_different_types_differ() -> None:
    every = [text for phrasings in PHRASINGS["test"].values() for text in phrasings]
    assert len(set(every)) == len(every)
