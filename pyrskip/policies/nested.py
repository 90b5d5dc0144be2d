"""Tiles that lie under each other: a level's tiles as a square, and what lies under what.

Axes: T tiles, G tiles a side of a level. A grid has the tiles a side of each level, finest first, each a
multiple of the next.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def by_level(values: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """[..., T] -> [..., G, G] of each level, finest first."""
    parts = values.split([g * g for g in grid], dim=-1)
    return [part.unflatten(-1, (g, g)) for part, g in zip(parts, grid, strict=True)]


def blocks(fine: Tensor, side: int) -> Tensor:
    """A level's tiles [..., G, G] by the tile of a coarser level that they lie under: [..., side, n, side,
    n]."""
    n = fine.shape[-1] // side
    found: Tensor = fine.unflatten(-1, (side, n)).unflatten(-3, (side, n))
    return found


def spread(coarse: Tensor, side: int) -> Tensor:
    """A level's tiles [..., G, G] for those of a finer level under them: [..., side, side]."""
    n = side // coarse.shape[-1]
    wide = coarse[..., :, None, :, None].expand(*coarse.shape[:-1], n, coarse.shape[-1], n)
    return wide.flatten(-2).flatten(-3, -2)


@cache
def one_line(grid: tuple[int, ...]) -> Tensor:
    """Whether of two tiles one is the other or lies under it, at any depth, [T, T] bool."""
    corner = [(g, row, column) for g in grid for row in range(g) for column in range(g)]
    under = [
        [fine % g == 0 and row // (fine // g) == r and column // (fine // g) == c for g, r, c in corner]
        for fine, row, column in corner
    ]
    tiles = torch.tensor(under)
    # levels may be cut alike: of these the coarser is listed behind
    return tiles | tiles.T


def under(kept: Tensor, coarse: int, fine: int) -> Tensor:
    """Whether the tile above each is kept: kept [B, coarse * coarse] of a level -> [B, fine * fine] of the
    next finer one."""
    return spread(kept.unflatten(-1, (coarse, coarse)), fine).flatten(-2)


@cache
def levels_of(grid: tuple[int, ...]) -> Tensor:
    """The level of each tile, [T] int64."""
    return torch.arange(len(grid)).repeat_interleave(torch.tensor([g * g for g in grid]))
