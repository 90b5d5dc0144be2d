"""Answers to look at: test questions under the gate's decisions, with what was kept drawn over the image."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.evaluation.inference import Shown
from pyrskip.evaluation.runs import GALLERY_FILE
from pyrskip.files import write_json
from pyrskip.pyramid import Pyramid
from pyrskip.report.figures import shares_by_type
from pyrskip.report.selections import levels_of
from pyrskip.rollouts.table import RolloutTable

SIDE, GAP = 128, 6
FRAME, FADED = (0, 114, 178), (128, 128, 128)


def write_gallery(
    shown: Iterable[Shown],
    action: Tensor,
    table: RolloutTable,
    pyramid: Pyramid,
    price: float,
    directory: Path,
) -> None:
    """Write `directory`/gallery.json and a PNG a question, and how often each selection is taken by question
    type. Raises UserError where they cannot be written."""
    samples = []
    for number, one in enumerate(shown):
        picture = f"{number:03}.png"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            draw(one, pyramid).save(directory / picture)
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error}") from error
        levels = sorted({int(level) for level, on in zip(pyramid.tile_level, one.kept, strict=True) if on})
        samples.append(
            {
                **{
                    name: getattr(one, name)
                    for name in ("question", "type", "answer", "truth", "right", "tokens")
                },
                "relative_flops": one.relative_cost,
                "levels": levels,
                "picture": picture,
            }
        )
    rows = torch.arange(len(table))
    kept = table.steps(rows, action) > 0
    listed = action.where(action < len(table.actions), table.actions.touched(kept, pyramid.tile_level))
    content = {
        "price": price,
        "wrong_share": float((table.score[rows, action] < 0.5).double().mean()),
        "selections": {
            "names": list(table.actions.names),
            "shares": shares_by_type(listed, table.types, len(table.actions)),
        },
        "samples": samples,
    }
    write_json(directory / GALLERY_FILE, content)


def draw(shown: Shown, pyramid: Pyramid) -> Image.Image:
    """Every level beside the next, the finest first: kept tiles in colour and framed, skipped ones grey and
    crossed out. Where a level has several tiles, last the picture as the model saw it: `foveate`."""
    levels = levels_of(shown.image, pyramid)
    seen = [foveate(levels, shown.kept, pyramid)] if pyramid.tiles > pyramid.levels else []
    picture = Image.new("RGBA", ((len(levels) + len(seen)) * (SIDE + GAP) - GAP, SIDE))
    pen = ImageDraw.Draw(picture)
    for place, one in enumerate(seen, len(levels)):
        picture.paste(one, (place * (SIDE + GAP), 0))
    for level, pixels in enumerate(levels):
        left = level * (SIDE + GAP)
        colour = _scaled(pixels, level, pyramid)
        wide, tall = colour.size
        grey = Image.blend(colour.convert("L").convert("RGB"), Image.new("RGB", colour.size, FADED), 0.7)
        for tile in (pyramid.tile_level == level).nonzero().squeeze(1).tolist():
            x0, y0, x1, y1 = (round(float(v) * SIDE) for v in pyramid.tile_box[tile])
            x1, y1 = min(x1, wide), min(y1, tall)
            if x1 <= x0 or y1 <= y0:
                continue
            kept = bool(shown.kept[tile])
            picture.paste((colour if kept else grey).crop((x0, y0, x1, y1)), (left + x0, y0))
            box = (left + x0, y0, left + x1 - 1, y1 - 1)
            if kept:
                pen.rectangle(box, outline=FRAME, width=3)
            else:
                pen.line((box[0], box[3], box[2], box[1]), fill=FADED, width=1)
                pen.rectangle(box, outline=FADED, width=1)
    return picture


def foveate(levels: Sequence[Tensor], kept: Tensor, pyramid: Pyramid) -> Image.Image:
    """The picture as the model saw it: each place from the finest level that is kept there. levels: the valid
    part of each [rows, columns, 3] in 0..1; kept [T] bool, the glance among them."""
    picture = _scaled(levels[-1], pyramid.levels - 1, pyramid)
    for tile in reversed(kept.nonzero().squeeze(1).tolist()):
        own = _scaled(levels[pyramid.places[tile].level], pyramid.places[tile].level, pyramid)
        x0, y0, x1, y1 = (round(float(v) * SIDE) for v in pyramid.tile_box[tile])
        if x0 < own.width and y0 < own.height:
            picture.paste(own.crop((x0, y0, min(x1, own.width), min(y1, own.height))), (x0, y0))
    return picture


def _scaled(pixels: Tensor, level: int, pyramid: Pyramid) -> Image.Image:
    """A level's pixels at the size that the whole picture is drawn in."""
    image = Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
    scale = SIDE / pyramid.size * (1 << level)
    wide, tall = (max(1, round(side * scale)) for side in image.size)
    nearest = Image.Resampling.NEAREST if wide > image.width else Image.Resampling.BOX
    return image.resize((wide, tall), nearest)
