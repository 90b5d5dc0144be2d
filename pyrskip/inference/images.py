"""Images from outside: opened with care, since anybody may have made them."""

import io
from pathlib import Path

from PIL import Image

from pyrskip.errors import UserError
from pyrskip.files import there
from pyrskip.picture import FORMATS, seen

MAX_PIXELS = 40_000_000
"""Of an image before it is decoded: 120 MB."""

Source = Image.Image | bytes | str | Path


def open_image(source: Source) -> Image.Image:
    """A decoded image in RGB, as a person sees it. Raises UserError where there is none, where it is broken,
    of another format, or has too many pixels."""
    name = str(source) if isinstance(source, str | Path) else "the image"
    try:
        if isinstance(source, Image.Image):
            if 0 in source.size:
                raise UserError("the image has no pixels")
            return seen(source)
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else there(str(source)), formats=FORMATS
        ) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return seen(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist") from error
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise UserError(f"{name} cannot be read as {', '.join(FORMATS)}: {_reason(error)}") from error
    raise UserError(f"{name} has {width} x {height} pixels; allowed: {MAX_PIXELS} in all")


def is_image(path: Path) -> bool:
    """Whether a file's content begins as an image of FORMATS does, whatever it is called."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # decoders raise almost anything on bytes that are none
        return False


def _reason(error: Exception) -> str:
    # Pillow names the object that held the bytes, which says nothing to a user
    return "it is none" if "cannot identify" in str(error) else " ".join(str(error).split())
