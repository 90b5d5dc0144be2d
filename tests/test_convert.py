"""Claims about converters: every question of every image that can be read is in one split, once, on the image's own bytes."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrskip.data.convert import conversion
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.convert.conversion import convert
from pyrskip.data.convert.rows import Found, image_extension, image_key, ordered
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, DataConfig
from pyrskip.errors import UserError
from pyrskip.sample import Question
from tests.own_data import embedded, encoded, llava_row, picture, turns, write_llava, write_parquet, write_tsv

pytest.importorskip("pyarrow")
pytest.importorskip("ijson")

Asked = tuple[str, tuple[str, ...], str]


def config(source: str, path: Path, **files: Any) -> DataConfig:
    return DataConfig(
        source=source, samples_per_shard=4, max_bad_fraction=0.9, files=FilesConfig(path=str(path), workers=0, **files)
    )


def contents(directory: Path) -> dict[str, dict[bytes, list[Asked]]]:
    """Split -> image's bytes -> its questions. Fails where an image is there twice."""
    found: dict[str, dict[bytes, list[Asked]]] = {}
    for split in SPLITS:
        data = ShardDataset(directory, split, 64)
        assert not data.faults
        found[split] = {}
        for (image, _), questions in zip(data.raw(range(len(data))), data.questions(), strict=True):
            assert isinstance(image, bytes) and image not in found[split]
            found[split][image] = [(q.text, q.answers, q.type) for q in questions or ()]
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    return found


def together(directory: Path) -> dict[bytes, Counter[Asked]]:
    return {image: Counter(asked) for split in contents(directory).values() for image, asked in split.items()}


def report(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / "conversion.json").read_text())
    return result


# what is found


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=8, max_size=30), seed=st.integers(0, 3))
def test_llava_every_answered_turn_is_a_question_on_its_image(rows: list[tuple[int, int]], seed: int, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    rows += [(20 + i, 1) for i in range(8)]
    expected: dict[bytes, Counter[Asked]] = {}
    written: list[dict[str, Any]] = []
    for number, (image, count) in enumerate(rows):
        asked = [(f"row {number} turn {turn}?", f"answer {turn}") for turn in range(count)]
        written.append({"id": number, "image": f"coco/{image}.png", "conversations": turns(*asked)})
        if count:
            expected.setdefault(picture(image), Counter()).update((q, (a,), "coco") for q, a in asked)
    path = write_llava(tmp_path, rows=written)
    for image, _ in rows:
        (tmp_path / "images/coco" / f"{image}.png").write_bytes(picture(image))
    wanted = replace(config("llava", path, images=str(tmp_path / "images")), seed=seed)
    convert(wanted, tmp_path / "out")
    assert together(tmp_path / "out") == expected
    told = report(tmp_path / "out")
    assert told["rows"] == len(rows) + 1
    assert told["skipped"] == {"text only": 1}
    assert len(told["broken"]) == sum(count == 0 for _, count in rows)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.lists(st.integers(0, 8), min_size=8, max_size=24), group=st.integers(1, 9))
def test_parquet_rows_of_one_image_are_questions_on_it(images: list[int], group: int, tmp_path: Path) -> None:
    images += range(10, 18)
    rows = [
        {"question_id": str(i), "question": f"q{i}?", "answers": ["b", "a", "a"], "image": embedded(picture(image, "JPEG"))}
        for i, image in enumerate(images)
    ]
    path = write_parquet(tmp_path / "text-vqa.parquet", rows, group)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert(config("parquet", path, metric="vqa"), tmp_path / "out")
    expected: dict[bytes, Counter[Asked]] = {}
    for i, image in enumerate(images):
        expected.setdefault(picture(image, "JPEG"), Counter())[(f"q{i}?", ("a", "a", "b"), "all")] += 1
    assert together(tmp_path / "out") == expected
    questions = next(ShardDataset(tmp_path / "out", "train", 64).questions())
    assert questions is not None and questions[0].metric == "vqa"


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(owners=st.lists(st.integers(0, 30), min_size=12, max_size=30))
def test_tsv_rows_refer_to_the_image_of_an_earlier_row(owners: list[int], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    expected: dict[bytes, Counter[Asked]] = {}
    for i, owner in enumerate([*range(6), *owners]):
        of = owner if owner < i and i >= 6 and rows[owner]["own"] else i
        own = of == i
        image = picture(i) if own else picture(of)
        rows.append({"index": i, "image": encoded(image) if own else of, "question": f'say "{i}"?\nNow.', "own": own})
        rows[-1] |= {"A": "red", "B": "blue", "C": "", "answer": "B", "category": "colour", "hint": "Look." if i % 2 else ""}
        text = ("Look.\n" if i % 2 else "") + f'say "{i}"?\nNow.\nA. red\nB. blue'
        expected.setdefault(image, Counter())[(text, ("B",), "colour")] += 1
    path = write_tsv(tmp_path / "bench.tsv", rows)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    convert(config("tsv", path, metric="choice"), tmp_path / "out")
    assert together(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            # DocVQA: several accepted answers, several types
            {
                "questionId": "1",
                "question": "who?",
                "question_types": ["layout", "form"],
                "docId": 5,
                "answers": ["Ann", "ann"],
            },
            ("who?", ("Ann", "ann"), "layout"),
            id="DocVQA",
        ),
        pytest.param(
            {"id": "0", "question_id": "1", "question": "Is there a cat?", "answer": "yes", "category": "random"},
            ("Is there a cat?", ("yes",), "random"),
            id="POPE",
        ),
        pytest.param(
            {
                "question_id": "code/1.png",
                "question": "Is it Python? Please answer yes or no.",
                "answer": "No",
                "category": "code",
            },
            ("Is it Python? Please answer yes or no.", ("No",), "code"),
            id="MME",
        ),
        pytest.param(
            {"question": "how much?", "answer": "12.5", "type": "human_test"},
            ("how much?", ("12.5",), "human_test"),
            id="ChartQA",
        ),
        pytest.param(
            {"question": "what?", "answers": [{"answer": "net", "answer_id": 1}, {"answer": "net", "answer_id": 2}]},
            ("what?", ("net", "net"), "all"),
            id="VQAv2",
        ),
    ],
)
def test_published_tables_are_read_without_naming_columns(rows: dict[str, Any], expected: Asked, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [rows | {"image": embedded(picture(i))} for i in range(12)])
    convert(config("parquet", path), tmp_path / "out")
    assert together(tmp_path / "out") == {picture(i): Counter([expected]) for i in range(12)}


def test_gqa_joins_questions_and_images_by_id(tmp_path: Path) -> None:
    asked = [
        {
            "id": str(i),
            "imageId": str(i % 10),
            "question": f"q{i}?",
            "answer": "yes",
            "types": {"structural": "verify", "x": "y"},
        }
        for i in range(30)
    ]
    write_parquet(tmp_path / "instructions.parquet", asked)
    write_parquet(tmp_path / "images-0.parquet", [{"id": str(i), "image": embedded(picture(i))} for i in range(5)])
    write_parquet(tmp_path / "images-1.parquet", [{"id": str(i), "image": embedded(picture(i))} for i in range(5, 12)])
    convert(config("parquet", tmp_path / "instructions.parquet", images=str(tmp_path / "images-*.parquet")), tmp_path / "out")
    assert together(tmp_path / "out") == {
        picture(i): Counter((f"q{j}?", ("yes",), "verify") for j in range(i, 30, 10)) for i in range(10)
    }
    assert report(tmp_path / "out")["skipped"] == {"images without a question": 2}


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q?", "gold": {"text": "a"}, "picture": embedded(picture(i))} for i in range(12)]
    path = write_parquet(tmp_path / "t.parquet", rows)
    with pytest.raises(UserError, match=r"no column for data.files.columns.question .*it has prompt, gold, picture"):
        convert(config("parquet", path), tmp_path / "out")
    named = {"question": "prompt", "answers": "gold.text", "image": "picture"}
    convert(config("parquet", path, columns=named), tmp_path / "other")
    assert together(tmp_path / "other") == {picture(i): Counter([("q?", ("a",), "all")]) for i in range(12)}


def test_json_lines_are_read_as_an_array_is(tmp_path: Path) -> None:
    array = write_llava(tmp_path)
    lines = tmp_path / "my_data.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in json.loads(array.read_text())) + "\n{cut")
    for path in (array, lines):
        convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / path.suffix[1:])
    assert together(tmp_path / "json") == together(tmp_path / "jsonl")
    assert [broken["key"] for broken in report(tmp_path / "jsonl")["broken"]] == ["line 26"]


# what is not


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": None}, "conversations is no list"),
        ({"conversations": []}, "no human turn has an answer"),
        ({"conversations": turns(("q?", ""))}, "no human turn has an answer"),
        ({"conversations": [{"from": "human"}]}, "KeyError: 'value'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "3 is no text"),
        ({"image": 7}, "image=7 is no path"),
        ({"image": "../../etc/passwd"}, "points out of the folder"),
        ({"image": "/etc/passwd"}, "points out of the folder"),
        ({"image": "pipe:cat /etc/passwd"}, "points out of the folder"),
        ({"image": "coco/nowhere.jpg"}, "FileNotFoundError"),
        ({"image": "coco/empty.jpg"}, "the image has no bytes"),
        ({"image": "coco/text.jpg"}, "the image is no png, jpg or webp"),
        ({"image": "coco"}, "IsADirectoryError"),
    ],
)
def test_a_broken_llava_row_is_named_and_loses_no_other(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    (tmp_path / "images/coco/empty.jpg").write_bytes(b"")
    (tmp_path / "images/coco/text.jpg").write_bytes(b"no image")
    rows = json.loads(path.read_text())
    rows[5] |= change
    path.write_text(json.dumps(rows))
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 23
    (broken,) = report(tmp_path / "out")["broken"]
    assert reason in broken["reason"]


@pytest.mark.parametrize(
    ("row", "reason"), [(["a"], "no object"), ({"image": ["a.jpg", "b.jpg"]}, None), ({"video": "a"}, None)]
)
def test_rows_of_another_kind_are_counted(row: Any, reason: str | None, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    told = report(tmp_path / "out")
    assert [reason in broken["reason"] for broken in told["broken"]] == ([True] if reason else [])
    assert sum(told["skipped"].values()) == 1 + (reason is None)


@pytest.mark.parametrize("cut", [0.3, 0.95])
def test_a_json_file_that_is_cut_off_keeps_the_rows_before(cut: float, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert abs(len(together(tmp_path / "out")) - cut * 24) <= 2
    (broken,) = report(tmp_path / "out")["broken"]
    assert broken["shard"] == str(path) and "cannot be read after" in broken["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "question=None is no text"),
        ({"answers": []}, "there is no answer"),
        ({"answers": None}, "None is no answer"),
        ({"image": None}, "the image is not embedded"),
        ({"image": embedded(b"GIF89a")}, "the image is no png, jpg or webp"),
    ],
)
def test_a_broken_parquet_row_is_named_and_loses_no_other(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = [{"question": "q?", "answers": ["a"], "image": embedded(picture(i))} for i in range(12)]
    rows[4] |= change
    convert(config("parquet", write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 11
    (broken,) = report(tmp_path / "out")["broken"]
    assert reason in broken["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "no base64!" * 20}, "Only base64 data is allowed|padding"),
        ({"image": "999"}, "no row before this one"),
        ({"image": ""}, "KeyError: 'image'"),
        ({"answer": ""}, "KeyError: 'answer'"),
    ],
)
def test_a_broken_tsv_row_is_named_and_loses_no_other(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    import re

    rows = [{"index": i, "question": "q?", "answer": "a", "image": encoded(picture(i))} for i in range(12)]
    rows[4] |= change
    convert(config("tsv", write_tsv(tmp_path / "t.tsv", rows)), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 11
    (broken,) = report(tmp_path / "out")["broken"]
    assert re.search(reason, broken["reason"])


def test_a_shard_of_which_nothing_can_be_read_is_not_written(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "whole")
    data = ShardDataset(tmp_path / "whole", "train", 64)
    gone = {image for image, _ in data.raw(range(4))}
    for image in (tmp_path / "images").rglob("*.*"):
        if image.read_bytes() in gone:
            image.write_bytes(b"")
    index = convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert [shard.shard for shard in index.splits["train"]] == [s.shard for s in data._shards[1:]]
    assert not (tmp_path / "out/train-000000.tar").exists()
    assert len(report(tmp_path / "out")["broken"]) == 4


def test_more_broken_rows_than_allowed_stop_with_the_list(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    for name in ("vg/VG_100K/0.png", "vg/VG_100K/2.png"):
        (tmp_path / "images" / name).unlink()
    wanted = config("llava", path, images=str(tmp_path / "images"))
    with pytest.raises(
        UserError, match=r"questions are broken, more than data.max_bad_fraction=0.05: .*VG_100K/0.png.*FileNotFound"
    ):
        convert(replace(wanted, max_bad_fraction=0.05), tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.parametrize(
    ("source", "files", "said"),
    [
        ("llava", {"path": "nowhere.json"}, "'nowhere.json' is no file that is there"),
        ("llava", {"path": "here.json", "images": ""}, "data.files.images is empty"),
        ("llava", {"path": "here.json", "images": "nowhere"}, "data.files.images='nowhere' is no folder"),
        ("parquet", {"path": "here.json"}, "no parquet file that can be read"),
        ("tsv", {"path": "here.json"}, "no column for data.files.columns.question"),
        ("tsv", {"path": "pipe:cat here.json"}, "may not be opened"),
        ("tsv", {"path": "simplecache::http://x/y"}, "may not be opened"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    source: str, files: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.json").write_text("[]")
    with pytest.raises(UserError, match=said):
        convert(DataConfig(source=source, files=FilesConfig(**files)), tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"path": ""}, "data.files.path is empty"),
        ({"metric": "bleu"}, "data.files.metric='bleu'.*anls"),
        ({"test_fraction": 1.0}, "data.files.test_fraction=1.0"),
        ({"columns": {"colour": "c"}}, "data.files.columns='colour'"),
        ({"workers": -1}, "data.files.workers=-1"),
    ],
)
def test_a_wrong_files_config_is_refused_where_it_is_read(files: dict[str, Any], said: str) -> None:
    DataConfig(source="easy_vqa", files=FilesConfig(**files))
    with pytest.raises(UserError, match=said):
        DataConfig(source="llava", files=FilesConfig(**files))


# splits


def test_splits_are_by_image_and_of_the_sizes_asked_for(tmp_path: Path) -> None:
    path = write_llava(tmp_path, images=100)
    convert(config("llava", path, images=str(tmp_path / "images"), test_fraction=0.2), tmp_path / "out")
    assert {split: len(found) for split, found in contents(tmp_path / "out").items()} == {
        "train": 52,
        "gate": 20,
        "val": 8,
        "test": 20,
        "close": 0,
    }


def test_an_image_of_the_test_file_is_not_trained_on(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    extra = {"image": llava_row(3)["image"], "conversations": turns(("test?", "yes"))}
    (tmp_path / "test.json").write_text(json.dumps([extra]))
    convert(config("llava", path, images=str(tmp_path / "images"), test=str(tmp_path / "test.json")), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert list(found["test"].values()) == [[("test?", ("yes",), "coco")]]
    assert sum(map(len, found.values())) == 24
    assert report(tmp_path / "out")["skipped"]["training questions on test images"] == 2


def test_a_limit_keeps_a_subset_of_each_split(tmp_path: Path) -> None:
    path = write_llava(tmp_path, images=60)
    wanted = config("llava", path, images=str(tmp_path / "images"))
    convert(wanted, tmp_path / "all")
    convert(replace(wanted, limit=3), tmp_path / "few")
    whole, few = contents(tmp_path / "all"), contents(tmp_path / "few")
    for split in ("train", "gate", "val", "test"):
        assert len(few[split]) == 3
        assert few[split].items() <= whole[split].items()


# how it is done


def written(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def sets(tmp_path: Path) -> Iterator[DataConfig]:
    rows = [{"question": f"q{i}?", "answer": "a", "image": embedded(picture(i // 2))} for i in range(80)]
    yield config("parquet", write_parquet(tmp_path / "t.parquet", rows))
    tsv = [row | {"index": i, "image": encoded(row["image"]["bytes"])} for i, row in enumerate(rows)]  # type: ignore[index]
    yield config("tsv", write_tsv(tmp_path / "t.tsv", tsv))
    yield config("llava", write_llava(tmp_path, images=40), images=str(tmp_path / "images"))


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    for wanted in sets(tmp_path):
        for workers in (0, 3):
            out = tmp_path / f"{wanted.source}-{workers}"
            convert(replace(wanted, files=replace(wanted.files, workers=workers)), out)
        assert written(tmp_path / f"{wanted.source}-0") == written(tmp_path / f"{wanted.source}-3")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("number", range(3))
def test_a_conversion_that_is_killed_goes_on_and_writes_the_same_bytes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(sets(tmp_path))[number]
    convert(wanted, tmp_path / "whole")
    calls = 0
    real_fsync, real_note, chance = os.fsync, conversion.Plan.note, random.Random(number)

    def dying(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if chance.random() < 0.3:
                raise Killed
            result = real(*arguments)
            if chance.random() < 0.2:
                raise Killed
            return result

        return call

    monkeypatch.setattr(os, "fsync", dying(real_fsync))
    monkeypatch.setattr(conversion.Plan, "note", dying(real_note))
    killed = 0
    while not (tmp_path / "stopped/index.json").exists():
        try:
            convert(wanted, tmp_path / "stopped")
        except Killed:
            killed += 1
    monkeypatch.undo()
    assert killed > 2
    assert written(tmp_path / "whole") == written(tmp_path / "stopped")


def test_shards_that_are_written_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = next(sets(tmp_path))
    convert(wanted, tmp_path / "whole")
    shards = len(list((tmp_path / "whole").glob("*.tar")))
    real, done = conversion.write_planned, []

    def counted(*arguments: Any) -> Any:
        if len(done) == 5 and done[-1] != "killed":
            done.append("killed")
            raise Killed
        done.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(conversion, "write_planned", counted)
    with pytest.raises(Killed):
        convert(wanted, tmp_path / "stopped")
    convert(wanted, tmp_path / "stopped")
    assert len(set(done)) == len(done) == shards + 1


def test_one_sample_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for images in (20, 200):
        folder = tmp_path / str(images)
        path = write_llava(folder, images=images)
        for image in (folder / "images").rglob("*.*"):
            image.write_bytes(image.read_bytes() + bytes(200_000))
        wanted = replace(config("llava", path, images=str(folder / "images")), samples_per_shard=500)
        tracemalloc.start()
        convert(wanted, folder / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000 < 20 * 200_000 + 2_000_000


# what formats share


@given(names=st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_keys_of_images_are_names_of_members_and_differ(names: Sequence[str]) -> None:
    import re

    keys = [image_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)


def test_text_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Found("image", "image.jpg", (Question("\ud800?", ("a",)),))


def test_the_kind_of_an_image_is_told_from_its_bytes() -> None:
    assert [image_extension(picture(1, kind)) for kind in ("PNG", "JPEG", "WEBP")] == ["png", "jpg", "webp"]


def test_the_most_frequent_answer_comes_first_and_repeats_are_kept() -> None:
    assert ordered(["b", "a", " a ", 3, ""]) == ("a", "a", "b", "3")
