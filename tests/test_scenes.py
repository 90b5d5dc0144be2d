"""Claims about scenes: the same everywhere, what is stored is true, and the question alone gives nothing away."""

import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyrskip.data import scenes
from pyrskip.data.inspect import contact_sheet, inspect
from pyrskip.data.reader import ShardDataset
from pyrskip.data.scenes import SceneSource, assets, make_record
from pyrskip.data.scenes.backgrounds import CONTRAST, contrast
from pyrskip.data.scenes.closeup import SIDE as CLOSE
from pyrskip.data.scenes.closeup import closeups
from pyrskip.data.scenes.config import SceneConfig
from pyrskip.data.scenes.further import further_questions
from pyrskip.data.scenes.layout import COVER
from pyrskip.data.scenes.levels import COLOR, GLANCE, ICON, NUMBER, WORD, levels, needed_level
from pyrskip.data.scenes.plan import Plan, make_plan
from pyrskip.data.scenes.questions import _HELD_OUT, MIX, PHRASINGS, draw_types
from pyrskip.data.scenes.scene import Scene, make_scene
from pyrskip.data.scenes.vocabulary import BACKGROUNDS, COLORS, DISTRACTORS, ICONS, POSITIONS, RELATIONS
from pyrskip.data.shards import SPLITS, DataConfig, prepare
from pyrskip.errors import UserError
from pyrskip.sample import Question
from tests.test_data import png, tar, write_data

SMALL = SceneConfig(size=256, train=12, test=4)


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [make_scene(SceneConfig(), "train", index) for index in range(40)]


@pytest.fixture(scope="module")
def asked() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Split -> type -> texts and answers, of scenes that are planned and not drawn: 5,000 for training, 2,000 for testing."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {"train": defaultdict(list), "test": defaultdict(list)}
    for split, number in (("train", 5000), ("test", 2000)):
        for index in range(number):
            plan, words = planned(split, index)
            for ask in plan.asks:
                found[split][ask.kind].append((scenes.scene.phrase(ask.kind, split, words, **ask.words), ask.answer))
    return found


def planned(split: str, index: int) -> tuple[Plan, np.random.Generator]:
    what, behind, words = (np.random.default_rng([7, len(split), index, part]) for part in range(3))
    kinds = draw_types(tuple(MIX), what)
    color = list(BACKGROUNDS)[behind.integers(len(BACKGROUNDS))]
    shown = tuple(c for c in COLORS if c != color and contrast(c, (BACKGROUNDS[color],)) >= CONTRAST)
    return make_plan(kinds, 512, scenes.scene.Background(None, color, shown), what), words  # type: ignore[arg-type]


# the same everywhere


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for workers in (0, 1, 2):
        config = SceneConfig(size=256, train=12, test=4, workers=workers)
        directory = tmp_path / str(workers)
        prepare(DataConfig(source="scenes", samples_per_shard=5, scenes=config), directory)
        written.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == 2 * (2 + 1 + 1 + 1) + 1


def test_an_image_depends_on_seed_split_and_number_alone() -> None:
    again = SceneConfig(size=256, train=3, test=1, workers=5)
    assert make_record(SMALL, "train", 2) == make_record(again, "train", 2)
    different = [(SMALL, "train", 2), (SMALL, "train", 1), (SMALL, "test", 2), (SceneConfig(size=256, seed=1), "train", 2)]
    assert len({make_record(*which).image for which in different}) == 4


def test_only_what_is_kept_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(scenes, "make_record", lambda config, split, index: drawn.append(index))
    list(SceneSource(SMALL).records("train", {"train-000003", "train-000007", "test-000001"}))
    assert drawn == [3, 7]


def test_a_killed_worker_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ProcessPoolExecutor):
        def submit(self, *_: Any) -> Any:  # type: ignore[override]
            raise BrokenProcessPool

    monkeypatch.setattr(scenes, "ProcessPoolExecutor", Broken)
    with pytest.raises(UserError, match=r"workers=2: .* fewer workers"):
        list(SceneSource(SceneConfig(workers=2)).records("train", {"train-000000"}))


def test_ground_truth_is_stored_and_read_back(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", scenes=SMALL), tmp_path)
    read = {sample.key: sample for split in SPLITS for sample in ShardDataset(tmp_path, split, 256)}  # type: ignore[attr-defined]
    assert len(read) == 16
    for split, number in (("train", 12), ("test", 4)):
        for index in range(number):
            record = make_record(SMALL, split, index)
            assert read[record.key].questions == record.questions
            assert read[record.key].image.shape == (3, 256, 256)


@pytest.mark.parametrize(
    "bad", [{"level": -1}, {"level": True}, {"level": "0"}, {"boxes": [[0, 0, 1]]}, {"boxes": [[0, 0, 2, 1]]}]
)
def test_a_wrong_ground_truth_is_a_fault(tmp_path: Path, bad: dict[str, Any]) -> None:
    question = json.dumps({"questions": [{"text": "why?", "answers": ["so"], **bad}]}).encode()
    dataset = ShardDataset(write_data(tmp_path, tar(("a.json", question), ("a.png", png()))), "train", 64)
    assert dataset[0] is None
    assert "ValueError" in dataset.faults[0].reason


# what is stored is true


def test_every_box_holds_the_thing_and_nothing_of_it_lies_outside(some: list[Scene]) -> None:
    for scene in some[:12]:
        whole = np.asarray(scene.paint()).astype(int)
        for name, thing in scene.things.items():
            changed = np.abs(whole - np.asarray(scene.paint(without=name))).sum(-1) > 0
            x0, y0, x1, y1 = thing.box
            assert not np.delete(changed, np.s_[y0:y1], 0).any() and not np.delete(changed, np.s_[x0:x1], 1).any(), name
            if not name.startswith("distractor"):
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                # the outermost pixels may be too faint to change a value
                assert rows[0] <= y0 + 1 and rows[-1] >= y1 - 2 and columns[0] <= x0 + 1 and columns[-1] >= x1 - 2, name
                # an icon is drawn in its own colour
                if thing.color:
                    near = np.abs(whole[y0:y1, x0:x1] - np.array(COLORS[thing.color])).max(-1) <= 30
                    assert near.mean() > 0.1, name


def test_boxes_are_those_of_the_things_that_a_question_is_about(some: list[Scene]) -> None:
    for scene in some:
        for question, names in zip(scene.questions, scene.names, strict=True):
            boxes = [tuple(edge / scene.size for edge in scene.things[name].box) for name in names]
            assert list(question.boxes) == (boxes or [(0, 0, 1, 1)])
            assert question.level == min([scene.things[name].level for name in names] or [3])


def test_answers_are_true_of_what_is_drawn(some: list[Scene]) -> None:
    for scene in some:
        icons = Counter(thing.what for thing in scene.things.values() if thing.color)
        for question, names in zip(scene.questions, scene.names, strict=True):
            answer, shown = question.answers[0], [scene.things[name] for name in names]
            middles = [((t.box[0] + t.box[2]) / 2 / scene.size, (t.box[1] + t.box[3]) / 2 / scene.size) for t in shown]
            if question.type == "scene_color":
                assert answer == scene.background.color
            elif question.type in ("large_object", "tiny_object"):
                assert answer == shown[0].what
            elif question.type == "object":
                assert answer == shown[0].color and icons[shown[0].what] == 1
            elif question.type == "count":
                assert int(answer) == len(shown) == icons[shown[0].what]
            elif question.type == "position":
                axis, sign = POSITIONS[answer]
                assert sign * (middles[0][axis] - 0.5) > 0.15
            elif question.type == "relation":
                axis, sign = next(r for text, r in RELATIONS.items() if f" {text} the " in question.text)
                assert (sign * (middles[0][axis] - middles[1][axis]) > 0) == (answer == "yes")
            else:
                assert answer.upper() == shown[0].what


def test_what_is_tiny_or_large_is_the_only_one(some: list[Scene]) -> None:
    for scene in some:
        things = scene.things
        if "tiny" in things:
            others = [t for name, t in things.items() if name != "tiny" and t.color == things["tiny"].color and t.level < 3]
            assert not others
        assert sum(thing.level == 3 for thing in things.values()) <= 1


def test_what_answers_a_question_is_never_hidden(some: list[Scene]) -> None:
    for scene in some:
        order = list(scene.things)
        answering = [name for name in order if not name.startswith("distractor")]
        for name in answering:
            x0, y0, x1, y1 = scene.things[name].box
            for other in order:
                a0, b0, a1, b1 = scene.things[other].box
                shared = max(0, min(x1, a1) - max(x0, a0)) * max(0, min(y1, b1) - max(y0, b0))
                if other != name and other in answering:
                    assert shared == 0
                elif other != name:
                    assert shared <= COVER * (x1 - x0) * (y1 - y0)
                    assert shared == 0 or order.index(other) < order.index(name)


def test_levels_follow_from_the_thresholds(some: list[Scene]) -> None:
    assert [needed_level(pixels, 10, 512) for pixels in (10, 19.9, 20, 40, 80, 500)] == [0, 0, 1, 2, 3, 3]
    assert [levels(size) for size in (256, 512, 576, 1024, 2048)] == [3, 4, 4, 5, 6]
    assert needed_level(512, COLOR, 512) == 3
    for scene in some:
        for name, thing in scene.things.items():
            threshold = {"word": WORD, "number": NUMBER}.get(name, ICON)
            pixels = thing.patch.pixels / 2**thing.level
            # never on the brink: an eighth above its own threshold at least, an eighth below the next level's at least
            assert 1.12 * threshold <= pixels and (thing.level == 3 or pixels <= 1.75 * threshold), name
            if thing.color:
                # turned, and with its outline, a thing is about as large as its level says
                extent = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])
                assert 0.85 <= extent / thing.patch.pixels <= 1.6


def test_every_level_is_needed_and_of_unstated_sizes_equally_often() -> None:
    found = Counter[int]()
    for index in range(150):
        scene = make_scene(SceneConfig(types=("object", "count", "large_object")), "train", index)
        found.update(q.level for q in scene.questions if q.type == "object" and q.level is not None)
    assert found.keys() == {0, 1, 2, 3}
    assert min(found.values()) > 0.15 * found.total()


@pytest.mark.parametrize("size", [256, 320, 576, 1024])
def test_other_sizes_hold_the_same_questions(size: int) -> None:
    for index in range(4):
        scene = make_scene(SceneConfig(size=size), "test", index)
        assert scene.paint().size == (size, size)
        assert len(scene.questions) == 5
        coarsest = size >> (levels(size) - 1)
        assert GLANCE <= coarsest < 2 * GLANCE
        assert all(q.level is not None and q.level < levels(size) for q in scene.questions)


def test_colours_stand_out_against_every_background() -> None:
    shown = Counter[str]()
    for name, base in BACKGROUNDS.items():
        allowed = [c for c in COLORS if c != name and contrast(c, (base,)) >= CONTRAST]
        assert len(allowed) >= 6
        shown.update(allowed)
    assert min(shown.values()) >= len(BACKGROUNDS) - 3


# further questions


@pytest.fixture(scope="module")
def further(some: list[Scene]) -> list[tuple[Scene, tuple[Question, ...]]]:
    return [(scene, further_questions(scene, 100, np.random.default_rng(0))) for scene in some]


def test_further_questions_are_of_the_images_that_flex_trains_on_alone(tmp_path: Path) -> None:
    plain, more = tmp_path / "plain", tmp_path / "more"
    prepare(DataConfig(source="scenes", scenes=SMALL), plain)
    prepare(DataConfig(source="scenes", scenes=replace(SMALL, further=6)), more)
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
    assert kinds.keys() == {"scene_color", "object", "named", "position", "relation", "beside", "count_color"} | letters
    for scene, questions in further:
        texts = [question.text for question in (*scene.questions, *questions)]
        assert len(set(texts)) == len(texts)
        by_box = {tuple(edge / scene.size for edge in thing.box): thing for thing in scene.things.values()}
        for question in questions:
            answer = question.answers[0]
            if question.type == "scene_color":
                assert answer == scene.background.color
                continue
            shown = [by_box[box] for box in question.boxes]
            assert question.level == min(thing.level for thing in shown)
            same = [t for t in scene.things.values() if shown[0].what == t.what]
            middles = [((t.box[0] + t.box[2]) / 2 / scene.size, (t.box[1] + t.box[3]) / 2 / scene.size) for t in shown]
            if question.type == "object":
                assert answer == shown[0].color and f" {shown[0].what}" in question.text and len(same) == 1
            elif question.type == "count_color":
                alike = [t for t in scene.things.values() if t.color and t.color in question.text.strip("?").split()]
                assert answer == str(len(alike)) and len(shown) == len(alike)
            elif question.type == "named":
                alike = [t for t in scene.things.values() if t.color and t.color in question.text.split()]
                assert not alike or alike == shown
                assert answer == shown[0].what
            elif question.type == "position":
                axis, sign = POSITIONS[answer]
                assert sign * (middles[0][axis] - 0.5) > 0.15
            elif question.type == "beside":
                axis, sign = POSITIONS[answer]
                assert sign * (middles[0][axis] - middles[1][axis]) > 0.15
            elif question.type == "relation":
                axis, sign = next(r for text, r in RELATIONS.items() if f" {text} the " in question.text)
                assert (sign * (middles[0][axis] - middles[1][axis]) > 0) == (answer == "yes")
            else:
                assert answer.upper() == shown[0].what[0 if question.type.startswith("first") else -1]


def test_every_needed_level_is_asked_further(some: list[Scene]) -> None:
    few = [q for i, s in enumerate(some) for q in further_questions(s, 6, np.random.default_rng(i)) if q.type == "object"]
    every = [q for s in some for q in further_questions(s, 100, np.random.default_rng(0)) if q.type == "object"]
    share = [sum(q.level == 0 for q in questions) / len(questions) for questions in (few, every)]
    assert share[0] < 0.35 < share[1]


def test_further_answers_give_nothing_away(further: list[tuple[Scene, tuple[Question, ...]]]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in further:
        for question in questions:
            answers[question.type][question.answers[0]] += 1
    most = {"object": 0.2, "named": 0.12, "position": 0.4, "relation": 0.62, "beside": 0.4, "first_digit": 0.4}
    for kind, share in most.items():
        assert answers[kind].most_common(1)[0][1] < share * answers[kind].total(), kind


def test_close_ups_show_whole_things_and_ask_about_them_alone(some: list[Scene]) -> None:
    kinds: Counter[str] = Counter()
    pictures = 0
    for index, scene in enumerate(some):
        whole = np.asarray(scene.paint())
        for picture, questions in closeups(scene, 3, 8, np.random.default_rng(index)):
            part = np.asarray(picture)
            assert part.shape == (CLOSE, CLOSE, 3) and 1 <= len(questions) <= 8
            x, y = next(
                (x, y)
                for y in range(scene.size - CLOSE + 1)
                for x in range(scene.size - CLOSE + 1)
                if (whole[y, x : x + 4] == part[0, :4]).all() and (whole[y : y + CLOSE, x : x + CLOSE] == part).all()
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
    assert pictures > len(some)
    assert {"object", "named", "relation", "sign_number", "sign_word"} <= kinds.keys()


def test_close_ups_are_of_the_images_that_flex_trains_on_alone(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", scenes=replace(SMALL, further=6, closeups=2)), tmp_path)
    train, close = (ShardDataset(tmp_path, split, 256) for split in ("train", "close"))
    assert 0 < len(close) <= 2 * len(train)
    assert {key.rsplit("-", 1)[0] for key in close.image_keys} <= set(train.image_keys)


# the question alone gives nothing away


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
        lookup = sum(answer == (answers[text].most_common(1)[0][0] if text in answers else most) for text, answer in test)
        assert abs(lookup / len(test) - majority) < 0.05, kind


def test_answers_of_a_type_are_about_equally_frequent(asked: Any) -> None:
    number = {"scene_color": 8, "large_object": 24, "object": 9, "tiny_object": 24, "count": 5, "position": 4, "relation": 2}
    for kind, expected in (number | {"sign_word": 48, "sign_number": 50}).items():
        answers = Counter(answer for _, answer in asked["train"][kind])
        assert len(answers) == expected, kind
        assert answers.most_common(1)[0][1] / answers.total() < 1.5 / expected, kind


def test_there_are_many_phrasings_and_held_out_ones_are_for_testing_alone(asked: Any) -> None:
    known = {word for kind in MIX for text in PHRASINGS["train"][kind] for word in text.strip("?").split()}
    for kind in MIX:
        held_out = set(_HELD_OUT[kind])
        assert len(PHRASINGS["train"][kind]) >= 6 and len(held_out) >= 2
        assert not held_out & {text for phrasings in PHRASINGS["train"].values() for text in phrasings}
        assert {word for text in held_out for word in text.strip("?").replace("?", "").split()} <= known | {"{icon}", "{icons}"}
        plain = {text for text in held_out if "{" not in text}
        texts = {split: {text for text, _ in asked[split][kind]} for split in asked}
        assert not plain & texts["train"] and plain <= texts["test"]


def test_phrasings_of_different_types_differ() -> None:
    every = [text for phrasings in PHRASINGS["test"].values() for text in phrasings]
    assert len(set(every)) == len(every)


# bad input


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"size": 500}, "data.scenes.size=500 .*multiples of 64 .*such as 512"),
        ({"size": 4096}, "data.scenes.size=4096 .*to 2048"),
        ({"train": 0}, "data.scenes.train=0 .*at least 1"),
        ({"workers": -1}, "data.scenes.workers=-1 .*at least 0"),
        ({"seed": -1}, "data.scenes.seed=-1"),
        ({"further": -1}, "data.scenes.further=-1 .*at least 0"),
        ({"closeups": 2}, "data.scenes.closeups=2 have none but further questions; allowed: data.scenes.further"),
        ({"types": ("object", "mood")}, "data.scenes.types='mood' .*scene_color, large_object"),
        ({"types": ()}, "data.scenes.types=.*at least one"),
        ({"types": ("count", "count")}, "data.scenes.types=.*each once"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key_where_scenes_are_made(bad: dict[str, Any], says: str) -> None:
    DataConfig(source="easy_vqa", scenes=SceneConfig(**bad))
    with pytest.raises(UserError, match=says) as caught:
        DataConfig(source="scenes", scenes=SceneConfig(**bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["fontawesomefree", "matplotlib", "skimage"])
@pytest.mark.parametrize("whole", [True, False], ids=["package", "file"])
def test_missing_fonts_and_photographs_are_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, whole: bool
) -> None:
    def find(name: str) -> ModuleSpec | None:
        found = real(name)
        if name == missing and found is not None:
            found = None if whole else ModuleSpec(name, None, is_package=True)
        return found

    real = assets.find_spec
    monkeypatch.setattr(assets, "find_spec", find)
    assets.load_assets.cache_clear()
    with pytest.raises(UserError, match=rf"{missing}, which is not there: pip install 'pyrskip\[scenes\]'"):
        prepare(DataConfig(source="scenes", scenes=SMALL), tmp_path)
    assert not list(tmp_path.iterdir())


def test_icons_are_the_code_points_of_their_names() -> None:
    metadata = Path(assets.find_spec("fontawesomefree").submodule_search_locations[0])  # type: ignore[union-attr, index]
    icons = json.loads((metadata / "static/fontawesomefree/metadata/icons.json").read_bytes())
    long = {"apple": "apple-whole", "boat": "sailboat", "car": "car-side"}
    for name, code in (ICONS | DISTRACTORS).items():
        found = icons[long.get(name, name)]
        assert int(found["unicode"], 16) == ord(code) and "solid" in found["free"], name


# inspect


def test_a_report_counts_everything_and_names_what_is_broken(tmp_path: Path) -> None:
    index = prepare(DataConfig(source="scenes", scenes=SMALL), tmp_path)
    report = inspect(tmp_path)
    assert {split: questions for split, (_, questions) in report.splits.items()} == {
        split: sum(shard.questions for shard in shards) for split, shards in index.splits.items()
    }
    assert report.sizes == {(256, 256): 16}
    assert sum(found.questions for found in report.types.values()) == 80
    assert all(sum(found.levels.values()) == found.questions for found in report.types.values())
    assert not report.faults
    assert "256 x 256 (16)" in str(report) and "broken  0" in str(report)

    shard = tmp_path / index.splits["test"][0].shard
    os.truncate(shard, shard.stat().st_size // 2)
    report = inspect(tmp_path)
    assert report.splits["test"][0] < 4
    assert "test-000000.tar" in str(report).split("broken")[1]


def test_a_contact_sheet_shows_images_of_any_source(tiny_data: Path, tmp_path: Path) -> None:
    contact_sheet(tiny_data, tmp_path / "new" / "sheet.png", "val", images=5, side=120)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width == 4 * 120
    assert "unknown" in str(inspect(tiny_data))


def test_a_split_without_images_has_no_contact_sheet(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", gate_fraction=0.01, scenes=SMALL), tmp_path)
    with pytest.raises(UserError, match="no image of the split gate"):
        contact_sheet(tmp_path, tmp_path / "sheet.png", "gate")
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(tmp_path, tmp_path / "index.json" / "sheet.png")
