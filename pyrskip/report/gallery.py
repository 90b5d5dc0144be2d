"""Answers to look at: test questions under the gate's decisions, with what was kept drawn over the image."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.evaluation.inference import Shown
from pyrskip.evaluation.runs import GALLERY_FILE
from pyrskip.files import write_json
from pyrskip.pyramid import Pyramid
from pyrskip.report.detail import FADED, SIDE, draw_finest, draw_heat, foveate, named, scaled
from pyrskip.report.figures import shares_by_type
from pyrskip.report.selections import levels_of
from pyrskip.rollouts.table import RolloutTable

GAP, FRAME = 6, (0, 114, 178)


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
    crossed out. Where a level has several tiles, then the picture as the model saw it and the finest level of
    each region; beneath, what the gate thought of each tile, where it tells."""
    levels = levels_of(shown.image, pyramid)
    above = [_level(level, pixels, shown, pyramid) for level, pixels in enumerate(levels)]
    if pyramid.tiles > pyramid.levels:
        above.append(named(foveate(levels, shown.kept, pyramid), "as seen"))
        above.append(named(draw_finest(levels, shown.kept, pyramid), "finest level"))
    beneath = [named(draw_heat(score, levels, pyramid), name) for name, score in shown.heat.items()]
    rows = [above, beneath] if beneath else [above]
    wide, tall = max(map(len, rows)) * (SIDE + GAP) - GAP, len(rows) * (SIDE + GAP) - GAP
    picture = Image.new("RGBA", (wide, tall))
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            picture.paste(panel, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return picture


def _level(level: int, pixels: Tensor, shown: Shown, pyramid: Pyramid) -> Image.Image:
    """A level, with its tiles framed or crossed out."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    colour = scaled(pixels, level, pyramid)
    wide, tall = colour.size
    grey = Image.blend(colour.convert("L").convert("RGB"), Image.new("RGB", colour.size, FADED), 0.7)
    for tile in (pyramid.tile_level == level).nonzero().squeeze(1).tolist():
        x0, y0, x1, y1 = (round(float(v) * SIDE) for v in pyramid.tile_box[tile])
        x1, y1 = min(x1, wide), min(y1, tall)
        if x1 <= x0 or y1 <= y0:
            continue
        kept = bool(shown.kept[tile])
        picture.paste((colour if kept else grey).crop((x0, y0, x1, y1)), (x0, y0))
        box = (x0, y0, x1 - 1, y1 - 1)
        if kept:
            pen.rectangle(box, outline=FRAME, width=3)
        else:
            pen.line((box[0], box[3], box[2], box[1]), fill=FADED, width=1)
            pen.rectangle(box, outline=FADED, width=1)
    return picture
