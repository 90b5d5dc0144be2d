"""Geometry of an image pyramid: levels, tiles, capacity, mipmaps.

Axes: I images, B batch, T tiles, L levels, S canvas side in pixels, C channels.

Every image is fitted into the top left corner of a square canvas (never enlarged) and padded there, so that
what is valid of it is always a rectangle from (0, 0). Level 0 is the canvas itself and level l is 2^l times
smaller. A level is cut into g x g tiles (g = 1: the level is one tile); the coarsest level is always one
tile, the *glance*. Tiles are numbered finest level first, row by row, so the glance is tile T - 1.
"""

from dataclasses import dataclass
from functools import cached_property
from math import lcm

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.picture import fitted


@dataclass(frozen=True)
class Pyramid:
    """Which tiles an image is cut into.

    size: side of the canvas, pixels. levels: L >= 1. stride: pixels a side that one cell of the encoder's map
    covers. grid: g of each level, finest first; one number for every level but the glance is allowed as well.
    """

    size: int
    levels: int
    stride: int
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.levels < 1 or self.size < 1 or self.stride < 1:
            raise UserError(
                f"pyramid.size={self.size}, levels={self.levels}, stride={self.stride}: all must be at "
                "least 1"
            )
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
    def tile_level(self) -> Tensor:
        """[T] int64: the level of each tile."""
        return torch.tensor([level for level, g in enumerate(self.grid) for _ in range(g * g)])

    @cached_property
    def tile_corner(self) -> Tensor:
        """[T, 2] int64: row and column of each tile's first pixel, in pixels of its own level."""
        corners = [
            (row * self.side(level), column * self.side(level))
            for level, g in enumerate(self.grid)
            for row in range(g)
            for column in range(g)
        ]
        return torch.tensor(corners)

    @cached_property
    def tile_box(self) -> Tensor:
        """[T, 4] float: x0, y0, x1, y1 of each tile on the canvas, 0..1."""
        scale = (2.0**self.tile_level / self.size)[:, None]
        low = self.tile_corner.flip(-1) * scale
        sides = torch.tensor([self.side(int(level)) for level in self.tile_level])[:, None] * scale
        return torch.cat([low, low + sides], dim=-1)

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

    def pixels(self, size: Tensor) -> Tensor:
        """Valid rows and columns of every tile, in its level's pixels. size [I, 2] -> [I, T, 2] int64, 0 in
        padding."""
        level_size = _ceil_divide(size[:, None], (1 << self.tile_level.to(size.device))[None, :, None])
        side = torch.tensor([self.side(int(level)) for level in self.tile_level], device=size.device)
        left = level_size - self.tile_corner.to(size.device)
        pixels = torch.minimum(left.clamp(min=0), side[None, :, None])
        return pixels * (pixels > 0).all(-1, keepdim=True)

    def cells(self, size: Tensor) -> Tensor:
        """Valid rows and columns of every tile's feature map. size [I, 2] -> [I, T, 2] int64."""
        return _ceil_divide(self.pixels(size), torch.tensor(self.stride, device=size.device))

    def capacity(self, size: Tensor) -> Tensor:
        """Tokens every tile can give. size [I, 2] -> [I, T] int64; 0 where a tile is padding."""
        return self.cells(size).prod(-1)

    def crop(self, level_image: Tensor, tile: int) -> Tensor:
        """One tile of its level's image. [I, C, S_l, S_l] -> [I, C, side, side]."""
        row, column = self.tile_corner[tile].tolist()
        side = self.side(int(self.tile_level[tile]))
        return level_image[:, :, row : row + side, column : column + side]


def fit(image: Image.Image, size: int) -> Tensor:
    """The image as uint8 [3, h, w] with h, w <= size: shrunk by area filtering where larger, never
    enlarged."""
    return torch.from_numpy(fitted(image, size))


def mipmaps(image: Tensor, size: Tensor, levels: int) -> list[Tensor]:
    """Area-filtered levels of padded images, finest first; a pixel averages what is valid below it, padding
    stays 0.

    image [I, C, S, S] float, size [I, 2] valid rows and columns -> L tensors [I, C, S / 2^l, S / 2^l].
    """
    side, block = image.shape[-1], 1 << (levels - 1)
    inner = min(
        side, -(-int(size.max()) // block) * block
    )  # what is valid of any image, up to the coarsest pixel
    image, images = image[..., :inner, :inner], []
    whole = bool((size == inner).all())
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


def _ceil_divide(a: Tensor, b: Tensor) -> Tensor:
    return -torch.div(-a, b, rounding_mode="floor")
