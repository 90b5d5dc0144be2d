"""Draw docs/first.png: what three questions need of one picture, and what a gate that was trained saves.

`python docs/first.py [out.png]` needs pyrskip[train,scenes]. The scene is generated, and its levels, tiles
and tokens are computed; what a question needs is the generator's ground truth. The chart is of the released
run's record, docs/results/easy_vqa.json.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pyrskip.evaluation.results import Record, read_record
from pyrskip.evaluation.style import BLACK, BLUE, GREEN, GREY, RED
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.sample import Question
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.scene import make_scene

RECORD = Path(__file__).parent / "results" / "easy_vqa.json"
PYRAMID = Pyramid(size=512, levels=4, stride=16, grid=(4, 2, 1, 1))
SCENE = 117
"""Of the test split: its questions need the glance, a quarter of level 1 and a sixteenth of level 0."""
ASKED = ("large_object", "count", "sign_word")
INK, SOFT = "0.15", "0.4"


def draw(out: Path) -> None:
    """Write the picture as a PNG: the same bytes every time."""
    scene = make_scene(SceneConfig(size=PYRAMID.size), "test", SCENE)
    side = torch.tensor([[PYRAMID.size, PYRAMID.size]])
    pixels = torch.from_numpy(np.array(scene.paint().convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    levels = [
        Image.fromarray((level[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        for level in mipmaps(pixels, side, PYRAMID.levels)
    ]
    capacity = PYRAMID.capacity(side)[0].tolist()
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=(18, 5.3), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        figure.text(
            0.0115, 0.915, "What three questions need of one picture", size=19, weight="bold", color=INK
        )
        questions = {question.type: question for question in scene.questions}
        for place, kind in enumerate(ASKED):
            axes = figure.add_axes((0.012 + 0.205 * place, 0.205, 0.19, 0.19 * 18 / 5.3))
            _look(axes, levels, questions[kind], capacity)
        figure.text(0.69, 0.915, "What a gate saves, measured", size=19, weight="bold", color=INK)
        _measured(figure.add_axes((0.69, 0.15, 0.3, 0.72)), read_record(RECORD))
        canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(out, "PNG", optimize=True)


def _look(axes: Axes, levels: list[Image.Image], asked: Question, capacity: list[int]) -> None:
    """The scene as a model sees it that encodes the glance and the tiles of the question's level that hold
    what it asks for, with the question, its answer and its tokens below."""
    kept = {PYRAMID.glance} | {
        tile
        for tile, (left, top, right, bottom) in enumerate(PYRAMID.tile_box.tolist())
        if PYRAMID.tile_level[tile] == asked.level
        and any(left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in asked.boxes)
    }
    full = (PYRAMID.size, PYRAMID.size)
    seen = levels[-1].resize(full, Image.Resampling.BICUBIC)
    for tile in kept - {PYRAMID.glance}:
        box = tuple(round(PYRAMID.size * place) for place in PYRAMID.tile_box[tile].tolist())
        sharp = levels[int(PYRAMID.tile_level[tile])].resize(full, Image.Resampling.BICUBIC)
        seen.paste(sharp.crop(box), box[:2])
    axes.imshow(seen)
    axes.set(xticks=[], yticks=[])
    for tile in kept:
        x0, y0, x1, y1 = (PYRAMID.size * place for place in PYRAMID.tile_box[tile].tolist())
        look = {"fill": False, "edgecolor": BLUE, "linewidth": 3.5, "clip_on": False}
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, **look))
    for spine in axes.spines.values():
        spine.set_visible(False)
    tokens, every = sum(capacity[tile] for tile in kept), sum(capacity)
    below = {"transform": axes.transAxes, "va": "top", "color": INK}
    axes.text(0, -0.045, f"“{asked.text}”", size=13.5, **below)
    axes.text(0, -0.125, f"✓ {asked.answers[0]}", size=17, **below | {"color": GREEN, "weight": "bold"})
    axes.text(1, -0.13, f"{tokens} of {every:,} tokens", size=13.5, ha="right", **below)


def _measured(axes: Axes, run: Record) -> None:
    """Accuracy over FLOPs: the gate at every price, fixed choices, random ones, and the model without it."""
    curves = {name: np.array(points).T for name, points in run.curves.items()}
    x, y, low, high = curves["gate"]
    axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, y, color=BLUE, marker="o", markersize=6, linewidth=3, zorder=5)
    axes.plot(
        *curves["hull"][:2], color=BLACK, linestyle="--", marker="o", markerfacecolor="white", linewidth=1.8
    )
    axes.plot(*curves["random"][:2], color=GREY, marker=".", linewidth=2)
    for line, colour, marker in (("reference", RED, "D"), ("full", BLACK, "*")):
        at = run.line(line)
        axes.plot(at.of_full, 100 * at.accuracy, color=colour, marker=marker, markersize=9, zorder=6)
    for name, place, colour in (
        ("the gate", (0.19, 99.55), BLUE),
        ("the best fixed choices", (0.41, 98.55), BLACK),
        ("the gate's choices\nat random", (0.255, 97.15), "0.4"),
        ("the model alone", (0.63, 99.45), RED),
        ("everything", (1.0, 99.68), BLACK),
    ):
        ha = "right" if name in ("the gate", "everything") else "left"
        axes.text(*place, name, color=colour, size=14, ha=ha, va="top" if ha == "left" else "center")
    thin = {"arrowstyle": "-", "color": BLACK, "linewidth": 0.8}
    axes.annotate("", (0.31, 99.23), (0.42, 98.55), arrowprops=thin)
    axes.set(xlim=(0, 1.03), ylim=(94.8, 100.2))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_yticks([95, 96, 97, 98, 99, 100], [f"{n}%" for n in range(95, 101)])
    axes.tick_params(labelsize=13, colors=SOFT)
    axes.set_xlabel("FLOPs an answer", size=14, color=SOFT)
    axes.set_ylabel("accuracy", size=14, color=SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
