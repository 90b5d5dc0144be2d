"""Level of detail: the finest kept level of each region, the picture as the model saw it, and what a gate
thinks of each tile.

Axes: T tiles, g the most regions a side that all levels' grids have borders of.
"""

from collections.abc import Sequence
from math import lcm

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pyrskip.pyramid import Pyramid

SIDE = 128
"""Of a picture, pixels."""
FADED = (128, 128, 128)
LEVELS, HEAT = "cividis", "magma"
"""Colours of levels, the finest darkest, and of scores from 0 to 1."""


def finest(kept: Tensor, pyramid: Pyramid) -> Tensor:
    """The finest level that is kept of each region. kept [..., T] bool, the glance among them -> [..., g, g]
    int64, g the least common multiple of the grids."""
    side = lcm(*pyramid.grid)
    found = torch.full((*kept.shape[:-1], side, side), pyramid.levels - 1)
    for level in reversed(range(pyramid.levels - 1)):
        g = pyramid.grid[level]
        own = kept[..., pyramid.tile_level == level].unflatten(-1, (g, g))
        every = own.repeat_interleave(side // g, dim=-2).repeat_interleave(side // g, dim=-1)
        found = found.masked_fill(every, level)
    return found


def foveate(levels: Sequence[Tensor], kept: Tensor, pyramid: Pyramid, side: int = SIDE) -> Image.Image:
    """The picture as the model saw it: each place from the finest level that is kept there. levels: the valid
    part of each [rows, columns, 3] in 0..1; kept [T] bool, the glance among them; side: of the canvas."""
    picture = scaled(levels[-1], pyramid.levels - 1, pyramid, side)
    for tile in reversed(kept.nonzero().squeeze(1).tolist()):
        level = pyramid.places[tile].level
        own = scaled(levels[level], level, pyramid, side)
        x0, y0, x1, y1 = (round(float(v) * side) for v in pyramid.tile_box[tile])
        if x0 < own.width and y0 < own.height:
            picture.paste(own.crop((x0, y0, min(x1, own.width), min(y1, own.height))), (x0, y0))
    return picture


def draw_finest(levels: Sequence[Tensor], kept: Tensor, pyramid: Pyramid, side: int = SIDE) -> Image.Image:
    """The number of the finest level that is kept of each region, over the picture. As `foveate`."""
    found = finest(kept, pyramid)
    under = _grey(levels, pyramid, side)
    picture = _over(under, found / max(1, pyramid.levels - 1), LEVELS, side)
    pen, step = ImageDraw.Draw(picture), side / len(found)
    font = ImageFont.load_default(size=max(8, min(16, round(step / 2))))
    for row, column in np.ndindex(*found.shape):
        place = ((column + 0.5) * step, (row + 0.5) * step)
        if place[0] < picture.width and place[1] < picture.height:
            level = int(found[row, column])
            fill = "white" if level < pyramid.levels / 2 else "black"
            pen.text(place, str(level), fill=fill, font=font, anchor="mm")
    return picture


def draw_heat(score: Tensor, levels: Sequence[Tensor], pyramid: Pyramid, side: int = SIDE) -> Image.Image:
    """A score [T] in 0..1 of the tiles of the level that is cut finest, over the picture: bright where it is
    high. As `foveate`."""
    level = max(range(pyramid.levels), key=lambda of: pyramid.grid[of])
    g = pyramid.grid[level]
    own = score[pyramid.tile_level == level].view(g, g)
    return _over(_grey(levels, pyramid, side), own, HEAT, side)


def named(picture: Image.Image, name: str) -> Image.Image:
    """A picture with its name in the upper left corner."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    pen.rectangle((0, 0, pen.textlength(name, font=font) + 4, 14), fill="white")
    pen.text((2, 1), name, fill="black", font=font)
    return picture


def scaled(pixels: Tensor, level: int, pyramid: Pyramid, side: int = SIDE) -> Image.Image:
    """A level's pixels at the size that the whole picture is drawn in."""
    image = Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
    scale = side / pyramid.size * (1 << level)
    wide, tall = (max(1, round(length * scale)) for length in image.size)
    nearest = Image.Resampling.NEAREST if wide > image.width else Image.Resampling.BOX
    return image.resize((wide, tall), nearest)


def _grey(levels: Sequence[Tensor], pyramid: Pyramid, side: int) -> Image.Image:
    return scaled(levels[-1], pyramid.levels - 1, pyramid, side).convert("L").convert("RGB")


def _over(under: Image.Image, values: Tensor, colours: str, side: int) -> Image.Image:
    """Values [g, g] in 0..1 as colours of squares of the canvas, over a picture of its valid part."""
    shades = (colormaps[colours](values.numpy())[..., :3] * 255).astype(np.uint8)
    whole = Image.fromarray(shades).resize((side, side), Image.Resampling.NEAREST)
    return Image.blend(under, whole.crop((0, 0, *under.size)), 0.65)
