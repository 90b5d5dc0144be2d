"""Peers beside the gate, as a picture: pruners of the full pyramid, pruners behind the gate's decisions, and
other ways to decide."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyrskip.evaluation.curves import curve
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.methods import style_of
from pyrskip.evaluation.style import BLACK, BLUE, GREY, Section
from pyrskip.pruners import PRUNERS
from pyrskip.report.plots import DPI, LINES, MARKERS, finish, legend_of, save
from pyrskip.report.styles import CYCLE

PANELS = {
    "pruned:": "Pruners of the full pyramid",
    "gate+pruned:": "Pruners behind the gate",
    "": "Other ways to decide",
}
"""Prefixes of methods: titles."""


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against relative FLOPs on the test split, as a PNG: the gate, the hull of fixed selections,
    and every peer in a colour, a line and a marker of its own, pruners that look at no token in grey."""
    rows = [r for r in rows if r.split == "test"]
    figure = Figure(figsize=(18, 7.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
    for axes, (prefix, title) in zip(panels, PANELS.items(), strict=True):
        _behind(axes, rows)
        names = dict.fromkeys(r.method for r in rows if _is_of(r.method, prefix))
        blind = [name for name in names if getattr(PRUNERS.get(name.removeprefix(prefix)), "blind", False)]
        for name in names:
            grey = name in blind
            number = [n for n in names if (n in blind) == grey].index(name)
            drawn = curve([r for r in rows if r.method == name])
            axes.plot(
                drawn.x,
                drawn.y,
                color=GREY if grey else CYCLE[number % len(CYCLE)],
                linestyle=LINES[1 + number] if grey else LINES[number // len(CYCLE)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.4,
                label=name.removeprefix(prefix),
            )
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("FLOPs over the mean full pyramid's", fontsize=11)
        finish(axes)
    panels[0].set_ylabel("accuracy, %", fontsize=11)
    panels[0].set_xlim(left=0)
    legend_of(figure, panels, ncols=10)
    save(figure, path, DPI)


def _is_of(method: str, prefix: str) -> bool:
    """Whether a method belongs to a panel: by its name, or, where it decides for itself, by its section."""
    if prefix:
        return method.startswith(prefix)
    return ":" not in method and style_of(method).section in (Section.HEURISTICS, Section.PEERS)


def _behind(axes: Axes, rows: Sequence[Row]) -> None:
    """What every pruner is held against."""
    for method, look in {
        "gate": {"color": BLUE, "linewidth": 2.6, "marker": "o"},
        "hull": {"color": BLACK, "linewidth": 1.2, "linestyle": "--"},
        "full": {"color": BLACK, "linewidth": 0, "marker": "*", "markersize": 14},
    }.items():
        drawn = curve([r for r in rows if r.method == method])
        axes.plot(drawn.x, drawn.y, label=method, zorder=5, **look)  # type: ignore[arg-type]
