"""Sample questions as a picture that can be printed: every level, with what was kept."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from pyrskip.evaluation.inference import Shown
from pyrskip.evaluation.style import BLUE, GREEN, RED
from pyrskip.pyramid import Pyramid, mipmaps

DPI = 150
# inches of a picture; in that unit: from one level to the next, around a sample, its upper and its lower edge
UNIT, STEP, MARGIN, TOP, BOTTOM = 1.2, 1.08, 0.12, 1.2, -0.66


def plot_selections(samples: Sequence[Shown], pyramid: Pyramid, path: Path) -> None:
    """A PNG of samples: the image, every level with the tiles that were kept, question, answer and cost."""
    columns = 2 if pyramid.levels <= 4 else 1
    lines = max(-(-len(samples) // columns), 1)
    right = (pyramid.levels + 1) * STEP - (STEP - 1) + MARGIN
    wide, tall, head = UNIT * (right + MARGIN), UNIT * (TOP - BOTTOM), 0.35
    size = (columns * wide, lines * tall + head)
    figure = Figure(figsize=size, dpi=DPI)
    FigureCanvasAgg(figure)
    for i, shown in enumerate(samples):
        line, column = divmod(i, columns)
        corner = (column * wide / size[0], (lines - 1 - line) * tall / size[1])
        axes = figure.add_axes((*corner, wide / size[0], tall / size[1]))
        axes.axis("off")
        _draw_sample(axes, shown, pyramid)
        axes.set_xlim(-MARGIN, right)
        axes.set_ylim(BOTTOM, TOP)
    note = "Framed in blue: encoded. Grey and hatched: skipped, never encoded."
    figure.text(MARGIN * UNIT / size[0], 1 - 0.5 * head / size[1], note, fontsize=9, va="center")
    figure.savefig(path, dpi=DPI)


def _draw_sample(axes: Axes, shown: Shown, pyramid: Pyramid) -> None:
    """Units: a picture is 1 wide at most; the image comes first, the glance last."""
    _, height, width = shown.image.shape
    scale = 1.0 / max(height, width)
    extent = (0.0, width * scale, 1 - height * scale, 1.0)
    axes.imshow(shown.image.permute(1, 2, 0).numpy(), extent=extent, interpolation="nearest")
    axes.add_patch(
        Rectangle((0, extent[2]), extent[1], 1 - extent[2], fill=False, edgecolor="0.55", linewidth=0.6)
    )
    _write(axes, 1.04, shown.type, fontsize=7, va="bottom", color="0.3", style="italic")
    for level, picture in enumerate(levels_of(shown.image, pyramid)):
        left = (level + 1) * STEP
        rows, columns = picture.shape[:2]
        axes.text(left, 1.04, f"level {level} · {columns} x {rows}", fontsize=7, va="bottom", color="0.3")
        _draw_tiles(axes, shown, pyramid, level, picture, (left, left + extent[1], *extent[2:]))
    end = pyramid.levels * STEP + 1
    question = textwrap.wrap(textwrap.shorten(shown.question, int(28 * end), placeholder=" …"), int(15 * end))
    _write(axes, -0.06, "\n".join(question), fontsize=9, va="top")
    answer, truth = (
        textwrap.shorten(text, int(4 * end), placeholder=" …") for text in (shown.answer, shown.truth)
    )
    answer = f"✓ {answer}" if shown.right else f"✗ {answer or '(nothing)'}   (right: {truth})"
    low = -0.08 - 0.16 * len(question)
    _write(axes, low, answer, fontsize=9, va="top", weight="bold", color=GREEN if shown.right else RED)
    axes.text(end, low, f"cost {100 * shown.relative_cost:.0f} % of full", fontsize=9, va="top", ha="right")


def _write(axes: Axes, y: float, text: str, **look: Any) -> None:
    """Text of a data set at the left edge, as it is: a $ starts no formula, and what no font draws is left
    out."""
    axes.text(0, y, "".join(c for c in text if c.isprintable() or c == "\n"), parse_math=False, **look)


def _draw_tiles(
    axes: Axes,
    shown: Shown,
    pyramid: Pyramid,
    level: int,
    picture: Tensor,
    extent: tuple[float, float, float, float],
) -> None:
    """Kept tiles of a level in colour and framed, skipped ones hatched. picture [rows, columns, 3]."""
    rows, columns = picture.shape[:2]
    faded = picture.mean(-1, keepdim=True).expand(-1, -1, 3) * 0.25 + 0.7
    axes.imshow(faded.numpy(), extent=extent, interpolation="nearest")
    across, down = (extent[1] - extent[0]) / columns, (extent[3] - extent[2]) / rows
    for tile in (pyramid.tile_level == level).nonzero().squeeze(1).tolist():
        top, left = pyramid.tile_corner[tile].tolist()
        bottom, right = min(top + pyramid.side(level), rows), min(left + pyramid.side(level), columns)
        if bottom <= top or right <= left:
            continue
        box = (
            extent[0] + left * across,
            extent[0] + right * across,
            extent[3] - bottom * down,
            extent[3] - top * down,
        )
        corner, wide, tall = (box[0], box[2]), box[1] - box[0], box[3] - box[2]
        if bool(shown.kept[tile]):
            axes.imshow(picture[top:bottom, left:right].numpy(), extent=box, interpolation="nearest")
            axes.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor=BLUE, linewidth=2.2, zorder=3))
        else:
            axes.add_patch(
                Rectangle(corner, wide, tall, fill=False, edgecolor="0.55", linewidth=0.6, hatch="////")
            )


def levels_of(image: Tensor, pyramid: Pyramid) -> list[Tensor]:
    """The valid part of every level, [rows, columns, 3] in 0..1."""
    _, height, width = image.shape
    canvas = torch.zeros(1, 3, pyramid.size, pyramid.size)
    canvas[0, :, :height, :width] = image.float() / 255
    images = mipmaps(canvas, torch.tensor([[height, width]]), pyramid.levels)
    sizes = [(-(-height // (1 << level)), -(-width // (1 << level))) for level in range(pyramid.levels)]
    return [x[0, :, :h, :w].permute(1, 2, 0).clamp(0, 1) for x, (h, w) in zip(images, sizes, strict=True)]
