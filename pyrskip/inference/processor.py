"""Selection processor: decide for a model that is served elsewhere, before its server sizes any placeholder.

Servers of vision-language models (vLLM, SGLang, transformers' own) count the visual tokens of a prompt from
its images' sizes before an encoder runs. So the decision must be made first, from the question and a
thumbnail: `plan` makes it, `views` cuts the images that it names, and `chat` or `conversation` puts them into
a request. Nothing of pyrskip then runs in the server.

    image = seen(Image.open("photo.jpg"))                 # upright, from pyrskip.picture
    picture = thumbnail(engine, image)                    # or made where the image is kept: 16 px for the
    default pyramid
    decided = plan(engine, picture, image.size, "what colour is it?", price=0.05)
    messages = chat(views(engine, image, decided), "what colour is it?")

A gate that reads how sure the model is after the glance cannot plan: the model that answers is elsewhere, and
tells nothing before it is sent its images.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.inference.arrays import Ints
from pyrskip.inference.decider import Decider, Picture, Request, Selection
from pyrskip.picture import Mipmaps, fitted_size, seen, shrunk
from pyrskip.pyramid import Pyramid


@dataclass(frozen=True)
class View:
    """An image to hand over: a tile of a level, at the resolution that the decision pays for. box: x0, y0,
    x1, y1 as shares of the image's width and height; width, height: pixels."""

    level: int
    tile: int
    box: tuple[float, float, float, float]
    width: int
    height: int


@dataclass(frozen=True)
class Plan:
    """Views, coarse to fine: the glance comes first. size: width and height of the image that it was made
    for."""

    selection: Selection
    views: tuple[View, ...]
    size: tuple[int, int]


def thumbnail(engine: Decider, image: Image.Image) -> Image.Image:
    """The glance of an image: all that `plan` needs of it, beside its size."""
    return _picture(_levels(engine, image).rounded(engine.spec.pyramid.levels - 1))


def plan(
    engine: Decider,
    thumbnail: Image.Image,
    size: tuple[int, int],
    question: str,
    *,
    price: float | None = None,
    max_tokens: int | None = None,
    retention: float | None = None,
) -> Plan:
    """Decide from a thumbnail and a question. size: width and height of the whole image, upright.

    Raises UserError for a gate that needs the model's answer, a thumbnail that is not this image's glance,
    and what `Engine.select` refuses.
    """
    pyramid = engine.spec.pyramid
    for name, signal in engine.spec.signals.items():
        if signal.source == "first_token":
            raise UserError(
                f"this gate reads {name}, which the model gives once it has read the glance, but a server "
                "must know every image's size before it reads the first; allowed: gates that decide from the "
                "question and the glance alone"
            )
    width, height = fitted_size(*size, pyramid.size)
    shrink = 1 << (pyramid.levels - 1)
    wanted = (-(-width // shrink), -(-height // shrink))
    if thumbnail.size != wanted:
        raise UserError(
            f"the thumbnail has {thumbnail.size} pixels; allowed for an image of {size}: {wanted}; the size "
            "of an image that its EXIF turns is that of pyrskip.picture.seen(image)"
        )
    glance = np.asarray(seen(thumbnail)).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    picture = Picture(np.array([height, width]), {pyramid.levels - 1: glance})
    rows = [engine.prepared(picture, Request(b"", question, price, max_tokens, retention))]
    decisions = engine.decide(rows, engine.glance(rows))
    made = views_of(pyramid, picture.size, decisions.pooled[0])
    return Plan(decisions.selections[0], made, (size[0], size[1]))


def views_of(pyramid: Pyramid, size: Ints, pooled: Ints) -> tuple[View, ...]:
    """The views of a decision, coarse to fine and row by row within a level. size [2]: rows and columns of
    the image on the canvas; pooled [T, 2]: of each tile's map as it is kept, 0 where it is skipped."""
    pixels = pyramid.pixels(size[None])[0]
    views = []
    for tile, (rows, columns) in enumerate(pooled.tolist()):
        if rows:
            level, *corner, _ = pyramid.places[tile]
            place = np.array(corner) << level, (corner + pixels[tile]) << level
            (top, left), (bottom, right) = (np.minimum(corner / size, 1).tolist() for corner in place)
            tall, wide = np.minimum(pixels[tile], np.array([rows, columns]) * pyramid.stride).tolist()
            views.append(View(level, tile, (left, top, right, bottom), wide, tall))
    return tuple(sorted(views, key=lambda view: (-view.level, view.tile)))


def views(engine: Decider, image: Image.Image, plan: Plan) -> list[Image.Image]:
    """The images of a plan, cut from the whole image."""
    image = seen(image)
    if image.size != plan.size:
        raise UserError(f"the plan was made for an image of {plan.size} pixels, this one has {image.size}")
    return cut(engine.spec.pyramid, _levels(engine, image), plan.views)


def cut(pyramid: Pyramid, levels: Mipmaps, views: Sequence[View]) -> list[Image.Image]:
    """The views' pictures, of the image whose levels these are."""
    result = []
    whole = {level: levels.rounded(level) for level in {view.level for view in views}}
    for view in views:
        picture = _picture(pyramid.crop(whole[view.level], view.tile))
        wanted = (view.width, view.height)
        result.append(picture if picture.size == wanted else picture.resize(wanted, Image.Resampling.BOX))
    return result


def chat(pictures: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """Messages for a server of OpenAI's chat interface, such as vLLM's or SGLang's: images as PNG data, then
    the question."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def conversation(pictures: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """A conversation for `apply_chat_template` of a processor of the transformers library."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def data_url(picture: Image.Image) -> str:
    """An RGB picture as PNG in a data URL."""
    return f"data:image/png;base64,{base64.b64encode(_png(np.asarray(picture))).decode()}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """[h, w, 3] as PNG, every row as differences to the pixel on its left. Pillow tries five filters for each
    row, which takes several times as long as all of this."""
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    flat = pixels.reshape(height, -1)
    rows[:, 0], rows[:, 1:4] = 1, flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": _deflated(rows.data),
        b"IEND": b"",
    }
    chunks = ((struct.pack(">I", len(of)), kind, of, _sum(kind, of)) for kind, of in parts.items())
    return b"".join((b"\x89PNG\r\n\x1a\n", *chain.from_iterable(chunks)))


def _deflated(content: memoryview) -> bytes:
    try:
        from isal.isal_zlib import compress
    except ImportError:  # three times as slow, and an even picture becomes twelve times as large
        packed = zlib.compressobj(1, strategy=zlib.Z_RLE)
        return packed.compress(content) + packed.flush()
    return compress(content, 1)


def _sum(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _levels(engine: Decider, image: Image.Image) -> Mipmaps:
    pyramid = engine.spec.pyramid
    return Mipmaps(np.asarray(shrunk(image, pyramid.size)), pyramid.levels)


def _picture(level: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(level.transpose(1, 2, 0))
