"""Claims about data directories that are there already: used where they are, mixed, and written again in
other shards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrskip.data.gather import gather
from pyrskip.data.reader import ShardDataset
from pyrskip.data.reshard import reshard
from pyrskip.data.shards import SPLITS, DataConfig, ShardsConfig, parse_index, prepare
from pyrskip.errors import UserError
from pyrskip.stages import cache
from pyrskip.stages.cache import statistics
from tests.web import served


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data directories of easy-VQA that share images."""
    folder = tmp_path_factory.mktemp("two")
    prepare(DataConfig(limit=20, samples_per_shard=5), folder / "a")
    prepare(DataConfig(limit=12, samples_per_shard=5, seed=3), folder / "b")
    return folder / "a", folder / "b"


def same(a: ShardDataset, b: ShardDataset) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(
        x and y and x.key == y.key and x.questions == y.questions and torch.equal(x.image, y.image)
        for x, y in pairs
    )


def test_one_directory_is_read_where_it_is(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two[0].parent)
    gather(ShardsConfig(paths=("a",)), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["index.json"]
    for split in SPLITS:
        assert same(ShardDataset(tmp_path / "data", split, 64), ShardDataset(two[0], split, 64))


def test_statistics_are_of_images_of_every_part_of_a_mixture(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather(ShardsConfig(paths=tuple(map(str, two))), tmp_path)
    data = ShardDataset(tmp_path, "train", 64)

    def drawn() -> list[list[str]]:
        return [list(batch.image_keys) for batch in statistics(data, 4, 64)]

    assert [key for keys in drawn() for key in keys] == data.image_keys  # of few images, all
    monkeypatch.setattr(cache, "STATISTICS", 10)
    keys = [key for keys in drawn() for key in keys]
    assert [len(batch) for batch in drawn()] == [4, 4, 2]
    assert keys == sorted(set(keys), key=data.image_keys.index)
    assert {key.split("-")[0] for key in keys} == {"0", "1"}


def test_a_mixture_holds_every_part_under_its_own_keys(two: tuple[Path, Path], tmp_path: Path) -> None:
    gather(ShardsConfig(paths=tuple(map(str, two)), weights=(1.0, 3.0)), tmp_path)
    data = ShardDataset(tmp_path, "train", 64)
    keys = [
        f"{part}-{key}" for part, path in enumerate(two) for key in ShardDataset(path, "train", 64).image_keys
    ]
    assert data.image_keys == keys and not data.faults
    assert data.parts.weights == (1.0, 3.0)
    assert data.parts.shards == ((5, 5, 5, 5), (5, 5, 2))
    assert [sample and sample.key for sample in data.__getitems__([31, 0, 25])] == [
        keys[31],
        keys[0],
        keys[25],
    ]


def test_without_weights_a_mixture_is_as_its_images_are(two: tuple[Path, Path], tmp_path: Path) -> None:
    gather(ShardsConfig(paths=tuple(map(str, two))), tmp_path / "mixed")
    assert [part.weight for part in parse_index(tmp_path / "mixed").parts] == [20, 12]
    gather(
        ShardsConfig(paths=(str(tmp_path / "mixed"), str(two[0])), weights=(1.0, 1.0)),
        tmp_path / "of mixtures",
    )
    parts = parse_index(tmp_path / "of mixtures").parts
    assert [part.weight for part in parts] == [0.625, 0.375, 1.0]
    assert [part.root for part in parts] == [str(two[0]), str(two[1]), str(two[0])]


def test_a_part_may_be_on_a_server(two: tuple[Path, Path], tmp_path: Path) -> None:
    with served(two[1]) as site:
        gather(ShardsConfig(paths=(str(two[0]), site.url)), tmp_path)
        data = ShardDataset(tmp_path, "train", 64)
        assert len([sample for sample in data if sample is not None]) == 32
        assert [sample and sample.questions for sample in data] == list(data.questions())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"paths": ()}, r"data.shards.paths=\[\]"),
        ({"paths": ("a", "b"), "weights": (1.0,)}, "data.shards.weights=.*each of 2 paths"),
        ({"paths": ("a",), "weights": (0.0,)}, "data.shards.weights="),
    ],
)
def test_a_wrong_mixture_is_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DataConfig(source="shards", shards=ShardsConfig(**bad))


def test_what_holds_no_shards_is_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no index.json"):
        gather(ShardsConfig(paths=(str(tmp_path / "nowhere"),)), tmp_path / "out")
    index = json.loads((two[0] / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"splits": index["splits"] | {"train": []}}))
    with pytest.raises(UserError, match=r"lists no shard to train on"):
        gather(ShardsConfig(paths=(str(tmp_path),)), tmp_path / "out")
    with pytest.raises(UserError, match=r"data.limit=3 cannot cut shards"):
        DataConfig(source="shards", limit=3, shards=ShardsConfig(paths=("a",)))


@pytest.mark.parametrize("change", [{"root": 3}, {"weight": 0}, {"weight": "1"}, {"root": "x", "colour": 1}])
def test_an_index_of_malformed_parts_is_refused(
    change: dict[str, Any], two: tuple[Path, Path], tmp_path: Path
) -> None:
    index = json.loads((two[0] / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"parts": [change]}))
    with pytest.raises(UserError, match="cannot be read as an index"):
        parse_index(tmp_path)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("number", [2, 7, 100])
def test_resharding_changes_nothing_but_the_shards(
    number: int, remote: bool, two: tuple[Path, Path], tmp_path: Path
) -> None:
    with served(two[0]) as site:
        index, faults = reshard(site.url if remote else str(two[0]), tmp_path / "out", number)
    assert not faults
    for split in SPLITS:
        data = ShardDataset(two[0], split, 64)
        assert same(ShardDataset(tmp_path / "out", split, 64), data)
        assert len(index.splits[split]) == -(-len(data) // number)
        assert all(shard.samples <= number for shard in index.splits[split])


def test_resharding_back_gives_the_same_bytes(two: tuple[Path, Path], tmp_path: Path) -> None:
    reshard(str(two[0]), tmp_path / "twos", 2)
    reshard(str(tmp_path / "twos"), tmp_path / "fives", 5)
    assert {p.name: p.read_bytes() for p in two[0].iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "fives").iterdir()
    }


def test_resharding_names_what_is_broken_and_loses_no_other(two: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(two[0], source)
    (source / "train-000000.tar").write_bytes((source / "train-000000.tar").read_bytes()[:5000])
    (source / "train-000001.tar").unlink()
    broken = bytearray((source / "train-000002.tar").read_bytes())
    start, length = ShardDataset(two[0], "train", 64)._spans[10, :2].tolist()
    broken[start : start + length] = bytes(length)
    (source / "train-000002.tar").write_bytes(broken)
    _, faults = reshard(str(source), tmp_path / "out", 100)
    keys = ShardDataset(two[0], "train", 64).image_keys
    kept = ShardDataset(tmp_path / "out", "train", 64).image_keys
    assert set(kept) == set(keys[: len(kept) - 9]) | set(keys[11:])
    assert {fault.shard for fault in faults} == {"train-000000.tar", "train-000001.tar", "train-000002.tar"}
    assert [fault.key for fault in faults if fault.shard == "train-000002.tar"] == [keys[10]]


def test_resharding_onto_shards_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds shards already"):
        reshard(str(two[0]), two[1], 3)
    with pytest.raises(UserError, match="samples_per_shard=0"):
        reshard(str(two[0]), tmp_path, 0)
