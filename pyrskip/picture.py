"""Pictures before they are tensors: the one way that an image is opened, seen and fitted, in training and in
service alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""That are opened, as Pillow names them."""
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
    image = seen(image)
    wanted = fitted_size(image.width, image.height, size)
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1).copy()


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image that was fitted."""
    scale = min(1.0, size / max(width, height))
    return (width, height) if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


def mipmaps(image: NDArray[np.uint8], levels: int) -> list[NDArray[np.float32]]:
    """Levels of one image in 0..1, finest first: a pixel is the mean of those below it. [3, h, w] -> L x [3,
    ., .]. `pyrskip.pyramid.mipmaps` does the same for padded batches of tensors."""
    total = image.astype(np.float32)
    count = np.ones(total.shape[1:], dtype=np.float32)
    result = [total / np.float32(255)]
    for _ in range(levels - 1):
        total, count = _sum_by_four(total), _sum_by_four(count)
        result.append(total / (count * np.float32(255)))
    return result


def _sum_by_four(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of 2 x 2 blocks; what a ragged edge lacks counts as 0. [..., h, w] -> [..., ceil(h / 2), ceil(w /
    2)]."""
    rows, columns = x.shape[-2:]
    if rows % 2 or columns % 2:
        x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows % 2), (0, columns % 2)])
    total: NDArray[np.float32] = (x[..., ::2, ::2] + x[..., ::2, 1::2]) + (
        x[..., 1::2, ::2] + x[..., 1::2, 1::2]
    )
    return total
