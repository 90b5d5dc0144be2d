"""Claims about shards: images are divided once and for all, and what is written is what the source gave."""

import errno
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pyrskip.data import shards
from pyrskip.data.convert import FORMATS
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, DataConfig, parse_index, prepare, read_index
from pyrskip.data.sources import SOURCES, Record, easy_vqa
from pyrskip.errors import UserError
from tests.shards import made_up, png, question_of, tar, whole, write_data


def keys(directory: Path, split: str) -> list[str]:
    return ShardDataset(directory, split, 64).image_keys


# writing


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"source": "imagenet"}, "data.source='imagenet'.*easy_vqa"),
        ({"gate_fraction": 1.0}, "data.gate_fraction=1.0.*< 1"),
        ({"val_fraction": float("nan")}, "data.val_fraction=nan"),
        ({"gate_fraction": 0.6, "val_fraction": 0.4}, "data.gate_fraction=0.6.*below 1"),
        ({"limit": 0}, "data.limit=0.*at least 1"),
        ({"samples_per_shard": 0}, "data.samples_per_shard=0.*at least 1"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DataConfig(**bad)


def test_a_name_is_a_source_or_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS._entries, "easy_vqa", FORMATS["tsv"])
    with pytest.raises(UserError, match="data.source='easy_vqa' is registered as a format of files and as a"):
        DataConfig()


def test_images_are_divided_exactly_and_without_overlap(made_up_config: DataConfig, tmp_path: Path) -> None:
    prepare(made_up_config, tmp_path)
    split_keys = {split: keys(tmp_path, split) for split in SPLITS}
    assert {split: len(k) for split, k in split_keys.items()} == {
        "train": 26,
        "gate": 10,
        "val": 4,
        "test": 10,
        "close": 0,
    }
    assert sorted(split_keys["test"]) == sorted(r.key for r in made_up("test"))
    together = [key for k in split_keys.values() for key in k]
    assert len(set(together)) == len(together) == 50


def test_the_division_depends_on_the_set_of_keys_and_the_seed_alone(made_up_config: DataConfig) -> None:
    train = [f"train-{i}" for i in range(40)]
    division = shards._divide(train, [], made_up_config)
    assert shards._divide(train[::-1], [], made_up_config) == division
    assert shards._divide(train, [], DataConfig(source="made_up", seed=1)) != division


def test_a_limit_keeps_a_subset_of_each_split(made_up_config: DataConfig, tmp_path: Path) -> None:
    prepare(made_up_config, tmp_path / "all")
    prepare(DataConfig(source="made_up", limit=3), tmp_path / "few")
    for split in ("train", "gate", "val", "test"):
        few = keys(tmp_path / "few", split)
        assert len(few) == 3
        assert set(few) < set(keys(tmp_path / "all", split))


def test_an_image_that_comes_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOURCES._entries, "twice", lambda split: iter([Record("same", png(), "png", ())]))
    with pytest.raises(UserError, match="'same' twice.*overlap"):
        prepare(DataConfig(source="twice"), tmp_path)


def test_the_same_config_writes_the_same_bytes(made_up_config: DataConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare(made_up_config, tmp_path / name)
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert written[0] == written[1]
    assert len(written[0]) == 2 * (4 + 2 + 1 + 2) + 1


def test_a_shard_holds_the_original_bytes_and_every_question(
    made_up_config: DataConfig, tmp_path: Path
) -> None:
    index = prepare(made_up_config, tmp_path)
    records = {r.key: r for split in ("train", "test") for r in made_up(split)}
    read = 0
    for shard in (s for split in index.splits.values() for s in split):
        with tarfile.open(tmp_path / shard.shard) as file:
            for member in file:
                content = file.extractfile(member).read()  # type: ignore[union-attr]
                key, extension = member.name.split(".")
                if extension == "png":
                    assert content == records[key].image
                    read += 1
                else:
                    q = question_of(key)
                    expected = {"text": q.text, "answers": list(q.answers), "type": q.type}
                    assert json.loads(content) == {"questions": [expected]}
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert read == 50


def test_webdataset_reads_the_shards(made_up_config: DataConfig, tmp_path: Path) -> None:
    import webdataset  # type: ignore[import-untyped]

    prepare(made_up_config, tmp_path)
    samples = list(webdataset.WebDataset(str(tmp_path / "val-000000.tar"), shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in samples] == keys(tmp_path, "val")
    assert samples[0]["png"].size == (8, 8)


@pytest.mark.parametrize("broken", ["shard", "index"])
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(
    made_up_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    prepare(made_up_config, tmp_path)
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == {"shard": 5, "index": 19}[broken]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        prepare(made_up_config, tmp_path)
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"holds no index\.json"):
        read_index(tmp_path)


# the index


def test_the_index_counts_what_the_shards_hold(made_up_config: DataConfig, tmp_path: Path) -> None:
    index = prepare(made_up_config, tmp_path)
    assert read_index(tmp_path) == index
    assert [s.samples for s in index.splits["train"]] == [7, 7, 7, 5]
    assert [s.questions for s in index.splits["train"]] == [7, 7, 7, 5]
    assert index.splits["train"][0].bytes == (tmp_path / "train-000000.tar").stat().st_size


def test_a_directory_that_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index\.json"):
        read_index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 1, "source": "", "splits": {"train": [{"shard": 3}]}}', "[" * 100_000],
)
def test_a_malformed_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read as an index"):
        parse_index(tmp_path)


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="format 2; this version reads format 1"):
        parse_index(tmp_path)


@pytest.mark.parametrize("name", ["../train.tar", "/etc/passwd", "a/b.tar", "..", ""])
def test_an_index_that_points_out_of_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    write_data(tmp_path, tar(*whole("a")))
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace("train-000000.tar", name))
    with pytest.raises(UserError, match="allowed: file names in the same directory"):
        parse_index(tmp_path)


def test_a_missing_shard_is_named(made_up_config: DataConfig, tmp_path: Path) -> None:
    prepare(made_up_config, tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        read_index(tmp_path)


def test_a_shard_of_the_wrong_size_is_named(made_up_config: DataConfig, tmp_path: Path) -> None:
    prepare(made_up_config, tmp_path)
    os.truncate(tmp_path / "train-000001.tar", 100)
    with pytest.raises(UserError, match=r"train-000001\.tar has 100 bytes"):
        read_index(tmp_path)


# the source


def test_easy_vqa_types_follow_from_the_question_alone(tiny_data: Path) -> None:
    answers: dict[str, set[str]] = {}
    for sample in ShardDataset(tiny_data, "train", 64):  # type: ignore[attr-defined]
        for question in sample.questions:
            answers.setdefault(question.type, set()).update(question.answers)
    assert answers["yesno_color"] == answers["yesno_shape"] == {"yes", "no"}
    assert answers["shape"] <= {"circle", "rectangle", "triangle"}
    assert answers["color"] <= {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
    assert len(answers) == 4


def test_easy_vqa_images_are_the_bytes_of_its_files(tiny_data: Path) -> None:
    records = {r.key: r.image for r in easy_vqa("test")}
    dataset = ShardDataset(tiny_data, "test", 64)
    for key, (image, _) in zip(dataset.image_keys, dataset.raw(range(len(dataset))), strict=True):
        assert image == records[key]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match=r"pip install easy-vqa==1\.0"):
        next(easy_vqa("train"))
