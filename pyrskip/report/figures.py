"""Interactive plots, for the report and for trackers alike.

Axes: N questions, K question types, S selections.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from pyrskip.evaluation.curves import average, cost, groups, high, low, of_tiles
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.methods import style_of
from pyrskip.evaluation.style import BLUE
from pyrskip.report.styles import DASHES, SYMBOLS, in_turn

AXES = ("FLOPs over the mean full pyramid's", "accuracy, %")
FIXED = "fixed selections"


def frontier_figure(rows: Sequence[Row]) -> go.Figure:
    """Accuracy against relative FLOPs on the test split, a trace a method; hovering tells a point's method,
    price, accuracy and cost."""
    figure = go.Figure()
    traces: dict[str, list[Row]] = {}
    for row in (row for group in groups([r for r in rows if r.split == "test"]) for row in group):
        kind = style_of(row.method).kind
        if kind != "floor" and not of_tiles(row):
            traces.setdefault(FIXED if kind == "selections" else row.method, []).append(row)
    selections = traces.pop(FIXED, [])
    for name, own in (*traces.items(), (FIXED, selections)):
        _add(figure, name, own)
    return _finish(figure, *AXES)


def runs_figure(runs: Mapping[str, Sequence[Row]], method: str = "gate") -> go.Figure:
    """One method's test curve of several runs, and behind them the first run's full pyramid and hull."""
    figure, colours = go.Figure(), in_turn(runs)
    base = [r for r in next(iter(runs.values())) if r.split == "test"]
    for name in dict.fromkeys(r.method for group in groups(base) for r in group):
        if "runs" in style_of(name).panels:
            _add(figure, name, [r for r in base if r.method == name])
    for label, rows in runs.items():
        own = [r for r in rows if r.split == "test" and r.method == method]
        _add(figure, label, own, colours[label])
    return _finish(figure, *AXES)


def lines_figure(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str = "step"
) -> go.Figure:
    """A small line chart. series: <gate>/seed-<n>, as their directories are named, or flex -> (x, y)
    pairs."""
    figure = go.Figure()
    for label, points in series.items():
        method, _, seed = label.partition("/seed-")
        colour = style_of(method.replace("-", ":")).colour
        dash = list(DASHES.values())[int(seed) % len(DASHES)] if seed.isdigit() else "solid"
        line = {"color": colour, "dash": dash, "width": 1.6}
        figure.add_scatter(
            x=[p[0] for p in points], y=[p[1] for p in points], name=label, mode="lines", line=line
        )
    figure.update_layout(title={"text": title, "font": {"size": 13}}, xaxis_title=x)
    return _finish(figure)


def shares_by_type(action: Tensor, types: Sequence[str], selections: int) -> dict[str, list[float]]:
    """How often each selection is taken, by question type. action [N] int64 < selections; types: N -> type ->
    [S]."""
    shares = {}
    for kind in sorted(set(types)):
        of_kind = action[torch.tensor([t == kind for t in types])]
        shares[kind] = (torch.bincount(of_kind, minlength=selections).double() / len(of_kind)).tolist()
    return shares


def selections_by_type(action: Tensor, types: Sequence[str], names: Sequence[str]) -> go.Figure:
    """A heat map of shares_by_type. names: S."""
    return heat_map(shares_by_type(action, types, len(names)), names)


def heat_map(shares: Mapping[str, Sequence[float]], names: Sequence[str]) -> go.Figure:
    """shares: question type -> of each selection, 0..1; names: S, the levels kept beside the glance."""
    # the prefix keeps plotly from reading '0,1' as a number or a date
    x = ["glance" if name == "glance" else f"+ {name}" for name in names]
    text = [[f"{share:.0%}" for share in row] for row in shares.values()]
    scale = [[0, "rgba(0,114,178,0.04)"], [1, BLUE]]
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in shares.values()],
            x=x,
            y=list(shares),
            text=text,
            texttemplate="%{text}",
            colorscale=scale,
            zmin=0,
            zmax=1,
            hovertemplate="%{y}: %{text} %{x}<extra></extra>",
            showscale=False,
        )
    )
    figure.update_layout(xaxis_title="levels kept beside the glance", xaxis_type="category")
    return _finish(figure)


def _add(figure: go.Figure, name: str, rows: Sequence[Row], colour: str | None = None) -> None:
    """A trace of one method's rows. colour: where the method's own would not tell runs apart."""
    if not rows:
        return
    style = style_of(rows[0].method)
    points = sorted(groups(rows), key=lambda g: (g[0].price or 0.0, average(g, cost)))
    y = [100 * average(g, lambda r: r.accuracy) for g in points]
    above = [100 * average(g, high) - v for g, v in zip(points, y, strict=True)]
    below = [v - 100 * average(g, low) for g, v in zip(points, y, strict=True)]
    drawn = colour or style.colour
    mode = "lines+markers" if style.marker else "lines"
    figure.add_scatter(
        x=[average(g, cost) for g in points],
        y=y,
        name=name,
        mode=mode if style.kind == "curve" else "markers",
        visible=True if style.first or colour else "legendonly",
        line={"color": drawn, "dash": DASHES.get(style.line, "solid"), "width": 3 if style.band else 1.5},
        marker={
            "color": drawn,
            "symbol": SYMBOLS.get(style.marker, "circle"),
            "size": 12 if style.kind == "point" else 7,
        },
        error_y={"array": above, "arrayminus": below, "thickness": 0.8, "width": 2, "color": drawn},
        customdata=[_hover(g, low_, high_) for g, low_, high_ in zip(points, below, above, strict=True)],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}accuracy %{y:.2f} % (%{customdata[2]})<br>"
        "cost %{x:.3f} of full, %{customdata[3]} tokens<extra></extra>",
    )


def _hover(group: Sequence[Row], below: float, above: float) -> list[str]:
    first = group[0]
    seeds = f", {len(group)} seeds" if len(group) > 1 else ""
    price = f"price {first.price:.3g}{seeds}<br>" if first.price is not None else ""
    return [first.method, price, f"-{below:.2f} +{above:.2f}", f"{average(group, lambda r: r.tokens):.1f}"]


def _finish(figure: go.Figure, x: str | None = None, y: str | None = None) -> go.Figure:
    """What all share: no colours of a page, so that a page may be light or dark. x, y: titles of the axes."""
    if x is not None:
        figure.update_layout(xaxis_title=x, yaxis_title=y)
    figure.update_layout(
        template="none",
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.22},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure
