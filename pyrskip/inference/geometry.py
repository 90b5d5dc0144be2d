"""Geometry of an image pyramid in numpy: what pyrskip.pyramid, decision and projector compute in torch, for a
service without it. Tests hold the two equal.

Axes: B rows, T tiles, C channels, h x w pixels or cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """size: side of the canvas, pixels; stride: pixels a side of one cell; grid: tiles a side of each level,
    finest first."""

    size: int
    stride: int
    grid: tuple[int, ...]

    @cached_property
    def tile_level(self) -> Ints:
        """[T]"""
        return np.array([level for level, g in enumerate(self.grid) for _ in range(g * g)])

    @cached_property
    def tile_side(self) -> Ints:
        """[T]: pixels a side, of the tile's level."""
        return np.array([self.size // (1 << level) // self.grid[level] for level in self.tile_level])

    @cached_property
    def tile_corner(self) -> Ints:
        """[T, 2]: first row and column, in pixels of the tile's level."""
        places = [(row, column) for g in self.grid for row in range(g) for column in range(g)]
        return np.array(places) * self.tile_side[:, None]

    @property
    def tiles(self) -> int:
        return len(self.tile_level)

    @property
    def levels(self) -> int:
        return len(self.grid)

    def pixels(self, size: Ints) -> Ints:
        """Valid rows and columns of every tile. size [B, 2] -> [B, T, 2], 0 in padding."""
        level_size = -(-size[:, None] // (1 << self.tile_level)[None, :, None])
        pixels = np.minimum((level_size - self.tile_corner).clip(min=0), self.tile_side[None, :, None])
        valid: Ints = pixels * (pixels > 0).all(-1, keepdims=True)
        return valid

    def cells(self, size: Ints) -> Ints:
        """Valid rows and columns of every tile's map. size [B, 2] -> [B, T, 2]."""
        return -(-self.pixels(size) // self.stride)

    def crop(self, level: Floats, tile: int, cells: Ints) -> Floats:
        """A tile's valid part, padded with 0 to whole cells. level [3, h, w] -> [3, rows * stride, columns *
        stride]."""
        row, column = self.tile_corner[tile]
        side = self.tile_side[tile]
        valid = level[:, row : row + side, column : column + side]
        out = np.zeros((3, *(cells * self.stride)), dtype=np.float32)
        out[:, : valid.shape[1], : valid.shape[2]] = valid
        return out

    def where(self, size: Ints, tile: int, pooled: Ints) -> tuple[Floats, Floats]:
        """Centre and extent [h * w, 2] of pooled cells, in image coordinates with the longest side = 1."""
        scale = np.float32(2.0 ** int(self.tile_level[tile])) / np.float32(size.max())
        cell = (self.pixels(size[None])[0, tile].astype(np.float32) / pooled.astype(np.float32)).astype(
            np.float32
        )
        grid = np.stack(
            np.meshgrid(*(np.arange(n, dtype=np.float32) for n in pooled), indexing="ij"), axis=-1
        )
        centre = (self.tile_corner[tile].astype(np.float32) + (grid + np.float32(0.5)) * cell) * scale
        return centre.reshape(-1, 2), np.broadcast_to(cell * scale, centre.shape).reshape(-1, 2)


def mipmaps(image: NDArray[np.uint8], levels: int) -> list[Floats]:
    """Levels of an image in 0..1, finest first: a pixel is the mean of those below it. [3, h, w] -> L x [3,
    ., .]."""
    total = image.astype(np.float32)
    count = np.ones(total.shape[1:], dtype=np.float32)
    result = [total / np.float32(255)]
    for _ in range(levels - 1):
        total, count = _sum_by_four(total), _sum_by_four(count)
        result.append(total / (count * np.float32(255)))
    return result


def _sum_by_four(x: Floats) -> Floats:
    """Sums of 2 x 2 blocks; what a ragged edge lacks counts as 0. [..., h, w] -> [..., ceil(h / 2), ceil(w /
    2)]."""
    rows, columns = x.shape[-2:]
    if rows % 2 or columns % 2:
        x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows % 2), (0, columns % 2)])
    total: Floats = (x[..., ::2, ::2] + x[..., ::2, 1::2]) + (x[..., 1::2, ::2] + x[..., 1::2, 1::2])
    return total


def realise(asked: Ints, cells: Ints) -> Ints:
    """Rows and columns that a tile's map is pooled to. asked [..., T], cells [..., T, 2] -> [..., T, 2]; 0
    where nothing is asked or there."""
    rows, columns = cells[..., 0], cells[..., 1]
    on = (asked > 0) & (rows > 0) & (columns > 0)
    rows, columns, asked = rows.clip(min=1), columns.clip(min=1), asked.clip(min=1)

    def side(of: Ints, other: Ints) -> Ints:
        ideal = np.sqrt(asked.astype(np.float64) * of / other)
        whole: Ints = np.floor(ideal + 1e-9).astype(np.int64).clip(min=1)
        return np.minimum(whole, np.minimum(of, asked))

    tall, wide = side(rows, columns), side(columns, rows)
    by_rows = np.stack([tall, np.minimum(columns, asked // tall)], axis=-1)
    by_columns = np.stack([np.minimum(rows, asked // wide), wide], axis=-1)
    better = by_columns.prod(-1) > by_rows.prod(-1)
    size: Ints = np.where(better[..., None], by_columns, by_rows) * on[..., None]
    return size


def pool(features: Floats, pooled: Ints) -> Floats:
    """Adaptive average pooling of a map of valid cells: [C, rows, columns] to [h * w, C]. Bins are
    AdaptiveAvgPool2d's."""
    channels, *cells = features.shape
    if tuple(cells) != tuple(pooled):
        rows, columns = (_bins(cell, n) for cell, n in zip(cells, pooled, strict=True))
        features = np.einsum("hr,crk,wk->chw", rows, features, columns, optimize=True)
    return np.ascontiguousarray(features.reshape(channels, -1).T)


def _bins(cells: int, size: int) -> Floats:
    """[size, cells]: the weight of every cell in every bin."""
    i, k = np.arange(size)[:, None], np.arange(cells)
    weight = ((k >= i * cells // size) & (k < -(-(i + 1) * cells // size))).astype(np.float32)
    mean: Floats = weight / weight.sum(-1, keepdims=True)
    return mean


def pad_ids(rows: Sequence[Sequence[int]]) -> tuple[Ints, NDArray[Any]]:
    """Token ids as [B, W] int64, 0 in padding, and which are words [B, W] bool."""
    width = max(map(len, rows))
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
    return ids, np.arange(width) < np.array([len(row) for row in rows])[:, None]
