"""The frontier for people: a table on the terminal, and sample images with what was kept."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrskip.evaluation.curves import average, groups, high, low, of_tiles
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.styles import BLUE, GREEN, RED
from pyrskip.pyramid import Pyramid, mipmaps
from pyrskip.rollouts.oracles import by_sample, by_type
from pyrskip.rollouts.table import OUTSIDE, RolloutTable

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
    """A question as answered under a decision. image uint8 [3, h, w]; kept [T] bool; tokens: realised, all
    tiles together; relative_cost: 1 = mean full."""

    image: Tensor
    question: str
    answer: str
    truth: str
    right: bool
    kept: Tensor
    tokens: int
    relative_cost: float
    type: str


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """The test split, a line a method and price (a few, evenly chosen); seeds are averaged, +- is their
    standard deviation."""
    table = Table(
        title="Accuracy and cost on the test split",
        caption="x full: FLOPs over the mean full pyramid's; x ref: over the model's without pyrskip; "
        "95 % CI: paired bootstrap over images, averaged over seeds; ms: one answer at batch 1, gate "
        "included; "
        "frontier.json holds every price",
    )
    table.add_column("method", no_wrap=True)
    for name in ("price", "seeds", "accuracy %", "95 % CI", "retention %", "x full", "x ref", "tokens", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = ""
    prices = sorted({r.price for r in rows if r.price is not None})
    told = {None, *prices[:: -(-len(prices) // PRICES_TOLD) or 1], *prices[-1:]}
    for group in groups([r for r in rows if r.split == "test" and r.price in told and not of_tiles(r)]):
        first = group[0]
        family = "fixed" if first.method == "hull" else first.method.split(":")[0]
        family = family if family in ("fixed", "random", "gate", "oracle") else ""
        if family != previous and table.rows:
            table.add_section()
        previous = family
        accuracy = f"{100 * average(group, lambda r: r.accuracy):.1f}"
        if len(group) > 1:
            accuracy += f" ±{100 * pstdev(r.accuracy for r in group):.1f}"
        table.add_row(
            first.method,
            "" if first.price is None else f"{first.price:.3g}",
            "" if first.seed is None else str(len(group)),
            accuracy,
            f"{100 * average(group, low):.1f} - {100 * average(group, high):.1f}",
            "" if first.retention is None else f"{100 * average(group, lambda r: r.retention or 0.0):.1f}",
            f"{average(group, lambda r: r.relative_flops):.3f}",
            f"{average(group, lambda r: r.flops_of_reference):.3f}",
            f"{average(group, lambda r: r.tokens):.1f}",
            "" if first.total_ms is None else f"{average(group, lambda r: r.total_ms or 0.0):.2f}",
        )
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    console.print(table)


def print_summary(told: Mapping[str, Any]) -> None:
    """What was asked of validation and what test says, a line a target."""
    print(
        f"floor: {told['lookup_accuracy']:.1%} by looking up the question alone; full pyramid "
        f"{told['full']['accuracy']:.2%}"
    )
    for target, at in told["targets"].items():
        gate, fixed = at["gate"], at["fixed"]
        if fixed is None or "cost_over_fixed" not in gate:
            print(
                f"{float(target):.1%} of full: not met on validation by "
                f"{'the gate' if fixed else 'any fixed selection'}"
            )
            continue
        ratio, kept, cost = gate["cost_over_fixed"], gate["retention"], gate["relative_flops"]
        print(
            f"{float(target):.1%} of full, price chosen on validation: the gate keeps {kept['mean']:.2%} at "
            f"{cost['mean']:.3f} "
            f"of full's FLOPs, {ratio['mean']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, "
            f"{ratio['seeds']} seeds) of the "
            f"cheapest fixed selection's ({fixed['method']}, {fixed['retention']:.2%} at "
            f"{fixed['relative_flops']:.3f})"
        )
    real = told["real_inference"]
    print(
        f"real inference on {real['questions']} test questions: accuracy {real['accuracy']:.2%}, from the "
        "table "
        f"{real['accuracy_from_table']:.2%}; {real['decisions_that_differ']} decisions and "
        f"{real['scores_that_differ']} scores "
        f"differ; "
        f"{real['tiles_encoded']} tiles encoded, {real['tiles_asked_for']} asked for"
    )
    if told["budget_weights"] is not None:
        print(
            "learned budget weights: "
            f"budget.weights=[{','.join(f'{weight:.4g}' for weight in told['budget_weights'])}]"
        )
    print(told["note"])


def print_rollouts(tables: Mapping[str, RolloutTable], console: Console | None = None) -> None:
    """What every listed action, and what is outside of the set, scores and costs; and the best action by type
    and by sample.

    tables: 'gate', 'val' and 'test'. Sets of single tiles are counted, not listed. Oracles are told on test,
    the one by type fitted on the gate's rollouts.
    """
    gate, test = tables["gate"], tables["test"]
    unit = gate.mean_full_flops
    table = Table(
        title=f"Rollouts with {gate.origin.get('model', 'a model')}",
        caption="x full: FLOPs over the mean full pyramid's",
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
