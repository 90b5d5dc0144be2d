"""Claims about further questions and close-ups: they are true, and of the images that flex trains on
alone."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, DataConfig, prepare
from pyrskip.sample import Question
from pyrskip.scenes.closeup import SIDE as CLOSE
from pyrskip.scenes.closeup import closeups
from pyrskip.scenes.further import further_questions
from pyrskip.scenes.scene import Scene
from tests.scenes import clearly, middles
from tests.shards import SMALL_SCENES


@pytest.fixture(scope="module")
def further(some_scenes: list[Scene]) -> list[tuple[Scene, tuple[Question, ...]]]:
    return [(scene, further_questions(scene, 100, np.random.default_rng(0))) for scene in some_scenes]


def test_further_questions_are_of_the_images_that_flex_trains_on_alone(tmp_path: Path) -> None:
    plain, more = tmp_path / "plain", tmp_path / "more"
    prepare(DataConfig(source="scenes", scenes=SMALL_SCENES), plain)
    prepare(DataConfig(source="scenes", scenes=replace(SMALL_SCENES, further=6)), more)
    for split in SPLITS:
        few, many = (ShardDataset(directory, split, 256) for directory in (plain, more))
        assert len(few) == len(many)
        for before, after in zip(few, many, strict=True):  # type: ignore[call-overload]
            assert before.image.equal(after.image)
            assert after.questions[:5] == before.questions
            assert len(after.questions) <= 11
            assert (len(after.questions) > 5) == (split == "train")


def test_further_questions_are_true_and_asked_once(further: list[tuple[Scene, tuple[Question, ...]]]) -> None:
    kinds = Counter(question.type for _, questions in further for question in questions)
    letters = {"first_letter", "last_letter", "first_digit", "last_digit"}
    assert kinds.keys() == {"scene_color", "object", "named", "position", "relation", "count"} | letters
    for scene, questions in further:
        texts = [question.text for question in (*scene.questions, *questions)]
        assert len(set(texts)) == len(texts)
        meant = [(question.type, question.boxes) for question in (*scene.questions, *questions)]
        assert len(set(meant)) == len(meant)
        by_box = {tuple(edge / scene.size for edge in thing.box): thing for thing in scene.things.values()}
        for question in questions:
            answer = question.answers[0]
            if question.type == "scene_color":
                assert answer == scene.background.color
                continue
            shown = [by_box[box] for box in question.boxes]
            assert question.level == min(thing.level for thing in shown)
            same = [t for t in scene.things.values() if shown[0].what == t.what]
            where = middles(scene, shown)
            if question.type in ("object", "named", "position", "relation"):
                assert len(same) == 1 and all(thing.number == 1 for thing in shown)
            if question.type == "object":
                assert answer == shown[0].color and f" {shown[0].what}" in question.text
            elif question.type == "count":
                assert int(answer) == sum(thing.number for thing in same) and shown[0].what in question.text
            elif question.type == "named":
                alike = [t for t in scene.things.values() if t.color and t.color in question.text.split()]
                assert not alike or alike == shown
                assert answer == shown[0].what
            elif question.type == "position":
                assert clearly(answer, where[0])
            elif question.type == "relation":
                assert clearly(answer, *where)
            else:
                assert answer.upper() == shown[0].what[0 if question.type.startswith("first") else -1]


def test_every_needed_level_is_asked_further(some_scenes: list[Scene]) -> None:
    few, every = [], []
    for i, scene in enumerate(some_scenes):
        offered = [q for q in further_questions(scene, 100, np.random.default_rng(0)) if q.type == "object"]
        if {0} < (found := {q.level for q in offered}) and len(found) >= 3:
            every += offered
            draws = (further_questions(scene, 6, np.random.default_rng([i, k])) for k in range(10))
            few += [q for questions in draws for q in questions if q.type == "object"]
    share = [sum(q.level == 0 for q in questions) / len(questions) for questions in (few, every)]
    assert share[0] < 0.35 < share[1]


def test_further_answers_give_nothing_away(further: list[tuple[Scene, tuple[Question, ...]]]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in further:
        for question in questions:
            answers[question.type][question.answers[0]] += 1
    most = {"object": 0.2, "named": 0.12, "position": 0.4, "relation": 0.4, "first_digit": 0.4, "count": 0.4}
    for kind, share in most.items():
        assert answers[kind].most_common(1)[0][1] < share * answers[kind].total(), kind


def test_close_ups_show_whole_things_and_ask_about_them_alone(some_scenes: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    pictures = 0
    for index, scene in enumerate(some_scenes):
        whole = np.asarray(scene.paint())
        for picture, questions in closeups(scene, 3, 8, np.random.default_rng(index)):
            part = np.asarray(picture)
            assert part.shape == (CLOSE, CLOSE, 3) and 1 <= len(questions) <= 8
            places = scene.size - CLOSE + 1
            begins = np.ones((places, places), dtype=bool)
            for i in range(8):
                begins &= (whole[:places, i : i + places] == part[0, i]).all(-1)
            y, x = next(
                (y, x)
                for y, x in np.argwhere(begins).tolist()
                if (whole[y : y + CLOSE, x : x + CLOSE] == part).all()
            )
            inside = []
            for thing in scene.things.values():
                x0, y0, x1, y1 = thing.box
                if x0 < x + CLOSE and x1 > x and y0 < y + CLOSE and y1 > y:
                    assert x0 >= x and y0 >= y and x1 <= x + CLOSE and y1 <= y + CLOSE
                    inside.append((x0 - x, y0 - y, x1 - x, y1 - y))
            for question in questions:
                shown = [tuple(round(edge * CLOSE) for edge in box) for box in question.boxes]
                assert question.type == "scene_color" or set(shown) <= set(inside)
            kinds.update(question.type for question in questions)
            pictures += 1
    assert pictures > len(some_scenes)
    assert {"object", "named", "relation", "sign_number", "sign_word"} <= kinds.keys()


def test_close_ups_are_of_the_images_that_flex_trains_on_alone(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", scenes=replace(SMALL_SCENES, further=6, closeups=2)), tmp_path)
    train, close = (ShardDataset(tmp_path, split, 256) for split in ("train", "close"))
    assert 0 < len(close) <= 2 * len(train)
    assert {key.rsplit("-", 1)[0] for key in close.image_keys} <= set(train.image_keys)
