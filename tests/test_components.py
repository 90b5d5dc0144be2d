"""Claims about the principal components of an encoder's map: they are those, and a cache's are its users'."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.models.tiles import encode_tiles, moments
from pyrskip.models.vision import VisionConfig, VisionEncoder
from pyrskip.pyramid import Pyramid
from pyrskip.stages import run_stages
from tests.configs import tiny, weights

SMALL = "mobilenetv3_small_050"
STAGES = "stages=[data,cache,flex,rollouts]"


def test_they_are_the_directions_of_most_variance(tiny_data: Path) -> None:
    torch.manual_seed(0)
    vision = VisionEncoder(VisionConfig(SMALL, components=3)).eval()
    pyramid = Pyramid(64, 2, vision.stride)
    batch = collate(ShardDataset(tiny_data, "train", 64).__getitems__(range(8)), 64)
    every = torch.ones(len(batch), pyramid.tiles, dtype=torch.bool)
    assert vision.components is not None
    share = vision.components.fit(*moments(vision.whole(), pyramid, [batch]))
    # each tile counts as much as any other, so the finer one's cells count less: by numpy's SVD of the
    # weighed cells
    maps = [
        m.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        for m in encode_tiles(vision.whole(), pyramid, batch, every).maps
    ]
    mean = np.mean([m.mean(0) for m in maps], axis=0)
    weighed = np.concatenate([(m - mean) / np.sqrt(len(m) * len(maps)) for m in maps])
    _, size, directions = np.linalg.svd(weighed, full_matrices=False)
    assert share == pytest.approx((size[:3] ** 2).sum() / (size**2).sum(), rel=1e-4)
    for kept, m in zip(encode_tiles(vision, pyramid, batch, every).maps, maps, strict=True):
        assert kept.shape[1] == vision.channels == 3
        wanted = np.abs((m - mean) @ directions[:3].T)  # a direction's sign is anybody's
        assert np.allclose(
            kept.permute(0, 2, 3, 1).flatten(0, 2).abs().numpy(), wanted, atol=1e-3 * wanted.max()
        )


@pytest.mark.slow
def test_a_run_is_the_same_with_a_cache_of_them_as_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    five = ("vision.components=5", STAGES, "trainer.quiet=false")
    first = run_stages(tiny(tmp_path, "name=cached", "data.cache=run", *five), {})
    assert "5 components of 40 channels keep" in capfd.readouterr().err
    assert weights(first / "cache" / "gate-000000.safetensors")["tile_0"].shape[1] == 5
    plain = run_stages(tiny(tmp_path, "name=plain", *five), {})
    for part in ("flex/model", "rollouts/gate/table"):
        a, b = (weights(root / f"{part}.safetensors") for root in (first, plain))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.allclose(a[name].double(), b[name].double(), rtol=0.02, atol=0.02), name
    # what decides on pixels later sees the components that the cache was written with
    saved, held = (
        NativeModel.load(first / "flex").vision.components,
        weights(first / "cache" / "components.safetensors"),
    )
    assert saved is not None and saved.basis.equal(held["basis"]) and saved.mean.equal(held["mean"])
    other = run_stages(tiny(tmp_path, "name=other", f"data.cache={first}/cache", "flex.seed=2", *five), {})
    assert weights(other / "flex" / "model.safetensors")["vision.components.basis"].equal(held["basis"])


def test_a_cache_of_others_is_refused(tmp_path: Path) -> None:
    first = run_stages(
        tiny(tmp_path, "name=five", "data.cache=run", "vision.components=5", "stages=[data,cache]"), {}
    )
    none = run_stages(tiny(tmp_path, "name=none", "data.cache=run", "stages=[data,cache]"), {})
    for cache, wanted, made in ((first, "4", "5"), (first, "null", "5"), (none, "5", "None")):
        with pytest.raises(UserError, match=f"is stale: made with vision.components={made}, this run has"):
            run_stages(
                tiny(tmp_path, "name=other", f"data.cache={cache}/cache", f"vision.components={wanted}"), {}
            )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vision.components=0", "vision.components=0 with frozen=True: allowed: null, or at least 1"),
        (
            "vision.frozen=false",
            "vision.components=3 with frozen=False: allowed: null, or at least 1 with frozen=true",
        ),
        (
            "model.name=remote",
            "vision.components=3 with model.name=remote, for which nothing is fitted; allowed: null",
        ),
    ],
)
def test_what_cannot_be_is_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, "vision.components=3", override)


def test_more_than_there_are_channels_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="vision.components=41: the map has 40 channels; allowed: 1 to 40, or null"
    ):
        run_stages(tiny(tmp_path, "name=many", "vision.components=41"), {})
    assert not (tmp_path / "many").exists()
