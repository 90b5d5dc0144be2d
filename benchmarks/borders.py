"""How far features of kept tiles are from those of their level encoded whole, and what that costs: tiles
encoded alone, with halos, merged with kept neighbours, and on overlapping grids.

python benchmarks/borders.py run=<directory>

run=<directory> of a run whose flex stage is done, on a grid: 24 of its test images are encoded. Every set of
two to four connected tiles of level 0 is kept, sets of a number counting alike, and so do the numbers. Of
cells beside a border of two kept tiles, of others beside one of a kept tile and one that is not, and of all
others: the root mean square of the difference over that of the features. And the FLOPs of encoding what is
kept, over those of tiles alone.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiles import levels_of

IMAGES, MOST = 24, 4
Tile = tuple[int, int]
Kept = frozenset[Tile]
Box = tuple[int, int, int, int]
"""First row and column, and those behind the last."""
Way = Callable[[Kept, int, int], Iterator[tuple[Box, Box]]]
"""(kept tiles, tiles a side, cells a tile's side) -> what is encoded, and what of it is taken, in cells."""


def tiles(halo: int) -> Way:
    """Each tile with a ring of so many cells, where the level goes on."""

    def way(kept: Kept, g: int, side: int) -> Iterator[tuple[Box, Box]]:
        for row, column in kept:
            own = row * side, column * side, (row + 1) * side, (column + 1) * side
            yield ringed(own, halo, g * side), own

    return way


def merged(halo: int) -> Way:
    """The largest rectangle of kept tiles, then that of those left."""

    def way(kept: Kept, g: int, side: int) -> Iterator[tuple[Box, Box]]:
        left = set(kept)
        while left:
            best = max((of for of in rectangles(g) if of <= left), key=len)
            left -= best
            own = around(best, side)
            yield ringed(own, halo, g * side), own

    return way


def bounded(kept: Kept, g: int, side: int) -> Iterator[tuple[Box, Box]]:
    """The rectangle around all kept tiles, whatever else is in it."""
    yield around(kept, side), around(kept, side)


def overlapping(kept: Kept, g: int, side: int) -> Iterator[tuple[Box, Box]]:
    """Windows of a tile's side at every half of it, of which the middle is taken; at the level's edge all."""
    half, end = side // 2, g * side
    for top in range(0, end - half, half):
        for left in range(0, end - half, half):
            middle = [(at + half // 2, at + half // 2 + half) for at in (top, left)]
            taken = [(0 if low < half else low, end if high > end - half else high) for low, high in middle]
            (top_of, bottom), (left_of, right) = taken
            for row, column in kept:
                box = (
                    max(top_of, row * side),
                    max(left_of, column * side),
                    min(bottom, (row + 1) * side),
                    min(right, (column + 1) * side),
                )
                if box[0] < box[2] and box[1] < box[3]:
                    yield (top, left, top + side, left + side), box


WAYS: dict[str, Way] = {
    "alone": tiles(0),
    "halo 1": tiles(1),
    "halo 2": tiles(2),
    "halo 3": tiles(3),
    "merged": merged(0),
    "merged, halo 1": merged(1),
    "merged, halo 2": merged(2),
    "rectangle around all": bounded,
    "overlapping": overlapping,
}


def around(kept: Kept, side: int) -> Box:
    rows, columns = zip(*kept, strict=True)
    return min(rows) * side, min(columns) * side, (max(rows) + 1) * side, (max(columns) + 1) * side


def ringed(box: Box, halo: int, end: int) -> Box:
    top, left, bottom, right = box
    return max(top - halo, 0), max(left - halo, 0), min(bottom + halo, end), min(right + halo, end)


@cache
def rectangles(g: int) -> tuple[Kept, ...]:
    """Of up to MOST tiles."""
    spans = [(low, high) for low in range(g) for high in range(low + 1, g + 1)]
    found = [
        frozenset((row, column) for row in range(*rows) for column in range(*columns))
        for rows in spans
        for columns in spans
    ]
    return tuple(of for of in found if len(of) <= MOST)


def connected(g: int) -> Iterator[list[Kept]]:
    """All connected sets of two tiles, of three, up to MOST."""
    sets = {frozenset([(row, column)]) for row in range(g) for column in range(g)}
    for _ in range(MOST - 1):
        sets = {
            kept | {(row + down, column + right)}
            for kept in sets
            for row, column in kept
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if 0 <= row + down < g and 0 <= column + right < g and (row + down, column + right) not in kept
        }
        yield sorted(sets, key=sorted)


def kinds(kept: Kept, g: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept cells beside a border of two kept tiles, others beside one of a kept tile and one that is not,
    and all other kept ones, [cells, cells] bool each."""
    between, edge, own = (torch.zeros(g * side, g * side, dtype=torch.bool) for _ in range(3))
    for row, column in kept:
        top, left, bottom, right = around(frozenset([(row, column)]), side)
        own[top:bottom, left:right] = True
        sides: dict[Tile, tuple[slice, slice]] = {
            (row - 1, column): (slice(top, top + 1), slice(left, right)),
            (row + 1, column): (slice(bottom - 1, bottom), slice(left, right)),
            (row, column - 1): (slice(top, bottom), slice(left, left + 1)),
            (row, column + 1): (slice(top, bottom), slice(right - 1, right)),
        }
        for other, cells in sides.items():
            if min(other) >= 0 and max(other) < g:
                (between if other in kept else edge)[cells] = True
    return between, edge & ~between, own & ~between & ~edge


@torch.no_grad()
def main(run: Path) -> None:
    model = NativeModel.load(run / "flex")
    vision, pyramid = model.vision, model.pyramid
    data = ShardDataset(run / "data", "test", pyramid.size)
    level = levels_of(pyramid, collate([data[i] for i in range(IMAGES)], pyramid.size))[0]
    g, stride = pyramid.grid[0], pyramid.stride
    side = pyramid.side(0) // stride

    @cache
    def encoded(box: Box) -> Tensor:
        top, left, bottom, right = (at * stride for at in box)
        found: Tensor = vision(level[:, :, top:bottom, left:right])
        return found

    whole = encoded((0, 0, g * side, g * side))
    scale = whole.square().sum(1).mean()
    print(f"{'':22}between kept  at the edge  others  FLOPs")
    for name, way in WAYS.items():
        apart, cells, cost = torch.zeros(3), torch.zeros(3), 0.0
        for sets in connected(g):
            for kept in sets:
                found, windows = whole.clone(), set()
                for box, own in way(kept, g, side):
                    top, left, bottom, right = own
                    windows.add(box)
                    cut = encoded(box)[..., top - box[0] : bottom - box[0], left - box[1] : right - box[1]]
                    found[..., top:bottom, left:right] = cut
                flops = [vision.flops((b - t) * stride, (r - c) * stride) for t, c, b, r in windows]
                off = (found - whole).square().sum(1).mean(0) / scale
                weight = 1 / len(sets) / (MOST - 1)
                of_kinds = kinds(kept, g, side)
                apart += weight * torch.stack([off[kind].sum() for kind in of_kinds])
                cells += weight * torch.stack([kind.sum() for kind in of_kinds])
                cost += weight * sum(flops) / (len(kept) * vision.flops(side * stride, side * stride))
        between, edge, others = (apart / cells).sqrt().tolist()
        print(f"{name:22}{between:12.2f}{edge:13.2f}{others:8.2f}{cost:7.2f}", flush=True)


if __name__ == "__main__":
    main(Path(dict(argument.split("=", 1) for argument in sys.argv[1:])["run"]))
