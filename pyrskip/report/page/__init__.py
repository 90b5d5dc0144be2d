"""A report that needs no service: one HTML file of a finished run or sweep.

Everything is inside of the file: data, pictures, plotly's script. It asks no network for anything.
"""

import base64
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from pyrskip.evaluation.curves import groups
from pyrskip.evaluation.methods import style_of
from pyrskip.evaluation.runs import GALLERY, Finished, load_runs
from pyrskip.evaluation.verdict import said
from pyrskip.files import write_whole
from pyrskip.report.figures import frontier_figure, heat_map, lines_figure, runs_figure
from pyrskip.report.frontier import method_table
from pyrskip.report.page.words import (
    CURVES,
    FRONTIER_HINT,
    FRONTIER_NOTE,
    GALLERY_NOTE,
    GUARANTEE_NOTE,
    HEALTH_NOTE,
    METHODS_NOTE,
    SELECTIONS_HINT,
    SWEEP_HINT,
    SWEEP_NOTE,
    TARGETS_NOTE,
)
from pyrskip.report.tables import Column, Table


def write_report(directory: Path, out: Path) -> None:
    """Write the report of a run's or a sweep's directory to `out`. Raises UserError where there is nothing to
    report, or out cannot be written."""
    runs = load_runs(directory)
    content = page(runs, directory.resolve().name)
    write_whole(out, content)


def page(runs: Sequence[Finished], title: str) -> str:
    """The HTML of one run's report, or of several runs beside each other."""
    sections = _run_sections(runs[0]) if len(runs) == 1 else _sweep_sections(runs)
    data = json.dumps(_finite({"title": title, "sections": sections}), ensure_ascii=False, allow_nan=False)
    # a question could hold '</script>'
    parts = {"data": data.replace("<", "\\u003c"), "plotly": get_plotlyjs()}
    parts |= {
        name.replace(".", "_"): files(__name__).joinpath(name).read_text() for name in ("page.css", "page.js")
    }
    parts["title"] = _escaped(title)
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: parts[match[1]], files(__name__).joinpath("page.html").read_text()
    )


def _run_sections(run: Finished) -> list[dict[str, Any]]:
    return [
        {"kind": "cards", "cards": _cards(run), "note": _verdict(run)},
        _plot("Frontier", frontier_figure(run.rows), FRONTIER_NOTE, FRONTIER_HINT, tall=True),
        _table(method_table(run.rows, "Every method", METHODS_NOTE)),
        _table(Table("Guarantees", GUARANTEE_COLUMNS, _guarantees(run), GUARANTEE_NOTE)),
        _table(Table("By question type", TYPE_COLUMNS, _type_rows(run), "Test split, means over seeds.")),
        *_selections(run),
        _table(Table("Health of the gates", *_health(run), HEALTH_NOTE)),
        *_curves(run),
        *_gallery(run),
        {
            "kind": "text",
            "title": "Config",
            "text": json.dumps(run.config, indent=1),
            "note": f"{run.directory}",
        },
        _table(Table("Versions", _columns("what", "version"), list(run.versions.items()))),
    ]


def _sweep_sections(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    rows = {run.label: run.rows for run in runs}
    targets = [row for run in runs for row in _target_rows(run)]
    types = [[run.label, *row] for run in runs for row in _type_rows(run)]
    return [
        _plot("Frontier", runs_figure(rows), SWEEP_NOTE, SWEEP_HINT, tall=True),
        _table(Table("Runs", SWEEP_COLUMNS, targets, TARGETS_NOTE)),
        _table(Table("Health of the gates", *_health_of_all(runs), HEALTH_NOTE)),
        _table(Table("By question type", (Column("run"), *TYPE_COLUMNS), types)),
        {
            "kind": "text",
            "title": "Configs, where they differ",
            "text": json.dumps(_differences(runs), indent=1),
            "note": "",
        },
    ]


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name) for name in names)


TYPE_COLUMNS = _columns("method", "price", "type", "accuracy %", "x full", "questions")
GUARANTEE_COLUMNS = _columns(
    *(
        "asked %",
        "confidence %",
        "method",
        "seed",
        "guaranteed",
        "price",
        "kept on test %",
        "kept held out %",
    ),
    *("images held out", "needed", "at most %"),
)
SWEEP_COLUMNS = _columns(
    *("run", "rule", "gate", "target %", "retention %", "x full", "over fixed", "over hull"),
    "regret to oracle:type",
)


def _verdict(run: Finished) -> str:
    """Whether a gate is worth having, as a sentence; nothing of a run that does not say it."""
    if "worth" not in run.summary:
        return ""
    text = said(run.summary["worth"])
    return f"{text[0].upper()}{text[1:]}."


def _cards(run: Finished) -> list[dict[str, str]]:
    summary = run.summary
    cards = [{"value": f"{summary['full']['accuracy']:.2%}", "label": "accuracy of the full pyramid"}]
    if "worth" in summary:
        of = summary["worth"]
        above = "prices at which the gate is above fixed selections"
        cards.append({"value": f"{of['above']} of {of['settings']}", "label": above})
    for target, at in summary["targets"].items():
        gate = at["gate"]
        given = [seed["guarantee"]["guaranteed"] for seed in gate["seeds"] if "guarantee" in seed]
        if given and "retention" in gate:
            label = (
                f"of full's FLOPs, for {float(target):.1%} of its accuracy, guaranteed for {sum(given)} of "
                f"{len(given)} seeds; kept on test {gate['retention']['mean']:.2%}"
            )
            cards.append({"value": f"{gate['relative_flops']['mean']:.3f}", "label": label})
    if summary.get("lookup_accuracy") is not None:
        cards.append(
            {"value": f"{summary['lookup_accuracy']:.1%}", "label": "floor: looking up the question alone"}
        )
    return cards


def _guarantees(run: Finished) -> list[list[Any]]:
    """A line a target and gate, and one of the fixed selection that is held to the same."""
    rows = []
    for target, at in run.summary["targets"].items():
        for method, found in at.items():
            for one in (found,) if method == "fixed" else found["seeds"]:
                of = (one or {}).get("guarantee")
                if of is not None:
                    kept, held_out = (
                        None if of[key] is None else 100 * of[key] for key in ("kept_on_test", "kept")
                    )
                    guaranteed = "yes" if of["guaranteed"] else "no"
                    rows.append(
                        [
                            *(100 * float(target), 100 * of["confidence"], one.get("method", method)),
                            *(one.get("seed"), guaranteed, one.get("price"), kept, held_out),
                            *(of["images"], of["images_needed"], 100 * of["largest"]),
                        ]
                    )
    return rows


def _type_rows(run: Finished) -> list[list[Any]]:
    """The gate at each price, and what it is held against."""
    rows = []
    for group in groups([r for r in run.rows if r.split == "test" and style_of(r.method).by_type]):
        for kind, figures in group[0].by_type.items():
            accuracy, flops = (
                sum(r.by_type[kind][k] for r in group) / len(group) for k in ("accuracy", "relative_flops")
            )
            rows.append([group[0].method, group[0].price, kind, 100 * accuracy, flops, figures["n"]])
    return rows


def _target_rows(run: Finished) -> list[list[Any]]:
    rows = []
    for target, at in run.summary["targets"].items():
        gate = {key: value["mean"] for key, value in at["gate"].items() if isinstance(value, dict)}
        retention = gate.get("retention")
        shown = ("relative_flops", "cost_over_fixed", "cost_over_hull", "regret_to_oracle_type")
        figures = [gate.get(key) for key in shown]
        name = run.config.get("gate", {}).get("name")
        rows.append(
            [
                run.label,
                run.rule,
                name,
                100 * float(target),
                None if retention is None else 100 * retention,
                *figures,
            ]
        )
    return rows


def _health(run: Finished) -> tuple[tuple[Column, ...], list[list[Any]]]:
    rows, levels = [], set()
    for target, at in run.summary["targets"].items():
        for method, found in at.items():
            for seed in (found or {}).get("seeds", ()) if method != "fixed" else ():
                if "health" in seed:
                    kept = seed["health"]["keep_rate"]
                    levels |= kept.keys()
                    figures = [seed["health"][key] for key in ("distinct", "entropy", "mutual_information")]
                    rows.append(
                        [100 * float(target), method, seed["seed"], seed["price"], *kept.values(), *figures]
                    )
    names = [f"keeps level {level}" for level in sorted(levels, key=int)]
    headings = ("target %", "method", "seed", "price", *names, "distinct", "entropy", "information")
    return _columns(*headings), rows


def _health_of_all(runs: Sequence[Finished]) -> tuple[tuple[Column, ...], list[list[Any]]]:
    """Health of the runs with as many levels as the first; columns would not fit others."""
    found = {run.label: _health(run) for run in runs}
    columns = found[runs[0].label][0]
    return (Column("run"), *columns), [
        [label, *row] for label, (own, rows) in found.items() if own == columns for row in rows
    ]


def _selections(run: Finished) -> list[dict[str, Any]]:
    if not run.gallery:
        return []
    selections = run.gallery["selections"]
    note = (
        "How often the first seed's gate takes each selection on the test split, at price "
        f"{run.gallery['price']:.3g}."
    )
    figure = heat_map(selections["shares"], selections["names"])
    return [_plot("Selections by question type", figure, note, SELECTIONS_HINT)]


def _curves(run: Finished) -> list[dict[str, Any]]:
    plots, hints = [], []
    for title, (names, hint) in CURVES.items():
        series = {
            training: [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
            for training, rows in run.trainings.items()
            for name in names
        }
        series = {training: points for training, points in series.items() if points}
        if series:
            plots.append(_figure(lines_figure(series, title)))
            hints.append(hint)
    return [{"kind": "plots", "title": "Training", "plots": plots, "hints": hints}] if plots else []


def _gallery(run: Finished) -> list[dict[str, Any]]:
    if not run.gallery:
        return []
    samples = []
    for sample in run.gallery["samples"]:
        picture = base64.b64encode((run.directory / GALLERY / sample["picture"]).read_bytes()).decode()
        samples.append({**sample, "picture": f"data:image/png;base64,{picture}"})
    note = GALLERY_NOTE.format(wrong=run.gallery["wrong_share"])
    return [{"kind": "gallery", "title": "Samples", "samples": samples, "note": note}]


def _differences(runs: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """Config key -> run -> value, of the keys that are not the same in every run."""
    flat = {run.label: dict(_flatten(run.config, "")) for run in runs}
    keys = sorted({key for config in flat.values() for key in config} - {"name", "root", "borrow"})
    values = {key: {label: config.get(key) for label, config in flat.items()} for key in keys}
    return {key: of for key, of in values.items() if len({json.dumps(v) for v in of.values()}) > 1}


def _flatten(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            pair for name, inner in value.items() for pair in _flatten(inner, f"{key}.{name}".lstrip("."))
        ]
    return [(key, value)]


def _plot(title: str, figure: go.Figure, note: str, hint: str, tall: bool = False) -> dict[str, Any]:
    """A section of one chart. note: what it shows, above it; hint: what to look for, below."""
    plots = {"plots": [_figure(figure)], "hints": [hint]}
    return {"kind": "plots", "title": title, "note": note, "tall": tall, **plots}


def _figure(figure: go.Figure) -> Any:
    return json.loads(figure.to_json())


def _table(table: Table) -> dict[str, Any]:
    columns = [column.name for column in table.columns]
    return {"kind": "table", "title": table.title, "columns": columns, "rows": table.rows, "note": table.note}


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
