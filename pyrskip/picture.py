"""Pictures before they are tensors: the one way that an image is opened, seen and fitted, in training and in
service alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are opened, as Pillow names them."""
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
"""How names of their files end."""
SIGNATURES = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpg": (b"\xff\xd8\xff",),
    "webp": (b"RIFF",),
    "gif": (b"GIF87a", b"GIF89a"),
    "bmp": (b"BM",),
    "tif": (b"II*\0", b"MM\0*"),
}
"""How the bytes of a picture begin, by the extension that it is kept under."""
DEEP = (1 << 16) - 1
WHITES = (1, 255, DEEP)
"""What is white in pictures of 32 bits a pixel, which do not say it: 1 in floating point alone."""
TELLS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps what a file says of its orientation."""
_T = Image.Transpose
TURNS = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}
"""Orientation in EXIF -> what makes the picture upright; 1 is upright, and so is what is none of these."""


def seen(image: Image.Image) -> Image.Image:
    """The picture in RGB as a person sees it: upright by its EXIF, over white where it is transparent, its
    depth scaled to 8 bits. A file that was just opened shows its first frame.

    An upright RGB picture is given back itself; no other is changed. Raises whatever its decoder does.
    """
    raw = _raw_mode(image)
    image.load()
    turn = TURNS.get(_orientation(image))
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I;16"):
        flat = _over_key(image, raw)
    elif image.mode in ("I", "F"):
        flat = _grey(np.asarray(image))
    elif image.has_transparency_data:
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")
    else:
        flat = image.convert("RGB")
    if turn is not None:
        flat = flat.transpose(turn)
        flat.info = {}  # or whoever reads the EXIF again turns it again
    return flat


def _orientation(image: Image.Image) -> Any:
    if image.info.keys().isdisjoint(TELLS) and not getattr(image, "_exif", None) and image.format != "TIFF":
        return None  # looking for none takes a tenth of what a small picture does
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # what is broken in EXIF is no fault of the pixels
        return None


def _raw_mode(image: Image.Image) -> str:
    """How a PNG that is not loaded yet stores its pixels, such as 'L;4'; '' where that is not known."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _over_key(image: Image.Image, raw: str) -> Image.Image:
    """A picture without an alpha channel in RGB, white where its colour is the one that it names as
    transparent. raw: of a PNG, whose key has the depth of the file."""
    if image.mode == "RGB":
        flat = image
    else:
        flat = _grey(np.asarray(image), DEEP) if ";" in image.mode else image.convert("RGB")
    key: Any = image.info.get("transparency")
    if not isinstance(key, int | tuple) or isinstance(key, tuple) != (image.mode == "RGB"):
        return flat
    if raw in ("L;2", "L;4"):
        key *= 255 // ((1 << int(raw[2:])) - 1)
    elif raw.startswith("RGB;16"):
        key = np.asarray(key) >> 8
    elif image.mode == "1":
        key = bool(key)
    hit = np.asarray(image) == np.asarray(key)
    pixels = np.array(flat)
    pixels[hit.all(-1) if image.mode == "RGB" else hit] = 255
    return Image.fromarray(pixels)


def _grey(values: NDArray[Any], white: float | None = None) -> Image.Image:
    """Grey of any depth [h, w] in RGB: 0 is black, and `white` white. Where that is not known it is the first
    of WHITES that is not below any value, or the highest value; what is below 0 stretches the range down."""
    wide = np.where(np.isfinite(values), values, 0).astype(np.float32)
    low, high = min(0.0, float(wide.min())), float(wide.max())
    if white is None:
        known = WHITES[values.dtype.kind != "f" :]
        white = next((white for white in known if high <= white and not low), high)
    grey = (wide - low) * (255 / max(white - low, 1e-30))
    return Image.fromarray((grey + 0.5).astype(np.uint8)).convert("RGB")


def fitted(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The image as uint8 [3, h, w] with h, w <= size: as `seen` has it, shrunk by area filtering where
    larger, never enlarged."""
    return np.asarray(shrunk(image, size)).transpose(2, 0, 1).copy()


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """What `fitted` shows, as a picture."""
    image = seen(image)
    wanted = fitted_size(image.width, image.height, size)
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.BOX)


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image that was fitted."""
    scale = min(1.0, size / max(width, height))
    return (width, height) if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


class Mipmaps(Mapping[int, NDArray[np.float32]]):
    """Levels of one image in 0..1, 0 the finest: a pixel is the mean of those below it. Each is made when it
    is first asked for. `pyrskip.pyramid.mipmaps` does the same for padded batches of tensors.

    pixels: [h, w, 3]; a level is [3, ., .].
    """

    def __init__(self, pixels: NDArray[np.uint8], levels: int) -> None:
        self.pixels, self.levels = pixels, levels
        self.made: dict[int, NDArray[np.float32]] = {}

    def __getitem__(self, level: int) -> NDArray[np.float32]:
        if not 0 <= level < self.levels:
            raise KeyError(level)
        if level not in self.made:
            total, count = _sums(self.pixels, 1 << level)
            self.made[level] = total.astype(np.float32) / (count.astype(np.float32) * np.float32(255))
        return self.made[level]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.levels))

    def __len__(self) -> int:
        return self.levels

    def rounded(self, level: int) -> NDArray[np.uint8]:
        """A level as pictures have it, [3, ., .]."""
        if level == 0:
            return self.pixels.transpose(2, 0, 1)
        return (self[level] * 255).round().astype(np.uint8)


def _sums(pixels: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sums of blocks of so many pixels a side, and how many pixels a ragged edge leaves of each: [h, w, 3] ->
    [3, ., .], [., .]."""
    rows, columns, _ = pixels.shape
    tall, wide = -(-rows // side), -(-columns // side)
    if (tall * side, wide * side) != (rows, columns):
        pixels = np.pad(pixels, [(0, tall * side - rows), (0, wide * side - columns), (0, 0)])
    # rows first: whole rows are added at once, and what is left is a `side`-th
    down = pixels.reshape(tall, side, -1).sum(1, dtype=np.uint16 if side <= 256 else np.uint32)
    planes = np.ascontiguousarray(down.reshape(tall, -1, 3).transpose(2, 0, 1))
    # a sum over a short last axis takes eight times as long
    total = planes[..., ::side].astype(np.uint32)
    for column in range(1, side):
        total += planes[..., column::side]
    counts = (np.minimum(side, n - np.arange(0, n, side)) for n in (rows, columns))
    return total, np.outer(*counts)
