"""Claims about the cache: its maps are the encoder's, as good as pixels, and never used for another encoder
or other images."""

import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pyrskip.data import cache
from pyrskip.data.cache import CachedDataset, check_cache, fingerprint, write_cache
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.data.shards import SPLITS
from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.models.tiles import levels_of
from pyrskip.models.vision import VisionEncoder
from pyrskip.sample import Sample
from pyrskip.stages import run_stages
from pyrskip.training.trainer import TrainerConfig, build_trainer
from tests.configs import same, tiny, weights
from tests.models import tiny_model

SIDE = 64


@pytest.fixture(scope="module")
def model() -> NativeModel:
    return tiny_model((2, 2, 1))


def write(model: NativeModel, data: Path, directory: Path) -> dict[str, object]:
    torch.manual_seed(0)
    made = fingerprint(model.config.vision, model.vision, model.pyramid, data)
    trainer = build_trainer(TrainerConfig(quiet=True), directory)
    splits = {split: ShardDataset(data, split, SIDE) for split in SPLITS}
    write_cache(trainer, model.vision, model.pyramid, splits, directory, made, images=5, workers=0)
    return made


@pytest.fixture(scope="module")
def cached(model: NativeModel, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "IMAGES_PER_FILE", 10)
        write(model, tiny_data, directory)
    return directory


def test_cached_maps_are_the_encoders_in_half_precision_and_the_glance_is_as_it_was(
    model: NativeModel, tiny_data: Path, cached: Path
) -> None:
    plain = ShardDataset(tiny_data, "gate", SIDE)
    quick = CachedDataset(plain, cached, "gate", model.pyramid)
    assert len(quick) == len(plain) == 24
    rows = [3, 20, 11]
    seen, read = (collate([data[i] for i in rows], SIDE) for data in (plain, quick))
    assert (read.questions, read.keys, read.image_keys) == (seen.questions, seen.keys, seen.image_keys)
    assert read.size.equal(seen.size) and read.image_of.equal(seen.image_of) and not read.image.any()
    keep = torch.rand(len(seen), model.pyramid.tiles, generator=torch.Generator().manual_seed(0)) < 0.3
    encoded = model.vision.encoded
    wanted, got = model.encode(seen, keep), model.encode(read, keep)
    assert model.vision.encoded - encoded == int(wanted.encoded.sum())
    assert got.encoded.equal(wanted.encoded)
    for tile, (a, b) in enumerate(zip(got.maps, wanted.maps, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        glance = tile == model.pyramid.glance  # what gates decide on: a server does not read it from a cache
        assert torch.allclose(a, b, rtol=1e-6 if glance else 1e-3, atol=1e-6 if glance else 1e-4)


def test_images_of_any_size_come_back_from_a_cache(
    model: NativeModel, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: ShardDataset, indices: Sequence[int]) -> list[Sample | None]:
        return [
            s and replace(s, image=s.image[:, : 9 + i, : 64 - i])
            for i, s in zip(indices, whole(self, indices), strict=True)
        ]

    whole = ShardDataset.__getitems__
    monkeypatch.setattr(ShardDataset, "__getitems__", cut)
    write(model, tiny_data, tmp_path)
    plain = ShardDataset(tiny_data, "val", SIDE)
    quick = CachedDataset(plain, tmp_path, "val", model.pyramid, glances=True)
    seen, read = (collate([data[i] for i in range(24)], SIDE) for data in (plain, quick))
    assert read.glance is not None and read.glance.equal(levels_of(model.pyramid, seen)[-1])
    asked = model.pyramid.capacity(seen.size)[seen.image_of]
    assert torch.allclose(model.loglik(read, asked), model.loglik(seen, asked), atol=0.05)


def test_what_cannot_be_read_is_left_out_and_costs_nothing_else(
    model: NativeModel, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: ShardDataset, indices: Sequence[int]) -> list[Sample | None]:
        return [None if i in (0, 7, 23) else s for i, s in zip(indices, whole(self, indices), strict=True)]

    whole = ShardDataset.__getitems__
    monkeypatch.setattr(ShardDataset, "__getitems__", torn)
    write(model, tiny_data, tmp_path)
    monkeypatch.undo()
    quick = CachedDataset(ShardDataset(tiny_data, "test", SIDE), tmp_path, "test", model.pyramid)
    samples = [quick[i] for i in range(len(quick))]
    assert [i for i, sample in enumerate(samples) if sample is None] == [0, 7, 23]
    batch = collate([ShardDataset(tiny_data, "test", SIDE)[8]], SIDE)
    kept = samples[8]
    assert kept is not None and kept.maps is not None
    assert torch.allclose(
        kept.maps[-1].float(),
        model.encode(batch, torch.ones(len(batch), 9) > 0).maps[-1][0].permute(1, 2, 0),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_killed_run_keeps_the_files_it_has_written(
    model: NativeModel, tiny_data: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IMAGES_PER_FILE", 10)
    again = tmp_path / "again"
    shutil.copytree(cached, again)
    (again / "cache.json").unlink()
    (again / "val-000001.safetensors").unlink()
    encoded = model.vision.encoded
    write(model, tiny_data, again)
    assert model.vision.encoded - encoded == 10 * model.pyramid.tiles
    assert (again / "val-000001.safetensors").read_bytes() == (cached / "val-000001.safetensors").read_bytes()


def test_a_loader_worker_reads_the_same_maps(model: NativeModel, tiny_data: Path, cached: Path) -> None:
    quick = CachedDataset(ShardDataset(tiny_data, "train", SIDE), cached, "train", model.pyramid)
    loader = torch.utils.data.DataLoader(quick, 6, num_workers=2, collate_fn=partial(collate, side=SIDE))
    for number, batch in enumerate(loader):
        here = collate([quick[i] for i in range(6 * number, 6 * number + 6)], SIDE)
        assert all(a.equal(b) for a, b in zip(batch.maps, here.maps or (), strict=True))


def test_a_stale_cache_is_refused(model: NativeModel, tiny_data: Path, cached: Path) -> None:
    vision, pyramid = model.vision, model.pyramid
    made = fingerprint(model.config.vision, vision, pyramid, tiny_data)
    check_cache(cached, made)
    torch.manual_seed(5)
    others = {
        "vision.weights": fingerprint(
            model.config.vision, VisionEncoder(model.config.vision), pyramid, tiny_data
        ),
        "vision.out_index": fingerprint(
            replace(model.config.vision, out_index=1), vision, pyramid, tiny_data
        ),
        "pyramid.grid": fingerprint(model.config.vision, vision, tiny_model().pyramid, tiny_data),
        "pyramid.levels": fingerprint(model.config.vision, vision, tiny_model(levels=2).pyramid, tiny_data),
        "data": made | {"data": "f" * 64},
    }
    for key, other in others.items():
        with pytest.raises(UserError, match=f"is stale: made with {key}="):
            check_cache(cached, other)


@pytest.mark.parametrize("harm", ["missing", "cut", "not json", "other format", "index"])
def test_a_cache_that_is_not_whole_is_refused(
    harm: str, tiny_data: Path, cached: Path, tmp_path: Path, model: NativeModel
) -> None:
    made = fingerprint(model.config.vision, model.vision, model.pyramid, tiny_data)
    broken = tmp_path / "cache"
    shutil.copytree(cached, broken)
    file, index = broken / "gate-000000.safetensors", broken / "cache.json"
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "index":
        index.unlink()
    else:
        index.write_text(
            {"not json": "{", "other format": index.read_text().replace('"format": 2', '"format": 3')}[harm]
        )
    with pytest.raises(UserError):
        check_cache(broken, made)


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    model: NativeModel, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    encoded = model.vision.encoded
    with pytest.raises(UserError, match=r"GB free, and maps of 96 images need up to"):
        write(model, tiny_data, tmp_path)
    assert model.vision.encoded == encoded


@pytest.mark.slow
def test_a_run_trains_and_decides_on_cached_maps_as_on_pixels(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = ("trainer.quiet=false", "stages=[data,cache,flex,rollouts]")
    first = run_stages(tiny(tmp_path, "name=cached", "data.cache=run", *short), {})
    maps = weights(first / "cache" / "gate-000000.safetensors")
    assert maps["size"].shape == (12, 2) and maps["tile_0"].dtype == torch.float16
    plain = run_stages(tiny(tmp_path, "name=plain", *short), {})
    for part in ("flex/model", "rollouts/gate/table"):
        a, b = (weights(root / f"{part}.safetensors") for root in (first, plain))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.allclose(a[name].double(), b[name].double(), rtol=0.02, atol=0.02), name
    for stage in ("flex", "rollouts"):
        shutil.rmtree(first / stage)
    capfd.readouterr()
    later = run_stages(
        tiny(tmp_path, "name=later", f"from={first}", "data.cache=run", "flex.seed=2", *short), {}
    )
    assert (
        f"cache: done before, in {first}/cache" in capfd.readouterr().err and not (later / "cache").exists()
    )
    other = run_stages(tiny(tmp_path, "name=other", f"data.cache={first}/cache", "flex.seed=2", *short), {})
    assert same(later / "flex" / "model.safetensors", other / "flex" / "model.safetensors")


def test_cached_maps_are_float32s_whatever_the_run_computes_in(tmp_path: Path) -> None:
    short = ("data.cache=run", "stages=[data,cache]", "data.limit=6")
    plain = run_stages(tiny(tmp_path, "name=plain", *short), {})
    low = run_stages(tiny(tmp_path, "name=low", "trainer.precision=bf16-mixed", *short), {})
    assert same(plain / "cache" / "gate-000000.safetensors", low / "cache" / "gate-000000.safetensors")


def test_a_stale_cache_is_refused_before_any_work(tmp_path: Path) -> None:
    first = run_stages(tiny(tmp_path, "name=cached", "data.cache=run", "stages=[data,cache]"), {})
    wrong = tiny(
        tmp_path, "name=other", f"data.cache={first}/cache", "vision.out_index=1", "pyramid.levels=2"
    )
    with pytest.raises(UserError, match="is stale: made with vision.out_index=2, this run has 1"):
        run_stages(wrong, {})
    with pytest.raises(UserError, match="holds no cache.json"):
        run_stages(tiny(tmp_path, "name=other", f"data.cache={tmp_path}/none"), {})
    assert not (tmp_path / "other").exists()


def test_maps_of_an_encoder_that_trains_are_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.cache=run with vision.frozen=false: maps would change"):
        tiny(tmp_path, "data.cache=run", "vision.frozen=false")
