"""Tiles of a batch's images: their pixels, and what an encoder makes of them.

Axes: I images, B questions, T tiles, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pyrskip.decision import distinct
from pyrskip.models.tiers import Features
from pyrskip.models.vision import VisionEncoder
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.sample import Batch
from pyrskip.transfer import sent


def crops(pyramid: Pyramid, batch: Batch, wanted: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """The wanted tiles [I, T] bool one by one: image, tile, and its level's pixels without padding, [3, h, w]
    0..255."""
    levels = [level.cpu() for level in mipmaps(batch.image.float(), batch.on_cpu[0], pyramid.levels)]
    pixels = pyramid.pixels(batch.on_cpu[0])
    for image, tile in wanted.nonzero().tolist():
        rows, columns = pixels[image, tile].tolist()
        crop = pyramid.crop(levels[int(pyramid.tile_level[tile])][image : image + 1], tile)[0]
        yield image, tile, crop[:, :rows, :columns]


def levels_of(pyramid: Pyramid, batch: Batch) -> tuple[Tensor, ...]:
    """The levels [I, 3, S / 2^l, S / 2^l] of a batch's images, in 0..1; none where their maps are cached."""
    if batch.maps is not None:
        return ()
    return tuple(mipmaps(batch.image.float() / 255, batch.on_cpu[0], pyramid.levels))


def encode_tiles(
    vision: VisionEncoder, pyramid: Pyramid, batch: Batch, keep: Tensor, levels: tuple[Tensor, ...] = ()
) -> Features:
    """Encode the tiles that any question of an image keeps, each alone from its own pixels and those of its
    halo, or read their maps from the batch's cache. keep [B, T] bool; levels: the batch's, if they are there
    already."""
    window, cells = pyramid.window(batch.on_cpu[0]), pyramid.cells(batch.on_cpu[0])
    wanted = batch.of_images(keep.cpu()) & (cells[..., 0] > 0)
    if batch.maps is not None:
        return Features(tuple(_cached(vision, m, wanted[:, t]) for t, m in enumerate(batch.maps)), wanted)
    levels = levels or levels_of(pyramid, batch)
    maps, received = list[Tensor](), list[Tensor]()
    for tile in range(pyramid.tiles):
        level = levels[int(pyramid.tile_level[tile])]
        found = _encode_tile(vision, pyramid, tile, level, wanted[:, tile], window[:, tile], cells[:, tile])
        maps.append(found[:, : vision.channels])
        received += found[:, vision.channels :].unbind(1)
    return Features(tuple(maps), wanted, levels, tuple(received))


def encode_more(
    vision: VisionEncoder, pyramid: Pyramid, batch: Batch, had: Features, keep: Tensor
) -> Features:
    """What `had` holds, and the tiles that any question of an image keeps beside it. keep [B, T] bool."""
    size, image_of = batch.on_cpu
    new = keep.cpu() & ~had.encoded[image_of] & (pyramid.capacity(size)[image_of] > 0)
    if not bool(new.any()):
        return had
    more = encode_tiles(vision, pyramid, batch, new, had.levels)
    maps, received = (
        _both(before, added, had.encoded, more.encoded)
        for before, added in ((had.maps, more.maps), (had.received, more.received))
    )
    return Features(maps, had.encoded | more.encoded, more.levels, received)


def _both(
    had: Sequence[Tensor], more: Sequence[Tensor], encoded: Tensor, added: Tensor
) -> tuple[Tensor, ...]:
    """What there was of each tile and what came, each zero where it was not encoded: encoded, added [I, T]
    bool."""
    found = []
    for tile, (before, behind) in enumerate(zip(had, more, strict=True)):
        if not bool(added[:, tile].any()):
            found.append(before)
        else:
            found.append(before + behind if bool(encoded[:, tile].any()) else behind)
    return tuple(found)


def _encode_tile(
    vision: VisionEncoder,
    pyramid: Pyramid,
    tile: int,
    level: Tensor,
    wanted: Tensor,
    window: Tensor,
    cells: Tensor,
) -> Tensor:
    """level [I, 3, side, side] of the tile's level; wanted [I] bool, window [I, 4] and cells [I, 2] of the
    tile, all three on the CPU -> [I, C, rows, columns], of an encoder that attends C + 1 channels."""
    side = pyramid.side(int(pyramid.tile_level[tile])) // vision.stride
    out = level.new_zeros(len(level), vision.channels + vision.attends, side, side)
    encode = vision.watched if vision.attends else vision
    kept = wanted.nonzero().squeeze(1)
    kinds = torch.cat([window[:, :2], -(-window[:, 2:] // vision.stride), cells], dim=1)[kept]
    first, kind_of = distinct(kinds)
    for number, kind in enumerate(kinds[first]):
        top, left, rows, columns = kind[:4].tolist()
        images = sent(kept[kind_of == number], level.device)
        end = top + rows * vision.stride, left + columns * vision.stride
        own = pyramid.inner(encode(level[images, :, top : end[0], left : end[1]]), tile, kind[4:])
        out = out.to(own.dtype)
        out[images, :, : own.shape[2], : own.shape[3]] = own
    return out


def agreement(pyramid: Pyramid, maps: Sequence[Tensor], cells: Tensor) -> Tensor:
    """How far features of a tile are those of the next coarser level at the same place, each coarser cell
    beside the four that it covers: Pearson's correlation over channels and cells. maps of all tiles, cells
    [I, T, 2] valid ones -> [I, T] float32 in -1..1; 0 of the glance, of padding and of what is all alike."""
    images, found = len(cells), []
    start, coarser = pyramid.tiles, None
    for level in reversed(range(pyramid.levels)):
        g = pyramid.grid[level]
        start -= g * g
        own = torch.stack(list(maps[start : start + g * g]), dim=1).float().unflatten(1, (g, g))
        fine = own.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [I, C, rows, columns] of the level
        if coarser is None:
            found.append(torch.zeros(images, 1))
        else:
            spread = coarser.repeat_interleave(2, -1).repeat_interleave(2, -2)
            index = torch.arange(own.shape[-1])
            real = cells[:, start : start + g * g].cpu()
            inside = (index[:, None] < real[..., None, :1]) & (index < real[..., None, 1:])
            inside = inside.to(fine.device)[:, :, None]
            found.insert(0, _correlation(_by_tile(fine, g), _by_tile(spread, g), inside).cpu())
        coarser = fine
    return torch.cat(found, dim=1)


def _by_tile(whole: Tensor, g: int) -> Tensor:
    """A level's map [I, C, rows, columns] -> [I, g * g, C, rows, columns] of its tiles."""
    parts: Tensor = whole.unflatten(-1, (g, -1)).unflatten(-3, (g, -1))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _correlation(one: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """Pearson's, over the last three axes of [I, g * g, C, rows, columns], of what is inside [I, g * g, 1,
    rows, columns]."""
    inside = inside.expand(one.shape)
    count = inside.sum((-1, -2, -3), keepdim=True).clamp(min=1)
    one, other = (
        (of - (of * inside).sum((-1, -2, -3), keepdim=True) / count) * inside for of in (one, other)
    )
    alone = one.square().sum((-1, -2, -3)) * other.square().sum((-1, -2, -3))
    return (one * other).sum((-1, -2, -3)) / alone.sqrt().clamp(min=1e-12)


@torch.no_grad()
def moments(vision: VisionEncoder, pyramid: Pyramid, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C], float64, of the features of these images, every tile's as much as any
    other's."""
    shape = pyramid.tiles, vision.channels
    count, total = torch.zeros(shape[0]).double(), torch.zeros(shape).double()
    square = torch.zeros(*shape, shape[1]).double()
    for batch in batches:
        cells = pyramid.cells(batch.size)
        everything = torch.ones(len(batch), pyramid.tiles, dtype=torch.bool)
        for tile, maps in enumerate(encode_tiles(vision, pyramid, batch, everything).maps):
            rows, columns = (
                torch.arange(n) < cells[:, tile, axis, None] for axis, n in enumerate(maps.shape[2:])
            )
            found = maps.permute(0, 2, 3, 1)[rows[:, :, None] & columns[:, None]].double()
            count[tile] += len(found)
            total[tile] += found.sum(0)
            square[tile] += found.T @ found
    there = count > 0
    mean = (total[there] / count[there, None]).mean(0)
    return mean, (square[there] / count[there, None, None]).mean(0) - mean.outer(mean)


def encode_flops(vision: VisionEncoder, pyramid: Pyramid, size: Tensor) -> Tensor:
    """Measured FLOPs of encoding every tile. size [B, 2] -> [B, T] float64."""
    extent = -(-pyramid.window(size.cpu())[..., 2:] // vision.stride) * vision.stride
    unique, of = torch.unique(extent.flatten(0, 1), dim=0, return_inverse=True)
    flops = [float(vision.flops(rows, columns)) if rows else 0.0 for rows, columns in unique.tolist()]
    return torch.tensor(flops, dtype=torch.float64, device=size.device)[of].view(extent.shape[:2])


def _cached(vision: VisionEncoder, maps: Tensor, wanted: Tensor) -> Tensor:
    """A tile's maps [I, C, rows, columns] from the cache as the encoder would give them, so zero where not
    wanted [I]."""
    dtype = vision.mean.dtype
    if not bool(wanted.any()):
        return maps.new_zeros((), dtype=dtype).expand(maps.shape)
    if bool(wanted.all()):
        return maps.to(dtype)
    return maps.to(dtype) * sent(wanted, maps.device)[:, None, None, None]
