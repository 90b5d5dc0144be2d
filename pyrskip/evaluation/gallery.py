"""Answers to look at: test questions under the gate's decisions, with what was kept drawn over the image.

Wrong answers are shown more often than they occur, up to a third, or a good gate would have none to look at.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pyrskip.evaluation.figures import shares_by_type
from pyrskip.evaluation.report import Shown, levels_of
from pyrskip.files import write_json
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable

SIDE, GAP = 128, 6
FRAME, FADED = (0, 114, 178), (128, 128, 128)
PLACE, FILE = "frontier/gallery", "gallery.json"
"""In a run's directory, and in there."""


def pick(action: Tensor, table: RolloutTable, count: int) -> list[int]:
    """Rows of a table to show, wrong answers first. action [N]: the gate's decisions."""
    wrong = table.score[torch.arange(len(table)), action] < 0.5
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    first = _in_turn(order[wrong[order]].tolist(), table.types)[: count // 3]
    return first + _in_turn(order[~wrong[order]].tolist(), table.types)[: count - len(first)]


def _in_turn(rows: Sequence[int], types: Sequence[str]) -> list[int]:
    """The rows, question types in turn."""
    seen: dict[str, int] = {}
    ranked = []
    for row in rows:
        seen[types[row]] = seen.get(types[row], 0) + 1
        ranked.append((seen[types[row]], types[row], row))
    return [row for _, _, row in sorted(ranked)]


def write_gallery(
    shown: Iterable[Shown],
    action: Tensor,
    table: RolloutTable,
    pyramid: Pyramid,
    price: float,
    directory: Path,
) -> None:
    """Write `directory`/gallery.json and a PNG a question, and how often each selection is taken by question
    type."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, one in enumerate(shown):
        picture = f"{number:03}.png"
        draw(one, pyramid).save(directory / picture)
        kept = sorted({int(level) for level, on in zip(pyramid.tile_level, one.kept, strict=True) if on})
        samples.append(
            {
                **{
                    name: getattr(one, name)
                    for name in ("question", "type", "answer", "truth", "right", "tokens")
                },
                "relative_flops": one.relative_cost,
                "levels": kept,
                "picture": picture,
            }
        )
    rows = torch.arange(len(table))
    told: dict[str, Any] = {
        "price": price,
        "wrong_share": float((table.score[rows, action] < 0.5).double().mean()),
        "selections": {
            "names": list(table.actions.names),
            "shares": shares_by_type(action, table.types, len(table.actions)),
        },
        "samples": samples,
    }
    write_json(directory / FILE, told)


def draw(shown: Shown, pyramid: Pyramid) -> Image.Image:
    """Every level beside the next, the finest first: kept tiles in colour and framed, skipped ones grey and
    crossed out."""
    levels = levels_of(shown.image, pyramid)
    picture = Image.new("RGBA", (len(levels) * (SIDE + GAP) - GAP, SIDE))
    pen = ImageDraw.Draw(picture)
    scale = SIDE / pyramid.size
    for level, pixels in enumerate(levels):
        left = level * (SIDE + GAP)
        colour = Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
        wide, tall = (
            max(1, round(side * scale * (1 << level))) for side in (pixels.shape[1], pixels.shape[0])
        )
        colour = colour.resize(
            (wide, tall), Image.Resampling.NEAREST if wide > colour.width else Image.Resampling.BOX
        )
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
