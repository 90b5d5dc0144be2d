"""The frontier as a picture that can be printed."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from pyrskip.errors import UserError
from pyrskip.evaluation.comparison import Entry, band, by_pair
from pyrskip.evaluation.curves import curve as curve_of
from pyrskip.evaluation.curves import groups, of_tiles
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.methods import METHODS, style_of
from pyrskip.evaluation.style import BLACK
from pyrskip.report.styles import in_turn

DPI = 150
FORMATS = (".svg", ".pdf", ".png")
# type 42 and text as text: fonts stay editable, and publishers accept them
FOR_PAPERS: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8,
    "svg.hashsalt": "pyrskip",
}
MARKERS = ("o", "s", "^", "v", "D", "P")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (6, 2)))
PANELS = {"gate": "The gate and the fixed selections", "explained": "What explains the gate"}
"""Of plot_frontier, by what styles call them: titles."""


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against relative FLOPs on the test split, as a PNG: the gate beside what it competes with, and
    beside what tells why it works."""
    rows = [r for r in rows if r.split == "test"]
    floor = [r for r in rows if style_of(r.method).kind == "floor"]
    others = [r for r in rows if style_of(r.method).kind != "floor"]
    figure = Figure(figsize=(13, 6.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    low, high = _range([r.accuracy for r in others])
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        for method, own in _of_panel(rows, panel).items():
            _draw(axes, method, own)
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("FLOPs over the mean full pyramid's", fontsize=11)
        axes.set_axisbelow(True)
        finish(axes)
    panels[0].set_ylim(low, high)
    panels[0].set_xlim(0, 1.06 * max(r.relative_flops for r in rows))
    panels[0].set_ylabel("accuracy, %", fontsize=11)
    for axes in panels:
        _floor(axes, floor, low)
    legend_of(figure, panels, ncols=5)
    figure.canvas.draw()
    full = {r.flops for r in rows if r.method == "full"}
    for axes, panel in zip(panels, PANELS, strict=True):
        ringed = [r for r in rows if _drawn(r, panel, "selections") and not of_tiles(r)]
        _label_fixed(axes, [r for r in ringed if r.flops not in full])
    save(figure, path, DPI)


def plot_runs(runs: Mapping[str, Sequence[Row]], path: Path, method: str = "gate") -> None:
    """One method's test curve of several runs with 95 % intervals, one column of a paper wide.

    runs: label -> rows. What is drawn behind them, the full pyramid, the reference and the hull of fixed
    selections, is the first run's. Raises UserError where a run has no such method, or
    the file's ending is none of FORMATS.
    """
    check_format(path)
    colours = in_turn(runs)
    drawn = {
        label: [r for r in rows if r.split == "test" and r.method == method] for label, rows in runs.items()
    }
    for label, rows in drawn.items():
        if not rows:
            raise UserError(
                f"{label} has no method {method!r}; allowed: "
                f"{', '.join(sorted({r.method for r in runs[label]}))} ({METHODS.page} says how to register "
                "another)"
            )
    base = [r for r in next(iter(runs.values())) if r.split == "test"]
    with mpl.rc_context(FOR_PAPERS):
        figure = Figure(figsize=(3.5, 2.7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        behind = _of_panel(base, "runs")
        for name, own in behind.items():
            _draw(axes, name, own, small=True)
        for marker, (label, rows) in zip(MARKERS * len(drawn), drawn.items(), strict=False):
            curve = curve_of(rows)
            style: dict[str, Any] = {
                "color": colours[label],
                "marker": marker,
                "markersize": 3.5,
                "linewidth": 1.4,
                "zorder": 5,
            }
            axes.plot(curve.x, curve.y, label=label, **style)
            axes.fill_between(curve.x, curve.low, curve.high, color=colours[label], alpha=0.15, linewidth=0)
            if len(curve.x) == 1:  # a band needs two
                axes.vlines(curve.x, curve.low, curve.high, color=colours[label], linewidth=1)
        shown = [r for rows in (*drawn.values(), *behind.values()) for r in rows]
        axes.set_ylim(*_range([r.accuracy for r in shown]))
        axes.set_xlim(0, 1.06 * max(r.relative_flops for r in shown))
        axes.set_xlabel("FLOPs over the mean full pyramid's")
        axes.set_ylabel("accuracy, %")
        finish(axes)
        axes.legend(frameon=False, fontsize=7, loc="lower right")
        save(figure, path)


def plot_comparison(
    entries: Sequence[Entry], behind: Mapping[str, Sequence[Sequence[tuple[float, float]]]], path: Path
) -> None:
    """Retention against cost on the test split: a line a pair of rule and policy with the range of its gates,
    or their single points where they reach no range of costs together.

    behind: method -> (cost, retention) of each flex seed. Raises UserError where the file's ending is none of
    FORMATS.
    """
    check_format(path)
    with mpl.rc_context(FOR_PAPERS):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for method, curves in behind.items():
            for number, curve in enumerate(curves):
                label, line = method if number == 0 else None, style_of(method).line
                axes.plot(*zip(*curve, strict=True), line, color=BLACK, label=label, linewidth=0.8)
        policies = list(dict.fromkeys(e.policy for e in entries))
        colours = in_turn(e.rule for e in entries)
        for pair, of_pair in by_pair(entries).items():
            colour, line = colours[of_pair[0].rule], LINES[policies.index(of_pair[0].policy) % len(LINES)]
            drawn = band(of_pair)
            if drawn:
                cost, middle, least, greatest = zip(*drawn, strict=True)
                axes.plot(cost, middle, linestyle=line, color=colour, label=pair, linewidth=1.4)
                axes.fill_between(cost, least, greatest, color=colour, alpha=0.08, linewidth=0)
            else:
                x, y = [e.relative_flops for e in of_pair], [e.retention for e in of_pair]
                axes.scatter(x, y, s=12, color=colour, label=pair)
        axes.set_xlabel("FLOPs over the mean full pyramid's")
        axes.set_ylabel("accuracy over the full pyramid's")
        finish(axes)
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower right")
        save(figure, path)


def check_format(path: Path) -> None:
    """Raises UserError for a name that ends in none of FORMATS."""
    if path.suffix not in FORMATS:
        raise UserError(
            f"out={path} is no picture that can be drawn; allowed: a name that ends in {', '.join(FORMATS)}"
        )


def legend_of(figure: Figure, panels: Iterable[Axes], ncols: int) -> None:
    """One legend below all panels, each label once."""
    handles = {
        label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False, fontsize=10
    )


def finish(axes: Axes) -> None:
    """Faint grid, open frame."""
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, dpi: int = 300) -> None:
    """Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # without a date the same rows give the same file
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        figure.savefig(path, dpi=dpi, metadata=metadata)
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error}") from error


def _of_panel(rows: Sequence[Row], panel: str) -> dict[str, list[Row]]:
    """The rows of each method that is a curve or a point there, in the order of the tables."""
    found: dict[str, list[Row]] = {}
    for row in (row for group in groups(rows) for row in group):
        if _drawn(row, panel, "curve", "point"):
            found.setdefault(row.method, []).append(row)
    return found


def _drawn(row: Row, panel: str, *kinds: str) -> bool:
    style = style_of(row.method)
    return panel in style.panels and style.kind in kinds


def _draw(axes: Axes, method: str, rows: Sequence[Row], small: bool = False) -> None:
    curve, style = curve_of(rows), style_of(method)
    if style.kind == "point":
        axes.scatter(
            curve.x,
            curve.y,
            s=style.area / 4 if small else style.area,
            c=style.colour,
            marker=style.marker,
            zorder=6,
            label=method,
            edgecolors="white" if MarkerStyle(style.marker).is_filled() else None,
        )
        return
    axes.plot(
        curve.x,
        curve.y,
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markersize=6 if style.band else 5,
        linewidth=2.4 if style.band else 1.0 if small else 1.5,
        zorder=5 if style.band else 3,
        label=f"{method} (95 % band)" if style.band else method,
    )
    if style.band:
        axes.fill_between(curve.x, curve.low, curve.high, color=style.colour, alpha=0.15, linewidth=0)


def _range(accuracy: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis in percent, with room below for a note."""
    low, high = 100 * min(accuracy), 100 * max(accuracy)
    room = max(high - low, 1.0)
    return low - 0.14 * room, high + 0.08 * room


def _floor(axes: Axes, rows: Sequence[Row], low: float) -> None:
    """Accuracies that no axis needs to reach: a line each, or a note where it lies below the axis."""
    for row in rows:
        value = 100 * row.accuracy
        if value > low:
            axes.axhline(
                value, color=style_of(row.method).colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1
            )
        text = f"{row.method.replace('_', ' ')}: {value:.1f} %" + ("" if value > low else ", below this axis")
        axes.text(
            *(0.99, max(value, low), text),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=9,
            color="0.35",
        )


def _label_fixed(axes: Axes, fixed: Sequence[Row]) -> None:
    """The fixed selections as rings, each named where its name hides as little as can be. The figure must be
    drawn."""
    x, y = [r.relative_flops for r in fixed], [100 * r.accuracy for r in fixed]
    axes.scatter(x, y, s=42, facecolors="white", edgecolors=BLACK, linewidths=1.2, zorder=4)
    corners = [
        axes.transData.transform(point)
        for points in axes.collections
        for point in np.asarray(points.get_offsets())
    ]
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
        spots = (
            (14, -tall / 2),
            (across, above),
            (across, below),
            (-14 - wide, -tall / 2),
            (10, below),
            (-10 - wide, above),
        )
        boxes = [(left + dx, bottom + dy, left + dx + wide, bottom + dy + tall) for dx, dy in spots]
        boxes = [box for box in boxes if frame.x0 < box[0] and box[2] < frame.x1]
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(box)
        place = axes.transData.inverted().transform(box[:2])
        axes.text(float(place[0]), float(place[1]), name, fontsize=9, va="bottom", ha="left", zorder=7)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
