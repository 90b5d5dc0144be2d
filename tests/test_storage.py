"""Claims about shards at URLs: read in ranges, or whole where a server knows none; what fails loses nothing
else."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from pyrskip.data import storage
from pyrskip.data.faults import FaultLog
from pyrskip.data.gather import gather
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.data.shards import ShardsConfig
from pyrskip.data.storage import LocalStorage, RemoteStorage, check_url, expand, open_file, open_storage
from pyrskip.errors import UserError
from tests.web import Site, served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "WAIT_SECONDS", 0.001)
    monkeypatch.setenv("PYRSKIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def site(tiny_data: Path) -> Iterator[Site]:
    with served(tiny_data) as site:
        yield site


def at(url: str, directory: Path) -> Path:
    """A data directory whose shards are at the URL."""
    gather(ShardsConfig(paths=(url,)), directory)
    return directory


def same(data: ShardDataset, tiny_data: Path, split: str = "train") -> bool:
    here = ShardDataset(tiny_data, split, 64)
    samples = zip(data.__getitems__(range(len(here))), here, strict=True)
    pairs = [(a, b) for a, b in samples if a is not None and b is not None]
    return len(pairs) == len(here) and all(a.key == b.key and torch.equal(a.image, b.image) for a, b in pairs)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_gives_what_the_disk_does(
    ranges: bool, site: Site, tiny_data: Path, tmp_path: Path
) -> None:
    site.ranges = ranges
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    site.asked.clear()
    assert same(data, tiny_data)
    sent = sum(count for name, count in site.asked if name.endswith(".tar"))
    whole = sum(path.stat().st_size for path in tiny_data.glob("train-*.tar"))
    cached = list((tmp_path / "cache").rglob("*.tar"))
    if ranges:
        assert sent < whole and not cached
    else:
        assert [path.read_bytes() for path in cached] == [
            path.read_bytes() for path in tiny_data.glob("train-*.tar")
        ]


def test_an_object_store_gives_what_the_disk_does(tiny_data: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in tiny_data.iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert same(ShardDataset(at("memory://bucket", tmp_path), "val", 64), tiny_data, "val")


@pytest.mark.parametrize("ranges", [True, False])
def test_loader_workers_read_from_a_server(ranges: bool, site: Site, tiny_data: Path, tmp_path: Path) -> None:
    site.ranges = ranges
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    assert data[0] is not None  # the parent's connection is not the workers'
    loader = DataLoader(data, 6, num_workers=2, collate_fn=partial(collate, side=64), timeout=300)
    assert [key for batch in loader for key in batch.image_keys] == ShardDataset(
        tiny_data, "train", 64
    ).image_keys


def test_a_batch_is_one_round_of_requests(site: Site, tmp_path: Path) -> None:
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    data[0]
    site.asked.clear()
    data.__getitems__([3, 1, 4])
    assert len(site.asked) == 3


def test_a_shard_without_a_list_is_fetched_and_gone_through(
    site: Site, tiny_data: Path, tmp_path: Path
) -> None:
    directory = at(site.url, tmp_path / "data")
    site.down = {path.name for path in tiny_data.glob("train-*.json")}
    assert same(ShardDataset(directory, "train", 64), tiny_data)


@pytest.mark.parametrize("kind", ["down", "dies"])
def test_a_shard_that_cannot_be_read_is_named_and_loses_no_other(
    kind: str, site: Site, tiny_data: Path, tmp_path: Path
) -> None:
    directory = at(site.url, tmp_path / "data")
    log = FaultLog(tmp_path / "faults" / "train", 24, allowed=1.0)
    setattr(site, kind, {"train-000000.tar", "train-000000.json"})
    data = ShardDataset(directory, "train", 64, log)
    assert len(data) == 0
    (fault,) = log.read()
    assert (fault.shard, fault.key, fault.lost) == ("train-000000.tar", "", 24)
    assert same(ShardDataset(directory, "val", 64), tiny_data, "val")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_dies_half_way_costs_its_samples_and_is_tried_again(
    ranges: bool, site: Site, tiny_data: Path, tmp_path: Path
) -> None:
    site.ranges = ranges
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    site.dies = {"train-000000.tar"}
    site.asked.clear()
    assert data.__getitems__([0, 1]) == [None, None]
    assert len([name for name, _ in site.asked if name == "train-000000.tar"]) >= storage.TRIES
    assert [fault.key for fault in data.faults] == data.image_keys[:2]
    assert not list((tmp_path / "cache").rglob(".*.tmp"))
    site.dies = set()
    assert same(data, tiny_data)


def test_a_failure_that_passes_costs_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    data[0]
    site.down = {"train-000000.tar"}
    monkeypatch.setattr(storage.time, "sleep", lambda _: site.down.clear())
    assert data[1] is not None
    assert not data.faults


def test_several_processes_fetch_a_shard_once(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    data = ShardDataset(at(site.url, tmp_path / "data"), "train", 64)
    loader = DataLoader(data, 6, num_workers=2, collate_fn=partial(collate, side=64), timeout=300)
    site.asked.clear()
    assert sum(len(batch.image_keys) for batch in loader) == 24
    whole = [count for name, count in site.asked if name == "train-000000.tar"]
    # each process finds out for itself that there are no ranges
    assert len(whole) <= 2 + 1


@pytest.mark.parametrize(
    "url",
    [
        *(
            "pipe:cat /etc/passwd",
            "pipe://cat",
            "file:///etc/passwd",
            "simplecache::http://x/y",
            "http://x::file:///etc/passwd",
        ),
        *("python://x", "ssh://host/x", "github://a/b", "reference://x", "local:x"),
    ],
)
def test_only_plain_urls_are_opened(url: str, tmp_path: Path) -> None:
    for opening in (check_url, open_storage, open_file, expand, partial(at, directory=tmp_path)):
        with pytest.raises(UserError, match="may not be opened; allowed: .*https"):
            opening(url)


def test_an_index_cannot_point_to_a_command(tiny_data: Path, tmp_path: Path) -> None:
    text = (tiny_data / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace('"root": ""', '"root": "pipe:cat /etc/passwd"'))
    with pytest.raises(UserError, match="may not be opened"):
        ShardDataset(tmp_path, "train", 64)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match="'s3://bucket/x' needs a package: Install s3fs"):
        open_file("s3://bucket/x")


def test_a_short_local_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    good, short = LocalStorage(tmp_path).ranges([("a", 1, 3), ("a", 3, 9)])
    assert good == b"23"
    assert isinstance(short, EOFError)


def test_patterns_name_files_in_order(site: Site, tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.txt"):
        (tmp_path / name).write_text("")
    assert [os.path.basename(path) for path in expand(f"{tmp_path}/*.json")] == ["a.json", "b.json"]
    assert [os.path.basename(path) for path in expand(f"{tmp_path}/{{b,a}}.json")] == ["b.json", "a.json"]
    assert expand(f"{site.url}/index.json") == [f"{site.url}/index.json"]
    with pytest.raises(UserError, match="is no file that is there"):
        expand(f"{tmp_path}/*.tsv")


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYRSKIP_CACHE", str(tmp_path / "mine"))
    with served(tmp_path) as site:
        site.ranges = False
        (tmp_path / "x").write_bytes(b"123")
        assert RemoteStorage(site.url).local("x").is_relative_to(tmp_path / "mine")
