"""Selections of single tiles of the kind that region gates choose: a few tiles of some levels, often
neighbours, now and then all of a level. There are 2^T of them, so that they are drawn and never listed.

Axes: K selections, T tiles.
"""

import numpy as np
import torch
from torch import Tensor

from pyrskip.pyramid import Pyramid

SKIPPED, WHOLE = 0.5, 0.1
"""How often a level beside the glance gives nothing, and all of its tiles; else it gives a few."""
MORE = 0.5
"""Of a few tiles, how often there is another one."""
TOGETHER = 0.5
"""How often the few are neighbours."""


def propose(pyramid: Pyramid, real: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Random selections that hold the glance, and at least one tile beside it if there is one. real [T] bool:
    tiles that are no padding, which alone are kept -> [K, T] bool."""
    is_real = real.numpy()
    rows = np.zeros((count, pyramid.tiles), dtype=bool)
    rows[:, pyramid.glance] = True
    some = [tiles[is_real[tiles]] for tiles in _levels(pyramid)]
    some = [tiles for tiles in some if len(tiles)]
    for row in rows if some else ():
        while row.sum() < 2:
            for tiles in some:
                kind = rng.random()
                if kind >= SKIPPED:
                    row[tiles if kind >= 1 - WHOLE else _few(pyramid, tiles, rng)] = True
    return torch.from_numpy(rows)


def _levels(pyramid: Pyramid) -> list[np.ndarray]:
    """The tiles of each level but the glance."""
    level = pyramid.tile_level.numpy()
    return [np.flatnonzero(level == number) for number in range(pyramid.levels - 1)]


def _few(pyramid: Pyramid, tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some of a level's tiles."""
    count = min(int(rng.geometric(1 - MORE)), len(tiles))
    if rng.random() >= TOGETHER:
        return rng.choice(tiles, count, replace=False)
    place = pyramid.tile_corner.numpy()[tiles] // pyramid.side(pyramid.places[int(tiles[0])].level)
    kept = [int(rng.integers(len(tiles)))]
    while len(kept) < count:
        apart = np.abs(place[:, None] - place[kept]).sum(-1).min(-1)
        nearest = apart[apart > 0].min()  # padding may part them
        kept.append(int(rng.choice(np.flatnonzero(apart == nearest))))
    return tiles[kept]
