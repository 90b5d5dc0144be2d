"""Things that lie on a background: icons with an outline, and signs. Small ones are drawn at twice their
size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pyrskip.scenes.assets import font, load_assets
from pyrskip.scenes.vocabulary import COLORS, DISTRACTORS, ICONS

OUTLINE = 0.03
"""Width of an icon's outline, as a share of its size; at least one pixel."""

PITCH = 1.12
"""Distance of icons that lie together, middle to middle, over the largest one's longer side."""

ROW = 3
"""Most of such icons in a row."""

PLATES = (((250, 250, 250), (25, 25, 30)), ((250, 205, 45), (25, 25, 30)), ((35, 35, 45), (245, 245, 245)))
"""Colours of signs: plate, and text and rim."""

_EM = 200


@dataclass(frozen=True)
class Patch:
    """RGBA pixels, cropped to what is not transparent. pixels: an icon's longer side (of several the smallest
    one's), or a text's height of capitals."""

    image: Image.Image
    pixels: float


def draw_icon(
    name: str, color: str, pixels: float, angle: float, mirrored: bool, rng: np.random.Generator
) -> Patch:
    """An icon whose longer side, before it is turned by `angle` degrees and without its outline, has so many
    pixels."""
    code, path, scale = (ICONS | DISTRACTORS)[name], load_assets().icons, _scale(pixels)
    type_size = round(pixels * scale / _longer_side(path, code) * _EM)
    edge = max(scale, round(OUTLINE * pixels * scale))
    outer, inner = (_mask(path, code, type_size, edge, width) for width in (edge, 0))
    exact = max(_extent(inner)) / scale
    if mirrored:
        outer, inner = ImageOps.mirror(outer), ImageOps.mirror(inner)
    if angle:
        outer, inner = (mask.rotate(angle, Image.Resampling.BILINEAR) for mask in (outer, inner))
    box = outer.getbbox()
    outer, inner = _shrink(outer.crop(box), scale), _shrink(inner.crop(box), scale)
    fill = tuple(int(v) for v in np.clip(np.array(COLORS[color]) + rng.integers(-6, 7, 3), 0, 255))
    light = np.dot(fill, (0.3, 0.59, 0.11)) > 110
    picture = Image.new("RGB", outer.size, (30, 30, 34) if light else (246, 246, 246))
    picture.paste(fill, mask=inner)
    picture.putalpha(outer)
    return Patch(picture, exact)


def lay_together(icons: Sequence[Patch]) -> Patch:
    """Icons in rows of three, as on a shelf: so that every number has a shape."""
    columns = min(ROW, len(icons))
    pitch = PITCH * max(max(icon.image.size) for icon in icons)
    rows = -(-len(icons) // columns)
    picture = Image.new("RGBA", (round(pitch * columns), round(pitch * rows)))
    for number, icon in enumerate(icons):
        row, column = divmod(number, columns)
        x, y = (column + 0.5) * pitch - icon.image.width / 2, (row + 0.5) * pitch - icon.image.height / 2
        picture.paste(icon.image, (round(x), round(y)))
    return Patch(picture.crop(picture.getchannel("A").getbbox()), min(icon.pixels for icon in icons))


def draw_sign(text: str, height: float, angle: float, rng: np.random.Generator) -> Patch:
    """A plate with text, whose capitals have so many pixels of height."""
    texts = load_assets().texts
    path, scale = texts[rng.integers(len(texts))], _scale(2 * height)
    type_size = round(height * scale / _capital(path) * _EM)
    face = font(path, type_size)
    left, top, right, bottom = face.getbbox(text)
    pad = round(rng.uniform(0.45, 0.7) * height * scale)
    rim = max(scale, round(0.1 * height * scale))
    plate, ink = PLATES[rng.integers(len(PLATES))]
    width, tall = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
    picture = Image.new("RGBA", (width, tall), (*ink, 0))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle(
        (0, 0, width - 1, tall - 1), radius=pad * 0.6, fill=(*plate, 255), outline=(*ink, 255), width=rim
    )
    draw.text((pad - left, pad - top), text, font=face, fill=(*ink, 255))
    if angle:
        picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture = _shrink(picture.crop(picture.getchannel("A").getbbox()), scale)
    return Patch(picture, _capital(path) * type_size / _EM / scale)


def _scale(pixels: float) -> int:
    """How much larger than needed something of this size is drawn: small things lose by being turned as they
    are."""
    return 2 if pixels < 80 else 1


def _mask(path: Path, code: str, type_size: int, room: int, edge: int) -> Image.Image:
    """A glyph's coverage with `edge` pixels around it, in the middle of a square that holds `room` of them at
    any angle."""
    face = font(path, type_size)
    left, top, right, bottom = face.getbbox(code)
    side = math.ceil(math.hypot(right - left, bottom - top)) + 2 * room + 2
    corner = (round((side - left - right) / 2), round((side - top - bottom) / 2))
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(corner, code, font=face, fill=255, stroke_width=edge)
    return image


def _shrink(picture: Image.Image, scale: int) -> Image.Image:
    size = (-(-picture.width // scale), -(-picture.height // scale))
    return picture.resize(size, Image.Resampling.BOX) if scale > 1 else picture


def _extent(mask: Image.Image) -> tuple[int, int]:
    box = mask.getbbox()
    assert box is not None
    return box[2] - box[0], box[3] - box[1]


@lru_cache(maxsize=128)
def _longer_side(path: Path, code: str) -> int:
    return max(_extent(_mask(path, code, _EM, 0, 0)))


@lru_cache(maxsize=8)
def _capital(path: Path) -> float:
    _, top, _, bottom = font(path, _EM).getbbox("H")
    return bottom - top
