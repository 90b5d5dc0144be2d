"""Claims about shards that other tools wrote: what belongs to no sample costs none, and a key that comes
again is a sample of its own."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pyrskip.data.faults import Fault
from pyrskip.data.reader import ShardDataset
from pyrskip.data.reshard import reshard
from tests.shards import QUESTIONS, png, tar, whole, write_data

Members = list[tuple[str, bytes]]
FOLDERS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize(
    "members",
    [
        [("b.cls", b"3"), ("b.txt", b"a bus"), *whole("b")],
        [("c.txt", b"of no sample")],
        [("README", b"read me"), ("README.md", b"# read me"), ("LICENSE", b"")],
        [("._b.png", b"\0\5\x16\7"), ("._b.json", b"\0"), (".DS_Store", b"\0"), ("__MACOSX/._b.png", b"\0")],
        [folder("./"), folder("images")],
        [("__index__", b"{}"), ("__meta__/info.json", b"{}")],
        [*whole("b"), ("b.seg.png", png(3)), ("b.depth.jpg", png(4)), ("b.meta.json", b"{}")],
        [*whole("a")],
        [("a.jpg", png(9))],
        [("a.json", b"{}")],
    ],
    ids=lambda members: members[0].name if isinstance(members[0], tarfile.TarInfo) else members[0][0],
)
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_what_belongs_to_no_sample_costs_none(members: Members, first: bool, tmp_path: Path) -> None:
    own = whole("a")
    members = [*members, *own] if first and ("a.json", b"{}") not in members else [*own, *members]
    write_data(tmp_path / "in", tar(*members))
    data = ShardDataset(tmp_path / "in", "train", 64)
    expected = {"a", "b"} if whole("b")[0] in members else {"a"}
    assert set(data.image_keys) == expected
    assert sum(fault.lost for fault in data.faults) == 0
    assert all(sample is not None for sample in data)
    _, faults = reshard(str(tmp_path / "in"), tmp_path / "out", 5)
    again = ShardDataset(tmp_path / "out", "train", 64)
    assert set(again.image_keys) == expected and not any(fault.lost for fault in (*faults, *again.faults))


@settings(max_examples=25, suppress_health_check=FOLDERS)
@given(
    samples=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=6),
    extras=st.lists(st.sampled_from(["cls", "txt", "seg.png", "npy", ""]), max_size=4),
    apart=st.booleans(),
)
def test_samples_are_those_that_webdataset_groups(
    samples: list[tuple[str, int]], extras: list[str], apart: bool, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    members: Members = []
    for number, (key, shade) in enumerate(samples):
        if apart or not any(name.startswith(f"{key}.") for name, _ in members[-2:]):
            members += [(f"{key}.json", QUESTIONS), (f"{key}.png", png(shade))]
            members += [
                (f"{key}.{extension}", b"x") for extension in extras[number : number + 1] if extension
            ]
            members += [("README", b"")] * apart
    content = tar(*members)

    def read() -> list[dict[str, bytes]]:
        files = [file | {"__url__": ""} for file in tar_file_iterator(io.BytesIO(content))]
        # where keys follow each other, an end of shard keeps webdataset from taking them for one
        parted = [
            part for file in files for part in (([{}] if file["fname"].endswith(".json") else []) + [file])
        ]
        return list(group_by_keys(parted, handler=lambda error: True))

    wanted = {(sample["__key__"], sample["png"]) for sample in read()}
    data = ShardDataset(write_data(tmp_path / "in", content), "train", 64)
    found = data.raw(range(len(data)))
    assert {
        (key.partition("~")[0], image) for key, (image, _) in zip(data.image_keys, found, strict=True)
    } == wanted
    assert len(data) == len(wanted) and len(set(data.image_keys)) == len(data) and not data.faults


def test_members_of_a_sample_may_lie_apart(tmp_path: Path) -> None:
    images, questions = (
        [(f"{key}.png", png(n)) for n, key in enumerate("abc")],
        [(f"{k}.json", QUESTIONS) for k in "abc"],
    )
    data = ShardDataset(write_data(tmp_path, tar(*images, *questions)), "train", 64)
    assert data.image_keys == ["a", "b", "c"] and not data.faults


def test_keys_with_dots_are_samples_where_their_first_part_is_none(tmp_path: Path) -> None:
    data = ShardDataset(
        write_data(tmp_path, tar(*whole("a.1"), *whole("a.2"), *whole("v1.0/b"))), "train", 64
    )
    assert data.image_keys == ["a.1", "a.2", "v1.0/b"] and not data.faults


def test_a_key_in_two_shards_is_two_samples_unless_their_bytes_are_the_same(tmp_path: Path) -> None:
    other = [("a.json", QUESTIONS), ("a.png", png(7))]
    write_data(tmp_path / "in", tar(*whole("a")), tar(*other), tar(*whole("a"), *whole("b")))
    data = ShardDataset(tmp_path / "in", "train", 64)
    assert data.image_keys == ["a", "a@train-000001", "b"]
    assert data.faults == [Fault("train-000002.tar", "a", "is in train-000000.tar as well", lost=0)]
    index, _ = reshard(str(tmp_path / "in"), tmp_path / "out", 5)
    assert sum(shard.samples for shard in index.splits["train"]) == 3


@pytest.mark.parametrize(
    "name", ["a b", "Ä", "A\u0308", "a#1", "100%", "it's", "a[1]", "12:30", "dir/a", "./a"]
)
def test_any_key_is_a_sample_and_can_be_resharded(name: str, tmp_path: Path) -> None:
    write_data(tmp_path / "in", tar(*whole(name), *whole("b")))
    data = ShardDataset(tmp_path / "in", "train", 64)
    assert data.image_keys == [name, "b"] and not data.faults
    reshard(str(tmp_path / "in"), tmp_path / "out", 5)
    again = ShardDataset(tmp_path / "out", "train", 64)
    assert [image for image, _ in again.raw(range(2))] == [image for image, _ in data.raw(range(2))]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["splits"]["train"][0]["samples"] == 2
