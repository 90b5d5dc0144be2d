"""Claims about the reader: what is written is read back, and what is broken is named and costs nothing
else."""

import builtins
import io
import os
import pickle
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyrskip.data.faults import Fault
from pyrskip.data.reader import Filled, ShardDataset, collate
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.errors import UserError
from tests.shards import QUESTIONS, png, question_of, tar, whole, write_data

# reading


def test_a_sample_is_read_back_whole(made_up_config: DataConfig, tmp_path: Path) -> None:
    prepare(made_up_config, tmp_path)
    dataset = ShardDataset(tmp_path, "train", 4)
    assert len(dataset) == 26
    assert not dataset.faults
    for key, sample in zip(dataset.image_keys, dataset, strict=True):  # type: ignore[call-overload]
        assert sample.key == key
        assert sample.questions == (question_of(key),)
        assert sample.image.shape == (3, 4, 4)
        assert (sample.image[0] == int(key.split("-")[1])).all()


def test_an_unknown_split_is_refused(tiny_data: Path) -> None:
    with pytest.raises(UserError, match="split='dev'.*train"):
        ShardDataset(tiny_data, "dev", 64)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tiny_data: Path, method: str) -> None:
    dataset = ShardDataset(tiny_data, "train", 64)
    alone = collate([dataset[i] for i in range(24)], 64)
    loader = DataLoader(
        dataset, 6, num_workers=2, collate_fn=partial(collate, side=64), multiprocessing_context=method
    )
    batches = list(loader)
    assert torch.equal(torch.cat([b.image for b in batches]), alone.image)
    assert tuple(key for b in batches for key in b.keys) == alone.keys


def test_descriptors_stay_behind_when_a_dataset_is_pickled(tiny_data: Path) -> None:
    dataset = ShardDataset(tiny_data, "train", 64)
    first = dataset[0]
    assert first is not None
    again = pickle.loads(pickle.dumps(dataset))[0]
    assert torch.equal(again.image, first.image)


def test_few_shards_are_open_at_a_time(
    made_up_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.data.storage.MAX_OPEN", 2)
    prepare(made_up_config, tmp_path)
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
    for length in (
        end_of_b,
        end_of_b + 100,
        end_of_b + 512,
        end_of_b + 1024,
        end_of_b + 1536,
        end_of_b + 1600,
    ):
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
        ([*whole("b")[:1], ("b.txt", b"red")], "b: has no image"),
        ([*whole("b")[:1], ("b.pickle", pickle.dumps(1))], "b: has no image"),
        ([*whole("b")[:1], link("b.png", tarfile.SYMTYPE)], "b: b.png is no plain file"),
        ([*whole("b")[:1], link("b.png", tarfile.LNKTYPE)], "b: b.png is no plain file"),
        ([*whole("b")[:1], link("b.png", tarfile.FIFOTYPE)], "b: b.png is no plain file"),
        (whole("../b"), "../b: ../b.png points out of the shard"),
        (whole("/b"), "/b: /b.png points out of the shard"),
        ([("a.jpg", png())], "a: has more than one image, of which the first is read"),
    ],
)
def test_a_broken_member_is_named_when_scanned(tmp_path: Path, members: list[Any], fault: str) -> None:
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a"), *members, *whole("c"))), "train", 64)
    assert dataset.image_keys == ["a", "c"]
    assert f"train-000000.tar: {fault}" in [str(f) for f in dataset.faults]


def test_a_key_in_two_shards_is_read_once(tmp_path: Path) -> None:
    dataset = ShardDataset(write_data(tmp_path, tar(*whole("a")), tar(*whole("a"))), "train", 64)
    assert dataset.image_keys == ["a"]
    assert dataset.faults == [Fault("train-000001.tar", "a", "is in train-000000.tar as well", lost=0)]


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
