"""Claims about shards and their reader: what is written is read back, and what is broken is named and costs nothing else."""

import builtins
import errno
import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyrskip.data import shards
from pyrskip.data.faults import Fault
from pyrskip.data.reader import Filled, ShardDataset, collate
from pyrskip.data.shards import SPLITS, DataConfig, parse_index, prepare, read_index
from pyrskip.data.sources import SOURCES, Record, easy_vqa
from pyrskip.errors import UserError
from pyrskip.sample import Question

QUESTIONS = json.dumps({"questions": [{"text": "is it red?", "answers": ["yes"], "type": "color"}]}).encode()


def png(shade: int = 0, side: int = 8) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(content, "PNG")
    return content.getvalue()


def question(key: str) -> Question:
    return Question(f"is it {key.split('-')[1]}?", ("yes", "oui"), "number")


def made_up(split: str) -> Iterator[Record]:
    for i in range({"train": 40, "test": 10}[split]):
        key = f"{split}-{i}"
        yield Record(key, png(i), "png", (question(key),))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setitem(SOURCES, "made_up", made_up)
    return DataConfig(source="made_up", samples_per_shard=7)


def keys(directory: Path, split: str) -> list[str]:
    return ShardDataset(directory, split, 64).image_keys


def write_data(directory: Path, *tars: bytes) -> Path:
    """A data directory whose train split is made of these tars."""
    entries = []
    for number, content in enumerate(tars):
        name = f"train-{number:06d}.tar"
        (directory / name).write_bytes(content)
        entries.append({"shard": name, "samples": 1, "questions": 1, "bytes": len(content), "sha256": ""})
    splits = {split: entries if split == "train" else [] for split in SPLITS}
    (directory / "index.json").write_text(json.dumps({"format": 1, "source": "made_up", "splits": splits}))
    return directory


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return content.getvalue()


def whole(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.json", QUESTIONS), (f"{key}.png", png())]


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


def test_images_are_divided_exactly_and_without_overlap(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path)
    split_keys = {split: keys(tmp_path, split) for split in SPLITS}
    assert {split: len(k) for split, k in split_keys.items()} == {"train": 26, "gate": 10, "val": 4, "test": 10, "close": 0}
    assert sorted(split_keys["test"]) == sorted(r.key for r in made_up("test"))
    together = [key for k in split_keys.values() for key in k]
    assert len(set(together)) == len(together) == 50


def test_the_division_depends_on_the_set_of_keys_and_the_seed_alone(config: DataConfig) -> None:
    train = [f"train-{i}" for i in range(40)]
    division = shards._divide(train, [], config)
    assert shards._divide(train[::-1], [], config) == division
    assert shards._divide(train, [], DataConfig(source="made_up", seed=1)) != division


def test_a_limit_keeps_a_subset_of_each_split(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path / "all")
    prepare(DataConfig(source="made_up", limit=3), tmp_path / "few")
    for split in ("train", "gate", "val", "test"):
        few = keys(tmp_path / "few", split)
        assert len(few) == 3
        assert set(few) < set(keys(tmp_path / "all", split))


def test_an_image_that_comes_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOURCES, "twice", lambda split: iter([Record("same", png(), "png", ())]))
    with pytest.raises(UserError, match="'same' twice.*overlap"):
        prepare(DataConfig(source="twice"), tmp_path)


def test_the_same_config_writes_the_same_bytes(config: DataConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare(config, tmp_path / name)
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert written[0] == written[1]
    assert len(written[0]) == 2 * (4 + 2 + 1 + 2) + 1


def test_a_shard_holds_the_original_bytes_and_every_question(config: DataConfig, tmp_path: Path) -> None:
    index = prepare(config, tmp_path)
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
                    q = question(key)
                    expected = {"text": q.text, "answers": list(q.answers), "type": q.type}
                    assert json.loads(content) == {"questions": [expected]}
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert read == 50


def test_webdataset_reads_the_shards(config: DataConfig, tmp_path: Path) -> None:
    import webdataset  # type: ignore[import-untyped]

    prepare(config, tmp_path)
    samples = list(webdataset.WebDataset(str(tmp_path / "val-000000.tar"), shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in samples] == keys(tmp_path, "val")
    assert samples[0]["png"].size == (8, 8)


@pytest.mark.parametrize("broken", ["shard", "index"])
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    prepare(config, tmp_path)
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == {"shard": 5, "index": 19}[broken]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        prepare(config, tmp_path)
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"holds no index\.json"):
        read_index(tmp_path)


# the index


def test_the_index_counts_what_the_shards_hold(config: DataConfig, tmp_path: Path) -> None:
    index = prepare(config, tmp_path)
    assert read_index(tmp_path) == index
    assert [s.samples for s in index.splits["train"]] == [7, 7, 7, 5]
    assert [s.questions for s in index.splits["train"]] == [7, 7, 7, 5]
    assert index.splits["train"][0].bytes == (tmp_path / "train-000000.tar").stat().st_size


def test_a_directory_that_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index\.json"):
        read_index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1, "source": "", "splits": {"train": [{"shard": 3}]}}', "[" * 100_000]
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


def test_a_missing_shard_is_named(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        read_index(tmp_path)


def test_a_shard_of_the_wrong_size_is_named(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path)
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


# reading


def test_a_sample_is_read_back_whole(config: DataConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path)
    dataset = ShardDataset(tmp_path, "train", 4)
    assert len(dataset) == 26
    assert not dataset.faults
    for key, sample in zip(dataset.image_keys, dataset, strict=True):  # type: ignore[call-overload]
        assert sample.key == key
        assert sample.questions == (question(key),)
        assert sample.image.shape == (3, 4, 4)
        assert (sample.image[0] == int(key.split("-")[1])).all()


def test_an_unknown_split_is_refused(tiny_data: Path) -> None:
    with pytest.raises(UserError, match="split='dev'.*train"):
        ShardDataset(tiny_data, "dev", 64)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tiny_data: Path, method: str) -> None:
    dataset = ShardDataset(tiny_data, "train", 64)
    alone = collate([dataset[i] for i in range(24)], 64)
    loader = DataLoader(dataset, 6, num_workers=2, collate_fn=partial(collate, side=64), multiprocessing_context=method)
    batches = list(loader)
    assert torch.equal(torch.cat([b.image for b in batches]), alone.image)
    assert tuple(key for b in batches for key in b.keys) == alone.keys


def test_descriptors_stay_behind_when_a_dataset_is_pickled(tiny_data: Path) -> None:
    dataset = ShardDataset(tiny_data, "train", 64)
    first = dataset[0]
    assert first is not None
    again = pickle.loads(pickle.dumps(dataset))[0]
    assert torch.equal(again.image, first.image)


def test_few_shards_are_open_at_a_time(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrskip.data.storage.MAX_OPEN", 2)
    prepare(config, tmp_path)
    dataset = ShardDataset(tmp_path, "train", 64)
    before = len(os.listdir("/proc/self/fd"))
    for i in (*range(26), *range(26)):
        assert dataset[i] is not None
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


# faults


def test_a_shard_cut_anywhere_keeps_the_samples_before(tmp_path: Path) -> None:
    content = tar(*whole("a"), *whole("b"), *whole("c"))
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        end_of_b = next(m for m in file if m.name == "c.json").offset
    for length in (end_of_b, end_of_b + 100, end_of_b + 512, end_of_b + 1024, end_of_b + 1536, end_of_b + 1600):
        write_data(tmp_path, content[:length], tar(*whole("d")))
        dataset = ShardDataset(tmp_path, "train", 64)
        assert dataset.image_keys == ["a", "b", "d"], length
        assert any(f.shard == "train-000000.tar" and f.key == "" for f in dataset.faults), length
        assert all(dataset[i] is not None for i in range(3))


@pytest.mark.parametrize("content", [b"", b"\x01" * 2000, bytes(100)])
def test_a_file_that_is_no_tar_is_a_fault(tmp_path: Path, content: bytes) -> None:
    dataset = ShardDataset(write_data(tmp_path, content, tar(*whole("a"))), "train", 64)
    assert dataset.image_keys == ["a"]
    assert [(f.shard, f.key) for f in dataset.faults] == [("train-000000.tar", "")]


def test_a_shard_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    write_data(tmp_path, tar(*whole("a")), tar(*whole("b")))
    (tmp_path / "train-000000.tar").unlink()
    dataset = ShardDataset(tmp_path, "train", 64)
    assert dataset.image_keys == ["b"]
    assert "FileNotFoundError" in str(dataset.faults[0])


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("b.png", png())], "b: has no json"),
        ([("b.json", QUESTIONS)], "b: has no image"),
        ([*whole("b")[:1], ("b.txt", b"red")], "b: b.txt is none of png, jpg, jpeg, webp, json"),
        ([*whole("b")[:1], ("b.pickle", pickle.dumps(1))], "b: b.pickle is none of png, jpg, jpeg, webp, json"),
        ([*whole("b")[:1], link("b.png", tarfile.SYMTYPE)], "b: b.png is no plain file"),
        ([*whole("b")[:1], link("b.png", tarfile.LNKTYPE)], "b: b.png is no plain file"),
        ([*whole("b")[:1], link("b.png", tarfile.FIFOTYPE)], "b: b.png is no plain file"),
        (whole("../b"), "../b: ../b.png points out of the shard"),
        (whole("/b"), "/b: /b.json points out of the shard"),
        ([*whole("a")], "a: has more than one image"),
        ([("a.jpg", png())], "a: has more than one image"),
    ],
)
def test_a_broken_member_is_named_when_scanned(tmp_path: Path, members: list[Any], fault: str) -> None:
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a"), *members, *whole("c"))), "train", 64)
    assert dataset.image_keys == ["a", "c"]
    assert f"train-000000.tar: {fault}" in [str(f) for f in dataset.faults]


def test_a_key_in_two_shards_is_read_once(tmp_path: Path) -> None:
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a")), tar(*whole("a"))), "train", 64)
    assert dataset.image_keys == ["a"]
    assert dataset.faults == [Fault("train-000001.tar", "a", "is in train-000000.tar as well")]


@pytest.mark.parametrize(
    ("image", "questions", "reason"),
    [
        (b"not an image", QUESTIONS, "UnidentifiedImageError"),
        (png(side=64)[:-60], QUESTIONS, "Error"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", QUESTIONS, "UnidentifiedImageError"),
        (png(), b"{", "JSONDecodeError"),
        (png(), b"\xff\xfe", "Error"),
        (png(), b"[" * 100_000, "RecursionError"),
        (png(), b"[]", "TypeError"),
        (png(), b"{}", "KeyError"),
        (png(), b'{"questions": []}', "no questions"),
        (png(), b'{"questions": [{"text": "why?", "answers": []}]}', "a question has no answer"),
        (png(), b'{"questions": [{"text": "why?", "answers": [3]}]}', "3 is no text"),
        (png(), b'{"questions": [{"text": null, "answers": ["a"]}]}', "None is no text"),
    ],
)
def test_a_broken_sample_is_named_once_when_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, image: bytes, questions: bytes, reason: str
) -> None:
    broken = [("b.json", questions), ("b.png", image)]
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a"), *broken, *whole("c"))), "train", 64)
    assert not dataset.faults
    for _ in range(2):
        batch = collate([dataset[i] for i in range(3)], 64)
        assert batch.image_keys == ("a", "c")
    assert [(f.shard, f.key) for f in dataset.faults] == [("train-000000.tar", "b")]
    assert reason in dataset.faults[0].reason
    assert [r.message for r in caplog.records] == [str(dataset.faults[0])]


def test_a_decompression_bomb_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    members = [("big.json", QUESTIONS), ("big.png", png(side=20)), *whole("small")]
    dataset = ShardDataset(write_data(tmp_path, tar(*members)), "train", 64)
    assert [dataset[0] is None, dataset[1] is None] == [True, False]
    assert "DecompressionBombError" in dataset.faults[0].reason


def test_a_shard_that_shrinks_after_the_scan_is_a_fault(tmp_path: Path) -> None:
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a"))), "train", 64)
    os.truncate(tmp_path / "train-000000.tar", 600)
    assert dataset[0] is None
    assert "EOFError" in dataset.faults[0].reason


def test_nothing_that_is_read_is_unpickled(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("data must not run code")

    for owner, name in ((pickle, "loads"), (pickle, "load"), (builtins, "eval"), (torch, "load")):
        monkeypatch.setattr(owner, name, forbidden)
    assert all(sample is not None for sample in ShardDataset(tiny_data, "val", 64))  # type: ignore[attr-defined]


def test_an_evaluation_batch_of_which_nothing_can_be_read_is_empty() -> None:
    batch = collate([None, None], 64)
    assert len(batch) == 0 and batch.image.shape == (0, 3, 64, 64) and batch.image_of.dtype == torch.int64


def test_a_training_batch_of_which_nothing_can_be_read_is_the_next_sample(tmp_path: Path) -> None:
    broken = [("b.json", QUESTIONS), ("b.png", b"")]
    data = Filled(ShardDataset(write_data(tmp_path, tar(*broken, *whole("a"))), "train", 64))
    assert [sample and sample.key for sample in data.__getitems__([0])] == ["a"]
    assert [sample and sample.key for sample in data.__getitems__([0, 1])] == [None, "a"]


def test_training_on_data_of_which_nothing_can_be_read_ends(tmp_path: Path) -> None:
    data = Filled(ShardDataset(write_data(tmp_path, tar(("b.json", QUESTIONS), ("b.png", b""))), "train", 64))
    with pytest.raises(UserError, match="no image of .* can be read"):
        data[0]
