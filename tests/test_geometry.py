"""Claims about what inference computes without torch: it is what training computes with it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrskip.inference.arrays import pool
from pyrskip.models.projector import pool as torch_pool
from pyrskip.picture import Mipmaps
from pyrskip.pyramid import bins
from pyrskip.pyramid import mipmaps as torch_mipmaps
from tests.exports import PYRAMID
from tests.models import SIDE

sizes = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE))


@given(size=sizes, share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_geometry_of_arrays_is_that_of_tensors(size: tuple[int, int], share: tuple[float, float]) -> None:
    of_torch, of_numpy = torch.tensor([size, (SIDE, 5)]), np.array([size, (SIDE, 5)])
    cells = PYRAMID.cells(of_numpy)
    np.testing.assert_array_equal(PYRAMID.pixels(of_numpy), PYRAMID.pixels(of_torch).numpy(), strict=True)
    np.testing.assert_array_equal(cells, PYRAMID.cells(of_torch).numpy(), strict=True)
    np.testing.assert_array_equal(PYRAMID.capacity(of_numpy), PYRAMID.capacity(of_torch).numpy(), strict=True)
    for tile in np.flatnonzero(cells.all((0, 2))).tolist():
        pooled = (cells[:, tile] * share).round().astype(np.int64).clip(min=1)
        shape = int(pooled[:, 0].max()), int(pooled[:, 1].max())
        wanted = PYRAMID.where(of_torch, tile, torch.from_numpy(pooled), shape)
        for got, of in zip(PYRAMID.where(of_numpy, tile, pooled, shape), wanted, strict=True):
            np.testing.assert_array_equal(got, of.numpy(), strict=True)
        counts = cells[:, tile, 0], pooled[:, 0]
        of = bins(*map(torch.from_numpy, counts), shape[0], 8)
        np.testing.assert_array_equal(bins(*counts, shape[0], 8), of.numpy(), strict=True)


@settings(max_examples=40)
@given(size=sizes, seed=st.integers(0, 99))
def test_mipmaps_are_the_pyramids(size: tuple[int, int], seed: int) -> None:
    rows, columns = size
    image = np.random.default_rng(seed).integers(0, 256, (3, rows, columns), dtype=np.uint8)
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    canvas[0, :, :rows, :columns] = torch.from_numpy(image) / 255
    levels = torch_mipmaps(canvas, torch.tensor([size]), 3)
    made_of = Mipmaps(image.transpose(1, 2, 0), 3)
    for level, made in made_of.items():
        np.testing.assert_array_equal(made_of.rounded(level), (made * 255).round())
        height, width = made.shape[1:]
        wanted = levels[level][0].numpy()
        np.testing.assert_allclose(made, wanted[:, :height, :width], atol=1e-6)
        assert not wanted[:, height:].any() and not wanted[:, :, width:].any()


@given(
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)), share=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_pooling_is_the_projectors(cells: tuple[int, int], share: tuple[float, float]) -> None:
    size = [max(1, round(s * c)) for s, c in zip(share, cells, strict=True)]
    features = torch.randn(1, 5, *cells, generator=torch.Generator().manual_seed(0))
    wanted = torch_pool(features, torch.tensor([cells]), torch.tensor([size]))
    got = pool(features[0].numpy(), np.array(size))
    # in float32: either rounds two sums of at most 9 terms of size 4 by 9 x 2e-7 each
    np.testing.assert_allclose(got, wanted[0].flatten(1).T.numpy(), atol=1e-5)
