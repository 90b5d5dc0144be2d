"""Claims about faults: each kind is counted and named, loses no other sample, and past what is allowed the
run stops."""

import io
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pyrskip.data.entries import list_name
from pyrskip.data.faults import Fault, FaultLog
from pyrskip.data.inspect import inspect
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.errors import UserError
from tests.shards import QUESTIONS, tar, whole, write_data


def bomb() -> bytes:
    """A PNG of 100,000 x 100,000 pixels, in 60 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG")
    return content.getvalue()


def questions(**change: object) -> bytes:
    return json.dumps({"questions": [{"text": "why?", "answers": ["a"]} | change]}).encode()


PNG = dict(whole("x"))["x.png"]
SAMPLES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "zero-byte image": ([("b.json", QUESTIONS), ("b.png", b"")], "the image has no bytes"),
    "corrupt image": ([("b.json", QUESTIONS), ("b.png", PNG[:30] + b"\xff" * 40)], "Error"),
    "cut image": ([("b.json", QUESTIONS), ("b.jpg", jpeg()[:-200])], "truncated|Error"),
    "huge image": (
        [("b.json", QUESTIONS), ("b.png", bomb())],
        "DecompressionBombError: Image size \\(10000000000 pixels\\)",
    ),
    "no image": ([("b.json", QUESTIONS)], "has no image"),
    "no json": ([("b.png", PNG)], "has no json"),
    "malformed json": ([("b.json", b"{"), ("b.png", PNG)], "JSONDecodeError"),
    "no object": ([("b.json", b"[]"), ("b.png", PNG)], "TypeError"),
    "no questions": ([("b.json", b'{"questions": []}'), ("b.png", PNG)], "no questions"),
    "text of a wrong type": ([("b.json", questions(text=3)), ("b.png", PNG)], "3 is no text"),
    "answers of a wrong type": ([("b.json", questions(answers=[None])), ("b.png", PNG)], "None is no text"),
    "no answers": ([("b.json", questions(answers=[])), ("b.png", PNG)], "a question has no answer"),
    "boxes of a wrong type": ([("b.json", questions(boxes=[[0, 1]])), ("b.png", PNG)], "is no box"),
    "unknown metric": ([("b.json", questions(metric="bleu")), ("b.png", PNG)], "'bleu' is no metric"),
    "pickle": ([("b.json", QUESTIONS), ("b.pickle", pickle.dumps(1))], "has no image"),
    "path escape": (whole("../b"), "points out of the shard"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_broken_sample_is_counted_and_named_and_loses_no_other(kind: str, tmp_path: Path) -> None:
    members, reason = SAMPLES[kind]
    write_data(tmp_path, tar(*whole("a"), *members, *whole("c")), tar(*whole("d")))
    log = FaultLog(tmp_path / "faults" / "train", 4, allowed=0.99)
    data = ShardDataset(tmp_path, "train", 64, log)
    batch = collate([data[i] for i in range(len(data))], 64)
    assert batch.image_keys == ("a", "c", "d")
    faults = log.read()
    assert {fault.shard for fault in faults} == {"train-000000.tar"}
    assert {fault.key for fault in faults} <= {"b", "../b", "a"}
    assert any(re.search(reason, fault.reason) for fault in faults)
    summary = log.summary()
    assert summary["lost"] == len(faults) and str(faults[0]) in summary["first"]


SHARDS: dict[str, tuple[Callable[[bytes], bytes], str, int]] = {
    "truncated": (
        lambda content: content[: len(content) // 2],
        "damaged or cut off|is cut off|unexpected end",
        2,
    ),
    "empty file": (lambda content: b"", "Error", 4),
    "no members": (lambda content: bytes(10240), "is empty", 4),
    "no tar": (lambda content: b"\xff" * len(content), "Error", 4),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_broken_shard_is_counted_and_named_and_loses_no_other(kind: str, tmp_path: Path) -> None:
    damage, reason, lost = SHARDS[kind]
    content = tar(*(member for key in "abcd" for member in whole(key)))
    write_data(tmp_path, damage(content), tar(*whole("e")))
    index = json.loads((tmp_path / "index.json").read_text())
    index["splits"]["train"][0]["samples"] = 4
    (tmp_path / "index.json").write_text(json.dumps(index))
    log = FaultLog(tmp_path / "faults" / "train", 5, allowed=0.99)
    data = ShardDataset(tmp_path, "train", 64, log)
    assert data.image_keys == [*"abcd"[: 4 - lost], "e"]
    assert all(sample is not None for sample in data)
    assert log.summary()["lost"] == lost
    assert any(re.search(reason, fault.reason) for fault in log.read())


@pytest.fixture
def shards(made_up_config: DataConfig, tmp_path: Path) -> Path:
    """40 images, 26 of them in train, 7 a shard."""
    prepare(made_up_config, tmp_path / "data")
    return tmp_path / "data"


def damage(directory: Path, *rows: int) -> list[str]:
    """Zero the images of these samples of train; returns their keys."""
    data = ShardDataset(directory, "train", 64)
    for row in rows:
        path = directory / data._name(row)
        content = bytearray(path.read_bytes())
        start, length = data._spans[row, :2].tolist()
        content[start : start + length] = bytes(length)
        path.write_bytes(content)
    return [data.image_keys[row] for row in rows]


def test_with_its_list_a_damaged_header_costs_nothing(shards: Path) -> None:
    path = shards / "train-000000.tar"
    path.write_bytes(b"\xff" * 512 + path.read_bytes()[512:])
    data = ShardDataset(shards, "train", 64)
    assert len(data) == 26 and all(sample is not None for sample in data)
    (shards / list_name(path.name)).unlink()
    assert len(ShardDataset(shards, "train", 64)) == 26 - 7


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"keys": ["a"], "spans": []}', b'{"keys": [1], "spans": [[0, 1, 2, 3]]}']
)
def test_a_list_that_cannot_be_used_is_done_without(content: bytes, shards: Path) -> None:
    (shards / "train-000000.json").write_bytes(content)
    data = ShardDataset(shards, "train", 64)
    assert len(data) == 26 and not data.faults


def test_a_list_that_reaches_out_of_the_shard_is_a_fault_each(shards: Path) -> None:
    path = shards / "train-000000.tar"
    os.truncate(path, path.stat().st_size // 2)
    data = ShardDataset(shards, "train", 64)
    assert 19 < len(data) < 26
    assert len(data.faults) == 26 - len(data)
    assert all("is cut off" in fault.reason for fault in data.faults)


def test_workers_faults_are_gathered(shards: Path, tmp_path: Path) -> None:
    keys = damage(shards, 3, 17)
    log = FaultLog(tmp_path / "faults" / "train", 26, allowed=0.5)
    data = ShardDataset(shards, "train", 64, log)
    for _ in range(2):
        loader = DataLoader(data, 4, num_workers=2, collate_fn=partial(collate, side=64))
        assert sum(len(batch.image_keys) for batch in loader) == 24
    assert not data.faults  # of this process
    assert sorted(fault.key for fault in log.read()) == sorted(keys)
    assert log.summary()["lost"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_is_allowed_stops_the_run_with_the_list(workers: int, shards: Path, tmp_path: Path) -> None:
    keys = damage(shards, 1, 9, 20)
    log = FaultLog(tmp_path / "faults" / "train", 26, allowed=0.1)
    loader = DataLoader(
        ShardDataset(shards, "train", 64, log), 4, num_workers=workers, collate_fn=partial(collate, side=64)
    )
    said = (
        r"train: 3 of 26 images are broken, more than data.max_bad_fraction=0.1: train-00000.*; "
        r".*delete .*faults/train"
    )
    with pytest.raises(UserError, match=said) as caught:
        list(loader)
    assert all(key in str(caught.value) for key in keys)


@pytest.mark.slow
def test_as_much_as_is_allowed_does_not(shards: Path, tmp_path: Path) -> None:
    damage(shards, 1, 9)
    log = FaultLog(tmp_path / "faults" / "train", 26, allowed=2 / 26)
    assert sum(sample is None for sample in ShardDataset(shards, "train", 64, log)) == 2


def test_shards_that_are_missing_count_before_anything_is_read(shards: Path, tmp_path: Path) -> None:
    (shards / "train-000001.tar").unlink()
    log = FaultLog(tmp_path / "faults" / "train", 26, allowed=0.1)
    with pytest.raises(UserError, match=r"7 of 26 images are broken.*train-000001.tar: FileNotFoundError"):
        ShardDataset(shards, "train", 64, log)


def test_a_log_outlives_its_process_and_counts_a_fault_once(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / "train", 10, allowed=0.9)
    for _ in range(3):
        log.add(Fault("s.tar", "a", "broken"))
    (tmp_path / "train" / "other-1.jsonl").write_text(
        '{"shard": "s.tar", "key": "a", "reason": "broken"}\n{"shard": "s.ta'
    )
    assert FaultLog(tmp_path / "train", 10, 0.9).read() == [Fault("s.tar", "a", "broken")]


def test_inspect_names_what_is_broken(shards: Path) -> None:
    keys = damage(shards, 5)
    report = inspect(shards)
    assert [fault.key for fault in report.faults] == keys
    assert "broken  1" in str(report)
