"""Geometry: tiles, capacity and mipmaps of images of any size, compared with brute force over pixels."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.pyramid import Pyramid, fit, mipmaps

PYRAMIDS = (
    Pyramid(64, 3, 8),
    Pyramid(64, 3, 8, (2,)),
    Pyramid(64, 3, 4, (4, 2, 1)),
    Pyramid(96, 2, 16, (3, 1)),
    Pyramid(32, 1, 8),
)
SIDES = st.integers(1, 64)


def valid_pixels(height: int, width: int, side: int) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:height, :width] = True
    return mask


def any_below(mask: Tensor, factor: int) -> Tensor:
    """Whether any pixel of each factor x factor block is set."""
    rows, columns = (n // factor for n in mask.shape)
    return mask.view(rows, factor, columns, factor).any(3).any(1)


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=str)
def test_the_tiles_of_a_level_cover_every_pixel_of_the_canvas_once(pyramid: Pyramid) -> None:
    for level in range(pyramid.levels):
        covered = torch.zeros(pyramid.size, pyramid.size)
        for x0, y0, x1, y1 in (pyramid.tile_box[pyramid.tile_level == level] * pyramid.size).long().tolist():
            covered[y0:y1, x0:x1] += 1
        assert covered.eq(1).all()


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=str)
def test_the_glance_is_the_last_tile_and_the_whole_coarsest_level(pyramid: Pyramid) -> None:
    assert pyramid.glance == pyramid.tiles - 1 == len(pyramid.tile_level) - 1
    assert pyramid.tile_level.diff().ge(0).all()
    assert (pyramid.tile_level == pyramid.levels - 1).nonzero().tolist() == [[pyramid.glance]]
    assert pyramid.tile_box[pyramid.glance].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=str)
def test_a_crop_holds_the_pixels_of_its_tiles_box(pyramid: Pyramid) -> None:
    for tile, (x0, y0, x1, y1) in enumerate(pyramid.tile_box.tolist()):
        side = pyramid.size >> int(pyramid.tile_level[tile])
        image = torch.arange(side * side).view(1, 1, side, side)
        box = image[:, :, round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)]
        assert pyramid.crop(image, tile).equal(box)


@pytest.mark.parametrize("pyramid", PYRAMIDS[:3], ids=str)
@given(height=SIDES, width=SIDES)
def test_cells_and_capacity_count_the_cells_with_any_valid_pixel(
    pyramid: Pyramid, height: int, width: int
) -> None:
    size = torch.tensor([[height, width]])
    cells, capacity, pixels = pyramid.cells(size)[0], pyramid.capacity(size)[0], pyramid.pixels(size)[0]
    mask = valid_pixels(height, width, pyramid.size)
    for tile in range(pyramid.tiles):
        level = any_below(mask, 1 << int(pyramid.tile_level[tile]))
        crop = pyramid.crop(level[None, None], tile)[0, 0]
        seen = any_below(crop, pyramid.stride)
        assert pixels[tile].prod() == crop.sum()
        assert cells[tile].tolist() == [int(seen.any(1).sum()), int(seen.any(0).sum())]
        assert capacity[tile] == seen.sum()
    assert capacity[pyramid.glance] >= 1


@pytest.mark.parametrize("method", ["pixels", "window", "cells", "capacity"])
def test_what_is_remembered_of_a_single_size_is_its_own(method: str) -> None:
    pyramid, halo = Pyramid(64, 3, 8), Pyramid(64, 3, 8, halo=1)
    sizes = torch.tensor([[64, 64], [64, 40], [40, 64]])
    for of in (pyramid, halo):
        wanted = getattr(of, method)(sizes)
        for _ in range(2):
            for row in range(len(sizes)):
                found = getattr(of, method)(sizes[row : row + 1])
                assert found.equal(wanted[row : row + 1])
                found.zero_()  # nobody else's


def test_images_of_a_batch_do_not_share_their_geometry() -> None:
    pyramid = PYRAMIDS[1]
    size = torch.tensor([[64, 64], [3, 60], [33, 1]])
    alone = torch.cat([pyramid.cells(row[None]) for row in size])
    assert pyramid.cells(size).equal(alone)


@given(height=st.integers(1, 32), width=st.integers(1, 32))
def test_a_mipmaps_pixel_is_the_mean_of_the_valid_pixels_below_it(height: int, width: int) -> None:
    size = torch.tensor([[height, width], [32, 32]])
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(height * 33 + width))
    levels = mipmaps(image, size, 4)
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]
    mask = torch.stack([valid_pixels(h, w, 32) for h, w in size.tolist()])[:, None].double()
    for level, made in enumerate(levels):
        block = 1 << level
        blocks = (image * mask).unfold(2, block, block).unfold(3, block, block).sum((-1, -2))
        count = mask.unfold(2, block, block).unfold(3, block, block).sum((-1, -2))
        assert made.double().sub(blocks / count.clamp(min=1)).abs().max() < 1e-6


@given(height=st.integers(1, 32), width=st.integers(1, 32))
def test_a_constant_image_stays_constant_to_its_ragged_edges(height: int, width: int) -> None:
    size = torch.tensor([[height, width]])
    for level, made in enumerate(mipmaps(torch.full((1, 1, 32, 32), 0.7), size, 4)):
        valid = any_below(valid_pixels(height, width, 32), 1 << level)
        assert made[0, 0][valid].sub(0.7).abs().max() < 1e-6
        assert made[0, 0][~valid].eq(0).all()


def test_a_whole_image_has_the_same_mipmaps_alone_as_beside_a_smaller_one() -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    beside = mipmaps(image, torch.tensor([[32, 32], [20, 32]]), 4)
    alone = mipmaps(image[:1], torch.tensor([[32, 32]]), 4)
    assert all(a[0].equal(b[0]) for a, b in zip(alone, beside, strict=True))


def test_what_lies_in_the_padding_does_not_show() -> None:
    size = torch.tensor([[21, 13]])
    image = torch.rand(1, 3, 32, 32)
    dirty = image.masked_fill(~valid_pixels(21, 13, 32), 9.0)
    for clean, made in zip(mipmaps(image, size, 3), mipmaps(dirty, size, 3), strict=True):
        assert clean.equal(made)


@given(height=st.integers(1, 200), width=st.integers(1, 200), size=st.integers(1, 96))
def test_fit_never_enlarges_and_keeps_the_aspect(height: int, width: int, size: int) -> None:
    _, rows, columns = fit(Image.new("RGB", (width, height)), size).shape
    if max(height, width) <= size:
        assert (rows, columns) == (height, width)
    else:
        assert max(rows, columns) == size
        scale = size / max(height, width)
        assert abs(rows - max(1, height * scale)) <= 0.5 and abs(columns - max(1, width * scale)) <= 0.5


def test_fit_gives_the_pixels_of_an_image_that_fits_and_the_mean_of_one_that_does_not() -> None:
    pixels = torch.randint(0, 256, (3, 8, 6), dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert fit(image, 8).equal(pixels) and fit(image, 8).dtype == torch.uint8
    means = pixels.float().view(3, 4, 2, 3, 2).mean((2, 4))
    assert fit(image, 4).float().sub(means).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_fit_reads_images_of_any_mode_as_rgb(mode: str) -> None:
    assert fit(Image.new(mode, (5, 4)), 64).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("size", "levels", "stride", "grid", "says"),
    [
        (60, 3, 8, (1,), r"pyramid\.size=60.*allowed: multiples of 32 "),
        (64, 5, 8, (1,), r"pyramid\.size=64 cannot hold level 4.*allowed: multiples of 128 such as 128"),
        (
            64,
            3,
            8,
            (3, 1, 1),
            r"pyramid\.size=64 cannot hold level 0 as 3 x 3 tiles.*allowed: multiples of 96 such as 96",
        ),
        (64, 3, 8, (2, 2, 2), r"pyramid\.grid=\[2, 2, 2\].*allowed: .* 1 for the last"),
        (64, 3, 8, (2, 1), r"pyramid\.grid=\[2, 1\] does not fit 3 levels.*allowed"),
        (64, 3, 8, (0, 1, 1), r"pyramid\.grid=\[0, 1, 1\].*allowed"),
        (64, 0, 8, (), r"levels=0.*at least 1"),
        (0, 1, 8, (), r"pyramid\.size=0.*at least 1"),
        (64, 1, 0, (), r"stride=0.*at least 1"),
    ],
)
def test_a_pyramid_that_cannot_be_is_refused_with_what_is_allowed(
    size: int, levels: int, stride: int, grid: tuple[int, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Pyramid(size, levels, stride, grid)


def test_the_size_that_a_refusal_suggests_is_allowed() -> None:
    assert Pyramid(128, 5, 8).tiles == 5 and Pyramid(48, 1, 8).tiles == 1
    assert Pyramid(48, 2, 8, (3, 1)).tiles == 10


def test_each_level_is_half_as_large_as_the_one_before() -> None:
    pyramid = PYRAMIDS[0]
    assert all(pyramid.side(a) == 2 * pyramid.side(b) for a, b in pairwise(range(pyramid.levels)))
