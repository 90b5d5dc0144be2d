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
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.inference.arrays import Floats
from pyrskip.inference.engine import Engine, Picture, Request, Selection
from pyrskip.picture import fitted, fitted_size, mipmaps, seen


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


def thumbnail(engine: Engine, image: Image.Image) -> Image.Image:
    """The glance of an image: all that `plan` needs of it, beside its size."""
    return _picture(_levels(engine, image)[-1])


def plan(
    engine: Engine,
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
    picture = Picture(np.array([height, width]), [*[None] * (pyramid.levels - 1), glance])
    rows = [engine.prepared(picture, Request(b"", question, price, max_tokens, retention))]
    decisions = engine.decide(rows, engine.glance(rows))
    pixels = pyramid.pixels(picture.size[None])[0]
    views = []
    for tile, (rows, columns) in enumerate(decisions.pooled[0].tolist()):
        if rows:
            level, *corner, _ = pyramid.places[tile]
            place = np.array(corner) << level, (corner + pixels[tile]) << level
            (top, left), (bottom, right) = (np.minimum(corner / picture.size, 1).tolist() for corner in place)
            tall, wide = np.minimum(pixels[tile], np.array([rows, columns]) * pyramid.stride).tolist()
            views.append(View(level, tile, (left, top, right, bottom), wide, tall))
    views.sort(key=lambda view: (-view.level, view.tile))
    return Plan(decisions.selections[0], tuple(views), (size[0], size[1]))


def views(engine: Engine, image: Image.Image, plan: Plan) -> list[Image.Image]:
    """The images of a plan, cut from the whole image."""
    image = seen(image)
    if image.size != plan.size:
        raise UserError(f"the plan was made for an image of {plan.size} pixels, this one has {image.size}")
    levels = _levels(engine, image)
    result = []
    for view in plan.views:
        cut = _picture(engine.spec.pyramid.crop(levels[view.level], view.tile))
        wanted = (view.width, view.height)
        result.append(cut if cut.size == wanted else cut.resize(wanted, Image.Resampling.BOX))
    return result


def chat(pictures: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """Messages for a server of OpenAI's chat interface, such as vLLM's or SGLang's: images as PNG data, then
    the question."""
    parts = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def conversation(pictures: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """A conversation for `apply_chat_template` of a processor of the transformers library."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _levels(engine: Engine, image: Image.Image) -> list[Floats]:
    return mipmaps(fitted(image, engine.spec.pyramid.size), engine.spec.pyramid.levels)


def _picture(level: Floats) -> Image.Image:
    return Image.fromarray((level * 255).round().astype(np.uint8).transpose(1, 2, 0))


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
