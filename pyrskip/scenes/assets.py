"""Fonts and photographs, read from the files of installed packages, which are never imported."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageFont

from pyrskip.errors import UserError

FONT_AWESOME = ("fontawesomefree", "static/fontawesomefree/webfonts/fa-solid-900.ttf")
DEJAVU = (
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif-Bold.ttf"),
)
# in the public domain or CC0, and none shows what an icon is named after: moon.png is ground with craters
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "rocket.jpg",
)


@dataclass(frozen=True)
class Assets:
    """Font files, and photographs in RGB."""

    icons: Path
    texts: tuple[Path, ...]
    photographs: tuple[Image.Image, ...]


@lru_cache(maxsize=1)
def load_assets() -> Assets:
    """Raises UserError naming what is missing, and how to install it."""
    icons = _find(*FONT_AWESOME)
    texts = tuple(_find(*font) for font in DEJAVU)
    photographs = []
    for name in PHOTOGRAPHS:
        with Image.open(_find("skimage", f"data/{name}")) as image:
            photographs.append(image.convert("RGB"))
    return Assets(icons, texts, tuple(photographs))


@lru_cache(maxsize=512)
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _find(package: str, name: str) -> Path:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    missing = f"{name} of the package {package}" if spec else f"the package {package}"
    raise UserError(
        f"data.source=scenes draws with {missing}, which is not there: pip install 'pyrskip[scenes]'"
    )
