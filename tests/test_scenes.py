"""Claims about scenes: the same everywhere, and what is stored is true."""

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.measure import label

from pyrskip import scenes
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, DataConfig, prepare
from pyrskip.errors import UserError
from pyrskip.scenes import SceneSource, assets, make_record
from pyrskip.scenes.backgrounds import CONTRAST, contrast
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.drawing import PITCH, ROW, draw_icon, lay_together
from pyrskip.scenes.layout import COVER
from pyrskip.scenes.levels import COLOR, GLANCE, ICON, NUMBER, WORD, levels, needed_level
from pyrskip.scenes.scene import Scene, make_scene
from pyrskip.scenes.vocabulary import BACKGROUNDS, COLORS, DISTRACTORS, ICONS
from tests.scenes import clearly, middles
from tests.shards import SMALL_SCENES, png, tar, write_data

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
    assert make_record(SMALL_SCENES, "train", 2) == make_record(again, "train", 2)
    different = [
        (SMALL_SCENES, "train", 2),
        (SMALL_SCENES, "train", 1),
        (SMALL_SCENES, "test", 2),
        (SceneConfig(size=256, seed=1), "train", 2),
    ]
    assert len({make_record(*which).image for which in different}) == 4


def test_only_what_is_kept_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(scenes, "make_record", lambda config, split, index: drawn.append(index))
    list(SceneSource(SMALL_SCENES).records("train", {"train-000003", "train-000007", "test-000001"}))
    assert drawn == [3, 7]


def test_a_killed_worker_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ProcessPoolExecutor):
        def submit(self, *_: Any) -> Any:  # type: ignore[override]
            raise BrokenProcessPool

    monkeypatch.setattr(scenes, "ProcessPoolExecutor", Broken)
    with pytest.raises(UserError, match=r"workers=2: .* fewer workers"):
        list(SceneSource(SceneConfig(workers=2)).records("train", {"train-000000"}))


def test_ground_truth_is_stored_and_read_back(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", scenes=SMALL_SCENES), tmp_path)
    read = {sample.key: sample for split in SPLITS for sample in ShardDataset(tmp_path, split, 256)}  # type: ignore[attr-defined]
    assert len(read) == 16
    for split, number in (("train", 12), ("test", 4)):
        for index in range(number):
            record = make_record(SMALL_SCENES, split, index)
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


def test_every_box_holds_the_thing_and_nothing_of_it_lies_outside(some_scenes: list[Scene]) -> None:
    for scene in some_scenes[:12]:
        whole = np.asarray(scene.paint()).astype(int)
        for name, thing in scene.things.items():
            changed = np.abs(whole - np.asarray(scene.paint(without=name))).sum(-1) > 0
            x0, y0, x1, y1 = thing.box
            assert (
                not np.delete(changed, np.s_[y0:y1], 0).any()
                and not np.delete(changed, np.s_[x0:x1], 1).any()
            ), name
            if not name.startswith("distractor"):
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                # the outermost pixels may be too faint to change a value
                assert (
                    rows[0] <= y0 + 1
                    and rows[-1] >= y1 - 2
                    and columns[0] <= x0 + 1
                    and columns[-1] >= x1 - 2
                ), name
                # an icon is drawn in its own colour
                if thing.color:
                    near = np.abs(whole[y0:y1, x0:x1] - np.array(COLORS[thing.color])).max(-1) <= 30
                    assert near.mean() > 0.1, name


def test_boxes_are_those_of_the_things_that_a_question_is_about(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        for question, names in zip(scene.questions, scene.names, strict=True):
            boxes = [tuple(edge / scene.size for edge in scene.things[name].box) for name in names]
            assert list(question.boxes) == (boxes or [(0, 0, 1, 1)])
            assert question.level == min([scene.things[name].level for name in names] or [3])


def test_answers_are_true_of_what_is_drawn(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        icons = Counter(
            thing.what for thing in scene.things.values() if thing.color for _ in range(thing.number)
        )
        for question, names in zip(scene.questions, scene.names, strict=True):
            answer, shown = question.answers[0], [scene.things[name] for name in names]
            where = middles(scene, shown)
            if question.type == "scene_color":
                assert answer == scene.background.color
            elif question.type in ("large_object", "tiny_object"):
                assert answer == shown[0].what
            elif question.type == "object":
                assert answer == shown[0].color and icons[shown[0].what] == 1
            elif question.type == "count":
                assert int(answer) == icons[shown[0].what] and len(shown) == 1
            elif question.type == "position":
                assert clearly(answer, where[0])
            elif question.type == "relation":
                assert clearly(answer, *where)
            else:
                assert answer.upper() == shown[0].what


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_group_shows_so_many_whole_icons(number: int) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        icons = [draw_icon("star", "red", 30, rng.uniform(-20, 20), False, rng) for _ in range(number)]
        group = lay_together(icons)
        regions, found = label(np.asarray(group.image)[..., 3] > 0, return_num=True)
        assert found == number
        visible = [int((np.asarray(icon.image)[..., 3] > 0).sum()) for icon in icons]
        assert sorted(np.bincount(regions.flat)[1:]) == sorted(visible)
        assert group.pixels == min(icon.pixels for icon in icons)


def test_what_is_tiny_or_large_is_the_only_one(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
        things = scene.things
        if "tiny" in things:
            others = [
                t
                for name, t in things.items()
                if name != "tiny" and t.color == things["tiny"].color and t.level < 3
            ]
            assert not others
        assert sum(thing.level == 3 for thing in things.values()) <= 1


def test_what_answers_a_question_is_never_hidden(some_scenes: list[Scene]) -> None:
    for scene in some_scenes:
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


def test_levels_follow_from_the_thresholds(some_scenes: list[Scene]) -> None:
    assert [needed_level(pixels, 10, 512) for pixels in (10, 19.9, 20, 40, 80, 500)] == [0, 0, 1, 2, 3, 3]
    assert [levels(size) for size in (256, 512, 576, 1024, 2048)] == [3, 4, 4, 5, 6]
    assert needed_level(512, COLOR, 512) == 3
    for scene in some_scenes:
        for name, thing in scene.things.items():
            threshold = {"word": WORD, "number": NUMBER}.get(name, ICON)
            pixels = thing.patch.pixels / 2**thing.level
            # never on the brink: an eighth above its own threshold at least, an eighth below the next level's
            # at least
            assert 1.12 * threshold <= pixels and (thing.level == 3 or pixels <= 1.75 * threshold), name
            if thing.color:
                # turned, and with its outline, a thing is about as large as its level says, and so is each of
                # a group
                x0, y0, x1, y1 = thing.box
                columns = min(ROW, thing.number)
                extent = max((x1 - x0) / columns, (y1 - y0) / -(-thing.number // columns))
                assert 0.85 <= extent / thing.patch.pixels <= (1.6 if thing.number == 1 else 1.6 * PITCH)


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
        (
            {"closeups": 2},
            "data.scenes.closeups=2 have none but further questions; allowed: data.scenes.further",
        ),
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
        prepare(DataConfig(source="scenes", scenes=SMALL_SCENES), tmp_path)
    assert not list(tmp_path.iterdir())


def test_icons_are_the_code_points_of_their_names() -> None:
    metadata = Path(assets.find_spec("fontawesomefree").submodule_search_locations[0])  # type: ignore[union-attr, index]
    icons = json.loads((metadata / "static/fontawesomefree/metadata/icons.json").read_bytes())
    long = {"apple": "apple-whole", "boat": "sailboat", "car": "car-side"}
    for name, code in (ICONS | DISTRACTORS).items():
        found = icons[long.get(name, name)]
        assert int(found["unicode"], 16) == ord(code) and "solid" in found["free"], name
