"""Geometry of an image pyramid: levels, tiles, capacity, pooling, mipmaps.

Axes: I images, B batch, T tiles, L levels, S canvas side in pixels, C channels.

Every image is fitted into the top left corner of a square canvas (never enlarged) and padded there, so that
what is valid of it is always a rectangle from (0, 0). Level 0 is the canvas itself and level l is 2^l times
smaller. A level is cut into g x g tiles (g = 1: the level is one tile); the coarsest level is always one
tile, the *glance*. Tiles are numbered finest level first, row by row, so the glance is tile T - 1.

Methods take numpy arrays and tensors alike and give back what they took, on its device: a service without
torch computes with this file, so torch is imported where it is needed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from math import lcm
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.picture import fitted

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "NDArray[Any]", "Tensor")
Method = TypeVar("Method", bound=Callable[..., Any])
SIZES = 256
"""Of single images, for which geometry is remembered."""


class Place(NamedTuple):
    """Where a tile lies: its level, the row and column of its first pixel and its side, in its level's
    pixels."""

    level: int
    row: int
    column: int
    side: int


def _remembered(method: Method) -> Method:
    """A method of sizes [I, 2] that keeps what it gave for a single one, as a tensor on the CPU: single
    questions ask for the same again and again, in arithmetic of a few numbers that takes dozens of calls."""

    @lru_cache(maxsize=SIZES)
    def of_one(pyramid: Pyramid, rows: int, columns: int) -> Any:
        import torch

        return method(pyramid, torch.tensor([[rows, columns]]))

    @wraps(method)
    def of(self: Pyramid, size: Any) -> Any:
        if isinstance(size, np.ndarray) or len(size) != 1 or size.device.type != "cpu":
            return method(self, size)
        return of_one(self, *size[0].tolist()).clone()

    return cast(Method, of)


@dataclass(frozen=True)
class Pyramid:
    """Which tiles an image is cut into.

    size: side of the canvas, pixels. levels: L >= 1. stride: pixels a side that one cell of the encoder's map
    covers. grid: g of each level, finest first; one number for every level but the glance is allowed as well.
    halo: cells around a tile that are encoded with it, where the image goes on; they give no tokens.
    """

    size: int
    levels: int
    stride: int
    grid: tuple[int, ...] = ()
    halo: int = 0

    def __post_init__(self) -> None:
        if self.levels < 1 or self.size < 1 or self.stride < 1:
            raise UserError(
                f"pyramid.size={self.size}, levels={self.levels}, stride={self.stride}: all must be at "
                "least 1"
            )
        if self.halo < 0:
            raise UserError(f"pyramid.halo={self.halo}: allowed: at least 0 cells around a tile")
        grid = tuple(self.grid) or (1,)
        if len(grid) == 1:
            grid = grid * (self.levels - 1) + (1,)
        if len(grid) != self.levels or grid[-1] != 1 or min(grid) < 1:
            raise UserError(
                f"pyramid.grid={list(self.grid)} does not fit {self.levels} levels; "
                "allowed: one number of at least 1 for each level, 1 for the last (the glance)"
            )
        object.__setattr__(self, "grid", grid)
        units = [(1 << level) * g * self.stride for level, g in enumerate(grid)]
        unit = lcm(*units)
        for level, g in enumerate(grid):
            if self.size % units[level]:
                fit = max(self.size // unit, 1) * unit
                raise UserError(
                    f"pyramid.size={self.size} cannot hold level {level} as {g} x {g} tiles at stride "
                    f"{self.stride}; "
                    f"allowed: multiples of {unit} such as {fit}, fewer levels, or a finer stride"
                )

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each of the T tiles lies."""
        return tuple(
            Place(level, row * self.side(level), column * self.side(level), self.side(level))
            for level, g in enumerate(self.grid)
            for row in range(g)
            for column in range(g)
        )

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        return np.array(self.places)

    @cached_property
    def _moved(self) -> dict[Any, Any]:
        """`_places` by device, copied there once."""
        return {}

    def _located(self, of: Array) -> Array:
        """`_places` as the other array, where that is."""
        if isinstance(of, np.ndarray):
            return self._places
        places: Array | None = self._moved.get(of.device)
        if places is None:
            places = self._moved[of.device] = _like(self._places, of)
        return places

    @cached_property
    def tile_level(self) -> Tensor:
        """[T] int64: the level of each tile."""
        import torch

        return torch.tensor([place.level for place in self.places])

    @cached_property
    def tile_corner(self) -> Tensor:
        """[T, 2] int64: row and column of each tile's first pixel, in pixels of its own level."""
        import torch

        return torch.tensor([place[1:3] for place in self.places])

    @cached_property
    def tile_box(self) -> Tensor:
        """[T, 4] float: x0, y0, x1, y1 of each tile on the canvas, 0..1."""
        import torch

        scale = (2.0**self.tile_level / self.size)[:, None]
        low = self.tile_corner.flip(-1) * scale
        return torch.cat([low, low + torch.tensor([place[3:] for place in self.places]) * scale], dim=-1)

    @property
    def tiles(self) -> int:
        return sum(g * g for g in self.grid)

    @property
    def glance(self) -> int:
        """The index of the glance, the one tile that is always encoded."""
        return self.tiles - 1

    def side(self, level: int) -> int:
        """Side of one tile of this level, in that level's pixels."""
        return self.size // (1 << level) // self.grid[level]

    @_remembered
    def pixels(self, size: Array) -> Array:
        """Valid rows and columns of every tile, in its level's pixels. size [I, 2] int64 -> [I, T, 2], 0 in
        padding."""
        places = self._located(size)
        level, corner, side = places[:, :1], places[:, 1:3], places[:, 3:]
        pixels = (-(-size[:, None] // (1 << level)) - corner).clip(min=0).clip(max=side)
        valid: Array = pixels * (pixels > 0).all(-1)[..., None]
        return valid

    @_remembered
    def window(self, size: Array) -> Array:
        """What is encoded for every tile, its halo included, in its level's pixels: first row and column,
        valid rows and columns. size [I, 2] int64 -> [I, T, 4], no rows nor columns in padding."""
        places, around = self._located(size), self.halo * self.stride
        level, corner, side = places[:, :1], places[:, 1:3], places[:, 3:]
        start = (corner - around).clip(min=0)
        end = (-(-size[:, None] // (1 << level))).clip(max=corner + side + around)
        found: Array = _joined(start + 0 * end, (end - start) * (self.pixels(size) > 0))
        return found

    @_remembered
    def cells(self, size: Array) -> Array:
        """Valid rows and columns of every tile's feature map. size [I, 2] int64 -> [I, T, 2]."""
        return -(-self.pixels(size) // self.stride)

    @_remembered
    def capacity(self, size: Array) -> Array:
        """Tokens every tile can give. size [I, 2] int64 -> [I, T]; 0 where a tile is padding."""
        capacity: Array = self.cells(size).prod(-1)
        return capacity

    def crop(self, level_image: Array, tile: int) -> Array:
        """One tile of its level's image. [..., rows, columns] -> [..., side, side], less where the image
        ends."""
        _, row, column, side = self.places[tile]
        return level_image[..., row : row + side, column : column + side]

    def inner(self, maps: Array, tile: int, cells: Array) -> Array:
        """A tile's own cells of a map of its window. [..., rows, columns], cells [2] -> [..., cells]."""
        _, row, column, _ = self.places[tile]
        top, left = (min(at // self.stride, self.halo) for at in (row, column))
        rows, columns = cells.tolist()
        return maps[..., top : top + rows, left : left + columns]

    def frame(
        self, size: Array, tile: Array | int, pixels: Array, pooled: Array
    ) -> tuple[Array, Array, Array]:
        """Where the pooled cells of maps lie, for `located`, float32 each: the corner [K, 2] of each map's
        tile and the extent [K, 2] of a cell in its level's pixels, and the scale [K, 1] to image coordinates.

        size [K, 2] of the images, tile [K] or one, pixels [K, 2] valid ones of the tile, pooled [K, 2] rows
        and columns.
        """
        place = self._located(size)[tile]
        longest = _float32(size[:, 0].clip(min=size[:, 1]))[:, None]
        scale = _float32(1 << place[..., :1]) / longest
        return _float32(place[..., 1:3]) + 0 * scale, _float32(pixels) / _float32(pooled), scale

    def where(self, size: Array, tile: int, pooled: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Centre and extent of a tile's pooled cells, in image coordinates with the longest side = 1.

        size [I, 2] of the images, pooled [I, 2] rows and columns of each map, shape the largest of these
        -> [I, rows * columns, 2] float32 each, row by row.
        """
        frame = self.frame(size, tile, self.pixels(size)[:, tile], pooled)
        cells = _like(np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1), size)
        corner, cell, scale = (of[:, None, None] for of in frame)
        centre, extent = located(corner, cell, scale, cells)
        return centre.reshape(len(size), -1, 2), extent.reshape(len(size), -1, 2)


def located(corner: Array, cell: Array, scale: Array, place: Array) -> tuple[Array, Array]:
    """Centre and extent [..., 2] of cells in image coordinates, from their map's `Pyramid.frame` and their
    rows and columns [..., 2] in it, float32."""
    return (corner + (place + 0.5) * cell) * scale, cell * scale + 0 * place


def bins(cells: Array, size: Array, outputs: int, inputs: int) -> Array:
    """The weight of every cell in every bin of adaptive average pooling, [U, outputs, inputs] float32.

    cells and size [U] int64: how many there are of each row, at most inputs and outputs. Bins are those of
    torch.nn.AdaptiveAvgPool2d: bin i of n over r cells covers floor(i r / n) .. ceil((i + 1) r / n).
    """
    i, k = _like(np.arange(outputs), cells), _like(np.arange(inputs), cells)
    cells, size = cells[:, None], size[:, None]
    low, high = i * cells // size, -(-(i + 1) * cells // size)
    weight = _float32((k >= low[..., None]) & (k < high[..., None]) & (i < size)[..., None])
    mean: Array = weight / weight.sum(-1)[..., None].clip(min=1)
    return mean


def fit(image: Image.Image, size: int) -> Tensor:
    """The image as uint8 [3, h, w] with h, w <= size: shrunk by area filtering where larger, never
    enlarged."""
    import torch

    return torch.from_numpy(fitted(image, size))


def mipmaps(image: Tensor, size: Tensor, levels: int) -> list[Tensor]:
    """Area-filtered levels of padded images, finest first; a pixel averages what is valid below it, padding
    stays 0.

    image [I, C, S, S] float, size [I, 2] valid rows and columns, on the CPU -> L tensors [I, C, S / 2^l, S /
    2^l].
    """
    import torch
    import torch.nn.functional as F

    from pyrskip.transfer import sent

    side, block = image.shape[-1], 1 << (levels - 1)
    inner = min(
        side, -(-int(size.max()) // block) * block
    )  # what is valid of any image, up to the coarsest pixel
    image, images = image[..., :inner, :inner], []
    whole = bool((size == inner).all())
    size = sent(size, image.device)
    index = torch.arange(inner, device=image.device)
    mask = (
        (index[None, :, None] < size[:, 0, None, None]) & (index[None, None, :] < size[:, 1, None, None])
    )[:, None]
    weight = mask.to(image.dtype)
    for level in range(levels):
        if level and whole:
            image = F.avg_pool2d(image, 2)
        elif level:
            # the weight is the share of valid pixels, so that each level is the exact mean of level 0's valid
            # pixels
            image, weight = F.avg_pool2d(image * weight, 2), F.avg_pool2d(weight, 2)
            image = image / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        elif not whole:
            image = image * weight
        images.append(F.pad(image, [0, (side - inner) >> level] * 2) if inner < side else image)
    return images


def _like(values: NDArray[Any], of: Array) -> Array:
    """Values as an array of the other's kind, on its device."""
    if isinstance(of, np.ndarray):
        return values
    import torch

    return torch.from_numpy(values).to(of.device)


def _joined(one: Array, other: Array) -> Array:
    """Two arrays behind each other along the last axis."""
    if isinstance(one, np.ndarray):
        return np.concatenate([one, other], axis=-1)
    import torch

    return torch.cat([one, other], dim=-1)


def _float32(values: Array) -> Array:
    # of tensors and arrays, tensors alone have float()
    return values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()
