"""Backgrounds: a gradient, texture, noise or photograph in two shades of a named colour, or a pale photograph
as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

from pyrskip.scenes.assets import load_assets
from pyrskip.scenes.vocabulary import BACKGROUNDS, COLORS

CONTRAST = 40.0
"""Least distance of an object's colour from every shade of the background, in CIE Lab: 2.3 is just
noticeable."""

SHADE = 0.13
"""How far the shades are from the colour, as a share of it."""

FLAT = {"pale": (228, 228, 226), "dark": (40, 40, 44)}
"""What plain photographs are blended with, so that objects stand out."""
BLEND = 0.62

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """color: the name that a question asks for, or None where there is none; colors: the objects' that stand
    out."""

    image: Image.Image
    color: str | None
    colors: tuple[str, ...]


def colored(size: int, rng: np.random.Generator) -> Background:
    """A background of a named colour."""
    name = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    base = np.array(BACKGROUNDS[name]) + rng.integers(-10, 11) + rng.integers(-3, 4, 3)
    field = FIELDS[rng.integers(len(FIELDS))](size, rng)
    low, high = (tuple(int(v) for v in np.clip(base * shade, 0, 255)) for shade in (1 - SHADE, 1 + SHADE))
    return Background(ImageOps.colorize(field, low, high), name, _standing_out(name, (BACKGROUNDS[name],)))


def photograph(size: int, rng: np.random.Generator) -> Background:
    """Part of a photograph, with less contrast and in softer colours."""
    flat = list(FLAT)[rng.integers(len(FLAT))]
    photo = Image.blend(_part(size, rng), Image.new("RGB", (size, size), FLAT[flat]), BLEND)
    return Background(photo, None, _standing_out({"pale": "white", "dark": "black"}[flat], (FLAT[flat],)))


def _gradient(size: int, rng: np.random.Generator) -> Image.Image:
    """Linear, or radial around some point."""
    x, y = _grid(size)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        field = np.cos(angle) * x + np.sin(angle) * y
    else:
        field = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8))
    return _to_image(field)


def _texture(size: int, rng: np.random.Generator) -> Image.Image:
    """Waves, checks or dots, 6 to 24 of them a side."""
    x, y = _grid(size)
    turns, angle = rng.uniform(6, 24) * 2 * np.pi, rng.uniform(0, np.pi)
    u = np.sin(turns * (np.cos(angle) * x + np.sin(angle) * y) + 0.6 * np.sin(2 * np.pi * y))
    v = np.sin(turns * (np.cos(angle) * y - np.sin(angle) * x))
    return _to_image((u, np.sign(u * v) + 0.3 * y, np.maximum(u * v, 0))[rng.integers(3)])


def _noise(size: int, rng: np.random.Generator) -> Image.Image:
    """Clouds: noise at several scales, and a little grain."""
    field = rng.normal(0, 0.04, (size, size)).astype(np.float32)
    for cells in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(rng.normal(0, 1 / cells**0.8, (cells, cells)).astype(np.float32))
        field += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return _to_image(field)


def _light(size: int, rng: np.random.Generator) -> Image.Image:
    """A photograph's lightness."""
    return ImageOps.autocontrast(_part(size, rng).convert("L"), cutoff=2)


FIELDS = (_gradient, _texture, _noise, _light)


def _part(size: int, rng: np.random.Generator) -> Image.Image:
    photos = load_assets().photographs
    photo = photos[rng.integers(len(photos))]
    side = rng.uniform(0.6, 1.0) * min(photo.size)
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    part = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


@lru_cache(maxsize=2)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


def _to_image(field: np.ndarray) -> Image.Image:
    """Any values -> grey values over the whole range."""
    low, high = float(field.min()), float(field.max())
    return Image.fromarray(((field - low) * (255 / (high - low))).astype(np.uint8))


def _standing_out(name: str, shades: Sequence[Color]) -> tuple[str, ...]:
    return tuple(color for color in COLORS if color != name and contrast(color, shades) >= CONTRAST)


def contrast(color: str, shades: Sequence[Color]) -> float:
    """Least distance in CIE Lab of an object's colour from these, each a bit darker and lighter too."""
    object_lab = _lab(COLORS[color])
    around = [tuple(min(v * s, 255.0) for v in shade) for shade in shades for s in (1 - SHADE, 1, 1 + SHADE)]
    return min(float(np.linalg.norm(object_lab - _lab(shade))) for shade in around)


@lru_cache(maxsize=256)
def _lab(color: tuple[float, ...]) -> np.ndarray:
    """sRGB 0..255 -> CIE Lab, D65."""
    linear = np.array(
        [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in np.array(color) / 255]
    )
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
