"""Draw docs/concepts.png: from an image and a question to a decision, an answer and a frontier.

`python docs/concepts.py [out.png]` needs pyrskip[train,scenes]. The scene is generated, and its levels, tiles
and tokens are computed; policy, rollout table and frontier are schematic. Places and sizes are in pixels of a
picture WIDTH wide, from its upper left corner.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from pyrskip.evaluation.hull import upper_hull
from pyrskip.evaluation.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.sample import Question
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.scene import make_scene

WIDTH, HEIGHT, DPI = 900, 620, 200
PT = 0.72
"""Points of a pixel."""
PYRAMID = Pyramid(size=512, levels=4, stride=16, grid=(2, 1, 1, 1))
SCENE = 113
"""Of the test split: a large object that the glance shows, and a word that level 0 alone shows."""
COLOURS = (BLACK, BLUE, GREEN, GREY, ORANGE, RED)
INK, SOFT, BAND = "0.15", "0.35", "0.955"
Pixels = NDArray[np.float32]


def draw(out: Path) -> None:
    """Write the picture as a PNG: the same bytes every time."""
    scene = make_scene(SceneConfig(size=PYRAMID.size), "test", SCENE)
    question = next(q for q in scene.questions if q.type == "sign_word")
    side = torch.tensor([[PYRAMID.size, PYRAMID.size]])
    pixels = torch.from_numpy(np.array(scene.paint().convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    levels = [level[0].permute(1, 2, 0).numpy() for level in mipmaps(pixels, side, PYRAMID.levels)]
    kept = _tiles_with(question.boxes[0]) | {PYRAMID.glance}
    capacity = PYRAMID.capacity(side)[0].tolist()

    with mpl.rc_context({"font.family": "DejaVu Sans", "hatch.linewidth": 0.5, "hatch.color": "0.5"}):
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        axes.axis("off")
        _decide(axes, levels, question.text)
        _look(axes, levels, kept, capacity)
        given, every = sum(capacity[tile] for tile in kept), sum(capacity)
        _answer(axes, levels, kept, question, f"{given} tokens")
        _arrow(axes, (490, 112), (513, 112), colour=BLUE, width=2.2)
        _arrow(axes, (707, 112), (741, 112), colour=BLUE, width=2.2)
        _learn(axes)
        _compare(figure, axes, given / every)
        canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # the colours that mean something are set, as quantization merges rare ones with others
    named = [round(255 * c) for colour in (*COLOURS, "white", BAND) for c in to_rgb(colour)]
    palette = picture.quantize(256 - len(named) // 3)
    palette.putpalette([*(palette.getpalette() or [])[: 768 - len(named)], *named])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)


def _tiles_with(box: tuple[float, float, float, float]) -> set[int]:
    """The tiles of level 0 that a box, x0, y0, x1, y1 in 0..1, touches."""
    x0, y0, x1, y1 = box
    return {
        tile
        for tile, (left, top, right, bottom) in enumerate(PYRAMID.tile_box.tolist())
        if PYRAMID.tile_level[tile] == 0 and left < x1 and x0 < right and top < y1 and y0 < bottom
    }


def _decide(axes: Axes, levels: list[Pixels], question: str) -> None:
    """The pyramid, what the gate reads, and its policy."""
    _band(axes, (8, 8, 488, 384), "decide", "before any fine pixel is encoded")
    _text(axes, 20, 57, "pyramid", weight="bold")
    for level, (left, top, side) in enumerate(_places(20)):
        _picture(axes, levels[level], left, top, side)
        _frame(axes, left, top, side, *((ORANGE, 2.4) if level == PYRAMID.levels - 1 else (SOFT, 0.7)))
    for x, y, name in (
        (208, 57, "level 0 · 512 px"),
        (114, 274, "level 1 · 256 px"),
        (180, 341, "128 px"),
        (226, 318, "64 px"),
    ):
        _text(axes, x, y, name, size=11, colour=SOFT, ha="right")
    _text(axes, 137, 274, "level 2", size=11, colour=SOFT)
    _text(axes, 190, 274, "level 3", size=11, colour=SOFT)

    left, top, side = 262, 70, 96
    _text(axes, left, 57, "glance", weight="bold")
    _picture(axes, levels[-1], left, top, side)
    _frame(axes, left, top, side, ORANGE, 2.4)
    axes.plot([217, 240, 240], [296, 296, 118], color=ORANGE, linewidth=1.6, zorder=3)
    _arrow(axes, (239.4, 118), (259, 118), colour=ORANGE)
    words = question.split()
    middle = -(-len(words) // 2)
    _text(axes, left, 200, "query", weight="bold")
    _box(axes, (254, 211, 112, 44), "white", SOFT)
    _text(axes, 310, 233, f"“{' '.join(words[:middle])}\n{' '.join(words[middle:])}”", size=11, ha="center")
    _text(axes, left, 291, "price", weight="bold")
    axes.plot([264, 356], [311, 311], color=SOFT, linewidth=2.5, solid_capstyle="round")
    axes.plot([298], [311], marker="o", color=BLACK, markersize=8)
    _text(axes, left, 330, "look", size=11, colour=SOFT)
    _text(axes, left + side, 330, "save", size=11, colour=SOFT, ha="right")

    _box(axes, (402, 205, 82, 56), BLUE, BLUE)
    _text(axes, 443, 233, "gate", size=18, weight="bold", colour="white", ha="center")
    for start, end in (((361, 130), (399, 215)), ((369, 233), (399, 233)), ((361, 309), (399, 251))):
        _arrow(axes, start, end)
    _text(axes, 402, 57, "policy", weight="bold")
    _text(axes, 443, 76, "mode", size=11, colour=BLUE, ha="center")
    for i, chance in enumerate((0.08, 0.15, 0.03, 0.45, 0.09, 0.18, 0.02)):
        tall = 138 * chance
        colour = BLUE if chance > 0.4 else "0.72"
        axes.add_patch(Rectangle((403.5 + 11.5 * i, 148 - tall), 10, tall, color=colour))
    axes.plot([400, 486], [148, 148], color=SOFT, linewidth=0.8)
    _text(axes, 443, 159, "over decisions", size=11, colour=SOFT, ha="center")
    _arrow(axes, (443, 202), (443, 171))


def _look(axes: Axes, levels: list[Pixels], kept: set[int], capacity: list[int]) -> None:
    """The same pyramid: kept tiles in colour and framed, skipped ones grey and hatched."""
    _band(axes, (504, 8, 220, 384), "look", "encode what is kept")
    _text(axes, 516, 57, "decision", weight="bold")
    places = _places(516)
    for tile, level in enumerate(PYRAMID.tile_level.tolist()):
        left, top, side = places[level]
        x0, y0, x1, _ = PYRAMID.tile_box[tile].tolist()
        left, top, wide = left + x0 * side, top + y0 * side, (x1 - x0) * side
        part = _part(levels, tile)
        if tile in kept:
            _picture(axes, part, left, top, wide)
            _frame(axes, left, top, wide, BLUE, 2.8)
        else:
            grey = np.repeat(part.mean(-1, keepdims=True) * 0.25 + 0.7, 3, axis=-1)
            _picture(axes, grey, left, top, wide)
            look: dict[str, Any] = {"edgecolor": "0.5", "linewidth": 0.6, "hatch": "/////", "zorder": 3}
            axes.add_patch(Rectangle((left, top), wide, wide, fill=False, **look))
        _tag(axes, left, top, wide, capacity[tile] * (tile in kept))
    _text(axes, 704, 57, "tokens of each tile", size=11, colour=SOFT, ha="right")


def _answer(axes: Axes, levels: list[Pixels], kept: set[int], asked: Question, tokens: str) -> None:
    """The kept tiles as visual tokens, each in its cell's mean colour, and the question, read together."""
    _band(axes, (732, 8, 160, 384), "answer", "")
    _text(axes, 744, 57, "visual tokens", weight="bold")
    cell, left = 5.6, 744.0
    for tile in sorted(kept):
        part = _part(levels, tile)
        count = len(part) // PYRAMID.stride
        means = part.reshape(count, PYRAMID.stride, count, PYRAMID.stride, 3).mean((1, 3))
        for i, j in np.ndindex(count, count):
            corner = (left + j * cell, 70 + i * cell)
            axes.add_patch(Rectangle(corner, cell - 1, cell - 1, facecolor=means[i, j], linewidth=0))
        left += count * cell + 9
    _text(axes, 744, 185, "query", weight="bold")
    for i, word in enumerate(asked.text.split()):
        row, column = divmod(i, 3)
        _box(axes, (744 + 46 * column, 196 + 23 * row, 43, 19), "white", "0.6")
        _text(axes, 765.5 + 46 * column, 205.5 + 23 * row, word, size=11, ha="center")
    _arrow(axes, (812, 250), (812, 277))
    _box(axes, (744, 280, 136, 34), "0.25", "0.25")
    _text(axes, 812, 297, "language model", size=14, weight="bold", colour="white", ha="center")
    _arrow(axes, (812, 317), (812, 335))
    _text(axes, 812, 349, f"✓ {asked.answers[0]}", size=18, weight="bold", colour=GREEN, ha="center")
    axes.plot([752], [376], marker="D", color=RED, markersize=6)
    _text(axes, 764, 376, f"score 1, {tokens}", size=11)


def _learn(axes: Axes) -> None:
    """How the gate is trained from a rollout table."""
    _band(axes, (8, 402, 488, 210), "learn", "dashed: in training alone")
    _text(axes, 20, 452, "rollout table", weight="bold")
    _text(axes, 252, 452, "blue: a right answer", size=11, colour=SOFT, ha="right")
    right = np.random.default_rng(3).random((6, 10)) < np.linspace(0.15, 0.95, 10)
    for i, j in np.ndindex(*right.shape):
        face = BLUE if right[i, j] else "white"
        axes.add_patch(
            Rectangle((84 + 17 * j, 466 + 17 * i), 15, 15, facecolor=face, edgecolor="0.6", lw=0.5)
        )
    _text(axes, 20, 516, "questions", size=11, colour=SOFT)
    _text(axes, 168, 581, "actions, from cheap to dear", size=11, colour=SOFT, ha="center")
    _text(axes, 296, 506, "environment", size=11, colour=SOFT, ha="center")
    _arrow(axes, (260, 516), (335, 516), dashed=True)
    _box(axes, (338, 480, 146, 76), "white", INK)
    _text(axes, 411, 499, "learning rule", weight="bold", ha="center")
    _text(axes, 411, 530, "reward = score\n- price x cost", size=12, ha="center")
    _arrow(axes, (443, 477), (443, 264), dashed=True)


def _compare(figure: Figure, axes: Axes, cost: float) -> None:
    """A schematic frontier. cost: of the decision that is drawn, 1 = the full pyramid."""
    _band(axes, (504, 402, 388, 210), "compare", "means over many questions")
    _text(axes, 880, 422, "frontier", weight="bold", ha="right")
    plot = figure.add_axes((542 / WIDTH, 1 - 584 / HEIGHT, 338 / WIDTH, 136 / HEIGHT), zorder=9)
    plot.set(xlim=(0, 1.08), ylim=(0.5, 1.05), xticks=[], yticks=[], facecolor="none")
    plot.spines[["top", "right"]].set_visible(False)
    plot.set_xlabel("cost", fontsize=12 * PT, color=INK, labelpad=3)
    plot.set_ylabel("accuracy", fontsize=12 * PT, color=INK, labelpad=3)
    x = (0.06, 0.12, 0.2, 0.3, 0.42, 0.56, 0.72)
    fixed = (0.06, 0.15, 0.26, 0.34, 0.75, 0.83, 0.94, 1.0), (0.6, 0.66, 0.76, 0.75, 0.86, 0.89, 0.92, 0.96)
    hull = upper_hull(*fixed)
    dealt = (0.6, 0.62, 0.65, 0.69, 0.74, 0.8, 0.86)
    gate = (0.6, 0.7, 0.785, 0.86, 0.905, 0.935, 0.95)
    plot.plot(x, gate, BLUE, marker="o", lw=2.4, ms=5, label="gate", zorder=5)
    plot.plot(x, dealt, GREY, marker=".", lw=1.5, label="random")
    plot.plot([1], [0.96], BLACK, marker="*", ms=12, mec="white", linestyle="", label="full", zorder=6)
    rings: dict[str, Any] = {
        "mfc": "white",
        "mec": BLACK,
        "ms": 4.5,
        "label": "fixed selections",
        "zorder": 4,
    }
    plot.plot(*(of[1:-1] for of in fixed), "o", **rings)
    plot.plot(*([of[i] for i in hull] for of in fixed), BLACK, linestyle="--", lw=1.3, label="their hull")
    plot.plot([cost], [1], RED, marker="D", ms=7, mec="white", zorder=7)
    plot.text(cost + 0.035, 1, "this decision, one question", fontsize=11 * PT, va="center", color=INK)
    plot.legend(loc="lower right", ncols=2, frameon=False, fontsize=11 * PT, borderaxespad=0)


def _places(left: float) -> list[tuple[float, float, float]]:
    """Left, top and side of each level: level 0 above, the others beside each other below it, to scale."""
    return [(left, 70, 188), (left, 286, 94), (left + 113, 286, 47), (left + 174, 286, 23.5)]


def _tag(axes: Axes, left: float, top: float, side: float, tokens: int) -> None:
    """How many tokens are asked of a tile: within it, or below it where it is small."""
    inside = side > 40
    wide = 10 + 7 * len(str(tokens))
    x = left + (side - wide - 4 if inside else (side - wide) / 2)
    y = top + side + (-20 if inside else 6)
    colour = BLUE if tokens else "0.45"
    axes.add_patch(Rectangle((x, y), wide, 16, facecolor=colour, linewidth=0, zorder=6))
    _text(axes, x + wide / 2, y + 8, str(tokens), size=11, weight="bold", colour="white", ha="center")


def _part(levels: list[Pixels], tile: int) -> Pixels:
    """A tile's pixels."""
    level = int(PYRAMID.tile_level[tile])
    side, (row, column) = PYRAMID.side(level), PYRAMID.tile_corner[tile].tolist()
    return levels[level][row : row + side, column : column + side]


def _picture(axes: Axes, pixels: Pixels, left: float, top: float, side: float) -> None:
    axes.imshow(pixels, extent=(left, left + side, top + side, top), aspect="auto", zorder=2)


def _frame(axes: Axes, left: float, top: float, side: float, colour: str, width: float) -> None:
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, lw=width, zorder=4))


def _band(axes: Axes, place: tuple[float, float, float, float], verb: str, note: str) -> None:
    _box(axes, place, BAND, BAND, 8)
    title = _text(axes, place[0] + 12, place[1] + 20, verb, size=19, weight="bold")
    behind: dict[str, Any] = {"xycoords": (title, axes.transData), "textcoords": "offset points"}
    axes.annotate(note, (1, title.get_position()[1]), (9, 0), fontsize=12 * PT, color=SOFT, **behind)


def _box(
    axes: Axes, place: tuple[float, float, float, float], face: str, edge: str, corner: float = 5
) -> None:
    left, top, wide, tall = place
    style = f"round,pad=0,rounding_size={corner}"
    axes.add_patch(FancyBboxPatch((left, top), wide, tall, boxstyle=style, facecolor=face, edgecolor=edge))


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    colour: str = INK,
    width: float = 1.4,
    dashed: bool = False,
) -> None:
    look: dict[str, Any] = {
        "color": colour,
        "linewidth": width,
        "linestyle": (0, (4, 3)) if dashed else "-",
        "zorder": 5,
    }
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, **look)
    )


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 13,
    weight: str = "normal",
    colour: str = INK,
    ha: str = "left",
) -> Text:
    """y: the middle of the text, of a line that has capitals."""
    look: dict[str, Any] = {"fontsize": size * PT, "weight": weight, "color": colour, "ha": ha, "zorder": 8}
    if "\n" in text:
        return axes.text(x, y, text, va="center", linespacing=1.15, **look)
    return axes.text(x, y + 0.36 * size, text, va="baseline", **look)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
