"""The frontier for people: a table on the terminal, the curves, and sample images with what was kept."""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrskip.evaluation.frontier import Row
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.rollouts.oracles import by_sample, by_type
from pyrskip.rollouts.table import OUTSIDE, RolloutTable

# Okabe-Ito: told apart with any colour vision
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#8C8C8C"
LINES = {
    "gate": (BLUE, "-", "o"),
    "gate:query_only": (ORANGE, "-", "s"),
    "gate:glance_only": (GREEN, "-", "^"),
    "gate:shuffled_query": (PURPLE, ":", "v"),
    "random": (GREY, "-", "."),
    "random:bernoulli": (GREY, "--", "x"),
    "hull": (BLACK, "--", ""),
    "oracle:type": (RED, "-.", "1"),
    "oracle:sample": (RED, ":", "2"),
    "oracle:cross": (RED, "--", "3"),
    "cosine": (SKY, "--", "P"),
}
"""Method -> colour, line, marker of a curve over prices (or over vertices, probabilities, levels)."""
POINTS = {"full": (BLACK, "*", 190), "reference": (RED, "D", 60), "heuristic": (SKY, "X", 90)}
"""Method -> colour, marker, area of a single point."""
PANELS = {
    "The gate and the fixed selections": (
        *("hull", "oracle:sample", "oracle:cross", "oracle:type", "gate", "full", "reference"),
    ),
    "What the decision is worth": (
        *("hull", "random", "random:bernoulli", "cosine", "gate:shuffled_query", "gate:glance_only", "gate:query_only"),
        *("gate", "heuristic", "full", "reference"),
    ),
}
ORDER = (
    *("full", "reference", "question_only", "fixed", "hull", "heuristic", "cosine", "random:bernoulli", "random"),
    *("gate:shuffled_query", "gate:glance_only", "gate:query_only", "gate", "oracle:type", "oracle:cross", "oracle:sample"),
)
DPI = 150
# columns of a table that goes to a file
WIDTH = 120
# lines of the table for one method, about
PRICES_TOLD = 6
ORACLE_PRICES = (0.01, 0.1)

# inches of a picture; in that unit: from one level to the next, around a sample, its upper and its lower edge
UNIT, STEP, MARGIN, TOP, BOTTOM = 1.2, 1.08, 0.12, 1.2, -0.66


@dataclass(frozen=True)
class Shown:
    """A question as answered under a decision. image uint8 [3, h, w]; kept [T] bool; relative_cost: 1 = mean full."""

    image: Tensor
    question: str
    answer: str
    truth: str
    kept: Tensor
    relative_cost: float
    type: str


@dataclass(frozen=True)
class Curve:
    """Means over seeds along a method's prices: x relative FLOPs, y accuracy, low and high its interval, in percent."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """The test split, a line a method and price (a few, evenly chosen); seeds are averaged, +- is their standard deviation."""
    table = Table(
        title="Accuracy and cost on the test split",
        caption="x full: FLOPs over the mean full pyramid's; x ref: over the model's without pyrskip; "
        "95 % CI: paired bootstrap over images, averaged over seeds; ms: one answer at batch 1, gate included; "
        "frontier.json holds every price",
    )
    table.add_column("method", no_wrap=True)
    for name in ("price", "seeds", "accuracy %", "95 % CI", "retention %", "x full", "x ref", "tokens", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    prices = sorted({r.price for r in rows if r.price is not None})
    told = {None, *prices[:: -(-len(prices) // PRICES_TOLD) or 1], *prices[-1:]}
    for group in _groups([r for r in rows if r.split == "test" and r.price in told and not _of_tiles(r)]):
        first = group[0]
        family = "fixed" if first.method == "hull" else first.method.split(":")[0]
        family = family if family in ("fixed", "random", "gate", "oracle") else ""
        if family != previous and table.rows:
            table.add_section()
        previous = family
        accuracy = f"{100 * _mean(group, lambda r: r.accuracy):.1f}"
        if len(group) > 1:
            accuracy += f" ±{100 * pstdev(r.accuracy for r in group):.1f}"
        table.add_row(
            first.method,
            "" if first.price is None else f"{first.price:.3g}",
            "" if first.seed is None else str(len(group)),
            accuracy,
            f"{100 * _mean(group, _low):.1f} - {100 * _mean(group, _high):.1f}",
            "" if first.retention is None else f"{100 * _mean(group, lambda r: r.retention or 0.0):.1f}",
            f"{_mean(group, lambda r: r.relative_flops):.3f}",
            f"{_mean(group, lambda r: r.flops_of_reference):.3f}",
            f"{_mean(group, lambda r: r.tokens):.1f}",
            "" if first.total_ms is None else f"{_mean(group, lambda r: r.total_ms or 0.0):.2f}",
        )
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    console.print(table)


def print_summary(told: Mapping[str, Any]) -> None:
    """What was asked of validation and what test says, a line a target."""
    print(f"floor: {told['lookup_accuracy']:.1%} by looking up the question alone; full pyramid {told['full']['accuracy']:.2%}")
    for target, at in told["targets"].items():
        gate, fixed = at["gate"], at["fixed"]
        if fixed is None or "cost_over_fixed" not in gate:
            print(f"{float(target):.1%} of full: not met on validation by {'the gate' if fixed else 'any fixed selection'}")
            continue
        ratio, kept, cost = gate["cost_over_fixed"], gate["retention"], gate["relative_flops"]
        print(
            f"{float(target):.1%} of full, price chosen on validation: the gate keeps {kept['mean']:.2%} at {cost['mean']:.3f} "
            f"of full's FLOPs, {ratio['mean']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, {ratio['seeds']} seeds) of the "
            f"cheapest fixed selection's ({fixed['method']}, {fixed['retention']:.2%} at {fixed['relative_flops']:.3f})"
        )
    real = told["real_inference"]
    print(
        f"real inference on {real['questions']} test questions: accuracy {real['accuracy']:.2%}, from the table "
        f"{real['accuracy_from_table']:.2%}; {real['decisions_that_differ']} decisions and {real['scores_that_differ']} scores "
        f"differ; "
        f"{real['tiles_encoded']} tiles encoded, {real['tiles_asked_for']} asked for"
    )
    print(told["note"])


def print_rollouts(tables: Mapping[str, RolloutTable], console: Console | None = None) -> None:
    """What every listed action, and what is outside of the set, scores and costs; and the best action by type and by sample.

    tables: 'gate', 'val' and 'test'. Sets of single tiles are counted, not listed. Oracles are told on test, the one by type
    fitted on the gate's rollouts.
    """
    gate, test = tables["gate"], tables["test"]
    unit = gate.mean_full_flops
    table = Table(
        title=f"Rollouts with {gate.origin.get('model', 'a model')}", caption="x full: FLOPs over the mean full pyramid's"
    )
    table.add_column("decision", no_wrap=True)
    for name in (*(f"{split} %" for split in tables), "x full"):
        table.add_column(name, justify="right", no_wrap=True)
    for column, name in enumerate((*gate.actions.names, *OUTSIDE)):
        if "." not in name:
            scores = [f"{100 * float(t.score[:, column].mean()):.1f}" for t in tables.values()]
            table.add_row(name, *scores, f"{float(gate.cost.flops[:, column].mean()) / unit:.3f}")
    rows = torch.arange(len(test))
    for price in ORACLE_PRICES:
        best = by_type(gate, price, unit)
        picks = {
            "oracle:type": torch.tensor([best.get(kind, test.actions.full) for kind in test.types]),
            "oracle:sample": by_sample(test, price, unit),
        }
        for name, action in picks.items():
            score = f"{100 * float(test.score[rows, action].mean()):.1f}"
            cost = f"{float(test.cost.flops[rows, action].mean()) / unit:.3f}"
            table.add_row(f"{name}, price {price:g}", *[""] * (len(tables) - 1), score, cost)
    (console or Console(width=None if sys.stdout.isatty() else WIDTH)).print(table)
    counts = (f"{split}: {len(t.image_keys)} images, {len(t)} questions" for split, t in tables.items())
    print(f"{len(gate.actions)} actions; {'; '.join(counts)}")


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against relative FLOPs on the test split, as a PNG: the gate beside what it competes with, and beside
    what tells why it works."""
    rows = [r for r in rows if r.split == "test"]
    figure = Figure(figsize=(13, 6.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    low, high = _range([r.accuracy for r in rows if r.method != "question_only"])
    for axes, (title, methods) in zip(panels, PANELS.items(), strict=True):
        for method in methods:
            _draw(axes, method, [r for r in rows if r.method == method])
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("FLOPs over the mean full pyramid's", fontsize=11)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(low, high)
    panels[0].set_xlim(0, 1.06 * max(r.relative_flops for r in rows))
    panels[0].set_ylabel("accuracy, %", fontsize=11)
    for axes in panels:
        _floor(axes, [r for r in rows if r.method == "question_only"], low)
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    figure.canvas.draw()
    full = {r.flops for r in rows if r.method == "full"}
    _label_fixed(panels[0], [r for r in rows if r.method.startswith("fixed:") and not _of_tiles(r) and r.flops not in full])
    figure.savefig(path, dpi=DPI)


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


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seed alone, method by method; rows without a seed stay alone."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.method, row.price) if row.seed is not None else (i,), []).append(row)
    return sorted(groups.values(), key=lambda group: ORDER.index(group[0].method.replace("fixed:", "fixed ").split()[0]))


def _of_tiles(row: Row) -> bool:
    """A fixed selection of single tiles: there may be thousands, so the files alone list them."""
    return row.method.startswith("fixed:") and "." in row.method


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return mean(value(row) for row in rows)


def _accuracy(row: Row) -> float:
    return row.accuracy


def _low(row: Row) -> float:
    return row.accuracy_ci95[0]


def _high(row: Row) -> float:
    return row.accuracy_ci95[1]


def _cost(row: Row) -> float:
    return row.relative_flops


def _curve(rows: Sequence[Row]) -> Curve:
    groups = sorted(_groups(rows), key=lambda g: (g[0].price or 0.0, _mean(g, _cost)))
    accuracy, low, high = ([100 * _mean(g, value) for g in groups] for value in (_accuracy, _low, _high))
    return Curve([_mean(g, _cost) for g in groups], accuracy, low, high)


def _draw(axes: Axes, method: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    curve = _curve(rows)
    if method in POINTS:
        colour, marker, area = POINTS[method]
        axes.scatter(curve.x, curve.y, s=area, c=colour, marker=marker, zorder=6, label=method, edgecolors="white")
        return
    colour, line, marker = LINES[method]
    main = method == "gate"
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=6 if main else 5,
        linewidth=2.4 if main else 1.5,
        zorder=5 if main else 3,
        label="gate (95 % band)" if main else method,
    )
    if main:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def _range(accuracy: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis in percent, with room below for a note."""
    low, high = 100 * min(accuracy), 100 * max(accuracy)
    room = max(high - low, 1.0)
    return low - 0.14 * room, high + 0.08 * room


def _floor(axes: Axes, rows: Sequence[Row], low: float) -> None:
    """The accuracy without an image: a line, or a note where it lies below the axis."""
    if not rows:
        return
    value = 100 * rows[0].accuracy
    if value > low:
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    text = f"question only: {value:.1f} %" + ("" if value > low else ", below this axis")
    place = axes.get_yaxis_transform()
    axes.text(0.99, max(value, low), text, transform=place, ha="right", va="bottom", fontsize=9, color="0.35")


def _label_fixed(axes: Axes, fixed: Sequence[Row]) -> None:
    """The fixed selections as rings, each named where its name hides as little as can be. The figure must be drawn."""
    x, y = [r.relative_flops for r in fixed], [100 * r.accuracy for r in fixed]
    axes.scatter(x, y, s=42, facecolors="white", edgecolors=BLACK, linewidths=1.2, zorder=4)
    corners = [axes.transData.transform(point) for points in axes.collections for point in np.asarray(points.get_offsets())]
    marks = [(float(a), float(b)) for a, b in corners]
    for line in axes.get_lines():
        ends = [axes.transData.transform(point) for point in np.asarray(line.get_xydata())]
        marks += [tuple(a + (b - a) * i / 40) for a, b in pairwise(ends) for i in range(41)]
    taken = [(a - 7, b - 7, a + 7, b + 7) for a, b in marks]
    frame = axes.get_window_extent()
    for i, row in enumerate(fixed):
        name = row.method.removeprefix("fixed:")
        left, bottom = axes.transData.transform((x[i], y[i]))
        wide, tall = 12.5 * len(name) + 4, 20
        above, below, across = 12, -12 - tall, -wide / 2
        spots = ((14, -tall / 2), (across, above), (across, below), (-14 - wide, -tall / 2), (10, below), (-10 - wide, above))
        boxes = [(left + dx, bottom + dy, left + dx + wide, bottom + dy + tall) for dx, dy in spots]
        boxes = [box for box in boxes if frame.x0 < box[0] and box[2] < frame.x1]
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        place = axes.transData.inverted().transform(box[:2])
        axes.text(float(place[0]), float(place[1]), name, fontsize=9, va="bottom", ha="left", zorder=7)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_sample(axes: Axes, shown: Shown, pyramid: Pyramid) -> None:
    """Units: a picture is 1 wide at most; the image comes first, the glance last."""
    _, height, width = shown.image.shape
    scale = 1.0 / max(height, width)
    extent = (0.0, width * scale, 1 - height * scale, 1.0)
    axes.imshow(shown.image.permute(1, 2, 0).numpy(), extent=extent, interpolation="nearest")
    axes.add_patch(Rectangle((0, extent[2]), extent[1], 1 - extent[2], fill=False, edgecolor="0.55", linewidth=0.6))
    axes.text(0, 1.04, shown.type, fontsize=7, va="bottom", color="0.3", style="italic")
    for level, picture in enumerate(_levels(shown.image, pyramid)):
        left = (level + 1) * STEP
        rows, columns = picture.shape[:2]
        axes.text(left, 1.04, f"level {level} · {columns} x {rows}", fontsize=7, va="bottom", color="0.3")
        _draw_tiles(axes, shown, pyramid, level, picture, (left, left + extent[1], *extent[2:]))
    end = pyramid.levels * STEP + 1
    question = textwrap.wrap(textwrap.shorten(shown.question, int(28 * end), placeholder=" …"), int(15 * end))
    axes.text(0, -0.06, "\n".join(question), fontsize=9, va="top")
    right = shown.answer.strip().lower() == shown.truth.strip().lower()
    answer, truth = (textwrap.shorten(text, int(4 * end), placeholder=" …") for text in (shown.answer, shown.truth))
    answer = f"✓ {answer}" if right else f"✗ {answer or '(nothing)'}   (right: {truth})"
    low = -0.08 - 0.16 * len(question)
    axes.text(0, low, answer, fontsize=9, va="top", weight="bold", color=GREEN if right else RED)
    axes.text(end, low, f"cost {100 * shown.relative_cost:.0f} % of full", fontsize=9, va="top", ha="right")


def _draw_tiles(
    axes: Axes, shown: Shown, pyramid: Pyramid, level: int, picture: Tensor, extent: tuple[float, float, float, float]
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
        box = (extent[0] + left * across, extent[0] + right * across, extent[3] - bottom * down, extent[3] - top * down)
        corner, wide, tall = (box[0], box[2]), box[1] - box[0], box[3] - box[2]
        if bool(shown.kept[tile]):
            axes.imshow(picture[top:bottom, left:right].numpy(), extent=box, interpolation="nearest")
            axes.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor=BLUE, linewidth=2.2, zorder=3))
        else:
            axes.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor="0.55", linewidth=0.6, hatch="////"))


def _levels(image: Tensor, pyramid: Pyramid) -> list[Tensor]:
    """The valid part of every level, [rows, columns, 3] in 0..1."""
    _, height, width = image.shape
    canvas = torch.zeros(1, 3, pyramid.size, pyramid.size)
    canvas[0, :, :height, :width] = image.float() / 255
    images = mipmaps(canvas, torch.tensor([[height, width]]), pyramid.levels)
    sizes = [(-(-height // (1 << level)), -(-width // (1 << level))) for level in range(pyramid.levels)]
    return [x[0, :, :h, :w].permute(1, 2, 0).clamp(0, 1) for x, (h, w) in zip(images, sizes, strict=True)]
