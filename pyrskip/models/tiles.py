"""Tiles of images encoded: each alone, from its own pixels, and only where it is wanted.

Axes: I images, B questions, T tiles, C channels.
"""

import torch
from torch import Tensor

from pyrskip.models.tiers import Features
from pyrskip.models.vision import VisionEncoder
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.sample import Batch


def encode_tiles(vision: VisionEncoder, pyramid: Pyramid, batch: Batch, keep: Tensor) -> Features:
    """Encode the tiles that any question of an image keeps, or read their maps from the batch's cache. keep [B, T] bool."""
    images, tiles = len(batch.image), pyramid.tiles
    wanted = torch.zeros(images, tiles, dtype=torch.int64, device=keep.device)
    wanted = wanted.index_add(0, batch.image_of, keep.long()) > 0
    pixels = pyramid.pixels(batch.size)
    wanted &= pixels[..., 0] > 0
    if batch.maps is not None:
        return Features(tuple(_cached(vision, m, wanted[:, t]) for t, m in enumerate(batch.maps)), wanted)
    levels = mipmaps(batch.image.float() / 255, batch.size, pyramid.levels)
    maps = []
    for tile in range(tiles):
        crop = pyramid.crop(levels[int(pyramid.tile_level[tile])], tile)
        maps.append(_encode_tile(vision, crop, wanted[:, tile], pixels[:, tile]))
    return Features(tuple(maps), wanted)


def _encode_tile(vision: VisionEncoder, crop: Tensor, wanted: Tensor, pixels: Tensor) -> Tensor:
    """crop [I, 3, side, side], wanted [I] bool, pixels [I, 2] that are valid -> [I, C, side / stride, side / stride]."""
    side = crop.shape[-1] // vision.stride
    out = crop.new_zeros(len(crop), vision.channels, side, side)
    extent = -(-pixels // vision.stride)
    for rows, columns in torch.unique(extent[wanted], dim=0).tolist():
        images = (wanted & (extent == extent.new_tensor([rows, columns])).all(-1)).nonzero().squeeze(1)
        features = vision(crop[images, :, : rows * vision.stride, : columns * vision.stride])
        out = out.to(features.dtype)
        out[images, :, :rows, :columns] = features
    return out


def _cached(vision: VisionEncoder, maps: Tensor, wanted: Tensor) -> Tensor:
    """A tile's maps [I, C, rows, columns] from the cache as the encoder would give them, so zero where not wanted [I]."""
    dtype = vision.mean.dtype
    if not bool(wanted.any()):
        return maps.new_zeros((), dtype=dtype).expand(maps.shape)
    return maps.to(dtype) if bool(wanted.all()) else maps.to(dtype) * wanted[:, None, None, None]
