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

from pyrskip.evaluation.curves import average, groups, high, low
from pyrskip.evaluation.figures import frontier_figure, heat_map, lines_figure, runs_figure
from pyrskip.evaluation.gallery import PLACE
from pyrskip.evaluation.plots import run_colours
from pyrskip.evaluation.runs import Finished, load_runs
from pyrskip.evaluation.styles import RULES
from pyrskip.files import write_whole

# training curves of a report: title -> logged names, of which the first that a training has is drawn
CURVES = {
    "Validation accuracy": ("val/accuracy/all",),
    "Relative cost on validation": ("val/relative_flops",),
    "Entropy of the policy": ("gate/entropy",),
    "Distinct decisions on validation": ("val/distinct_decisions",),
    "Loss": ("train/loss",),
    "Seconds a step": ("time/step",),
}


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
        {"kind": "cards", "cards": _cards(run)},
        _plot("Frontier", frontier_figure(run.rows), FRONTIER_NOTE, tall=True),
        _table(
            "Every method",
            ROW_COLUMNS,
            _method_rows(run),
            "Test split; seeds averaged. A click on a heading sorts.",
        ),
        _table("By question type", TYPE_COLUMNS, _type_rows(run), "Test split, means over seeds."),
        *_selections(run),
        _table("Health of the gates", *_health(run), HEALTH_NOTE),
        *_curves(run),
        *_gallery(run),
        {
            "kind": "text",
            "title": "Config",
            "text": json.dumps(run.config, indent=1),
            "note": f"{run.directory}",
        },
        _table("Versions", ("what", "version"), [list(item) for item in run.versions.items()], ""),
    ]


def _sweep_sections(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    rules = {run.label: run.rule for run in runs}
    rows = {run.label: run.rows for run in runs}
    return [
        _plot("Frontier", runs_figure(rows, run_colours(rules, RULES)), SWEEP_NOTE, tall=True),
        _table(
            "Runs",
            SWEEP_COLUMNS,
            [row for run in runs for row in _target_rows(run)],
            "A line a target; means over seeds.",
        ),
        _table("Health of the gates", *_health_of_all(runs), HEALTH_NOTE),
        _table(
            "By question type",
            ("run", *TYPE_COLUMNS),
            [[r.label, *row] for r in runs for row in _type_rows(r)],
            "",
        ),
        {
            "kind": "text",
            "title": "Configs, where they differ",
            "text": json.dumps(_differences(runs), indent=1),
            "note": "",
        },
    ]


FRONTIER_NOTE = (
    "Accuracy against FLOPs over the mean full pyramid's, on the test split; bars are 95 % intervals over "
    "images. "
    "Hover or tap for a point's method, price, accuracy and cost; the legend hides and shows methods."
)
SWEEP_NOTE = (
    "The gate's curve of every run, with 95 % intervals; full pyramid and fixed selections are the "
    "first run's."
)
HEALTH_NOTE = (
    "At the price that validation chose for each target. One distinct decision, or no information about the "
    "question type, "
    "is a gate that stopped to decide."
)
ROW_COLUMNS = (
    "method",
    "price",
    "seeds",
    "accuracy %",
    "95 % low",
    "95 % high",
    "retention %",
    "x full",
    "x ref",
    "tokens",
    "ms",
)
TYPE_COLUMNS = ("method", "price", "type", "accuracy %", "x full", "questions")
SWEEP_COLUMNS = (
    "run",
    "rule",
    "gate",
    "target %",
    "retention %",
    "x full",
    "over fixed",
    "regret to oracle:type",
)


def _cards(run: Finished) -> list[dict[str, str]]:
    told = run.summary
    cards = [{"value": f"{told['full']['accuracy']:.2%}", "label": "accuracy of the full pyramid"}]
    for target, at in told["targets"].items():
        gate = at["gate"]
        if "relative_flops" in gate:
            label = (
                f"of full's FLOPs, asked for {float(target):.1%} of its accuracy; kept "
                f"{gate['retention']['mean']:.2%}"
            )
            cards.append({"value": f"{gate['relative_flops']['mean']:.3f}", "label": label})
        else:
            cards.append(
                {"value": "not met", "label": f"{float(target):.1%} of full's accuracy, on validation"}
            )
    if told.get("lookup_accuracy") is not None:
        cards.append(
            {"value": f"{told['lookup_accuracy']:.1%}", "label": "floor: looking up the question alone"}
        )
    return cards


def _method_rows(run: Finished) -> list[list[Any]]:
    rows = []
    # the hull is some of the fixed selections again
    for group in groups([r for r in run.rows if r.split == "test" and r.method != "hull"]):
        first = group[0]
        times = [r.total_ms for r in group if r.total_ms is not None]
        rows.append(
            [
                first.method,
                first.price,
                len(group) if first.seed is not None else None,
                100 * average(group, lambda r: r.accuracy),
                100 * average(group, low),
                100 * average(group, high),
                None if first.retention is None else 100 * average(group, lambda r: r.retention or 0.0),
                average(group, lambda r: r.relative_flops),
                average(group, lambda r: r.flops_of_reference),
                average(group, lambda r: r.tokens),
                sum(times) / len(times) if times else None,
            ]
        )
    return rows


def _type_rows(run: Finished) -> list[list[Any]]:
    """The gate at each price, and what it is held against."""
    rows = []
    for group in groups(
        [
            r
            for r in run.rows
            if r.split == "test" and r.method in ("full", "reference", "question_only", "gate")
        ]
    ):
        for kind, told in group[0].by_type.items():
            accuracy, flops = (
                sum(r.by_type[kind][k] for r in group) / len(group) for k in ("accuracy", "relative_flops")
            )
            rows.append([group[0].method, group[0].price, kind, 100 * accuracy, flops, told["n"]])
    return rows


def _target_rows(run: Finished) -> list[list[Any]]:
    rows = []
    for target, at in run.summary["targets"].items():
        gate = {key: value["mean"] for key, value in at["gate"].items() if isinstance(value, dict)}
        retention = gate.get("retention")
        figures = [gate.get(key) for key in ("relative_flops", "cost_over_fixed", "regret_to_oracle_type")]
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


def _health(run: Finished) -> tuple[tuple[str, ...], list[list[Any]]]:
    rows, levels = [], set()
    for target, at in run.summary["targets"].items():
        for method, told in at.items():
            for seed in (told or {}).get("seeds", ()) if method != "fixed" else ():
                if "health" in seed:
                    kept = seed["health"]["keep_rate"]
                    levels |= kept.keys()
                    figures = [seed["health"][key] for key in ("distinct", "entropy", "mutual_information")]
                    rows.append(
                        [100 * float(target), method, seed["seed"], seed["price"], *kept.values(), *figures]
                    )
    names = [f"keeps level {level}" for level in sorted(levels, key=int)]
    return ("target %", "method", "seed", "price", *names, "distinct", "entropy", "information"), rows


def _health_of_all(runs: Sequence[Finished]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Of runs with as many levels as the first; columns would not fit others."""
    found = {run.label: _health(run) for run in runs}
    columns = found[runs[0].label][0]
    return ("run", *columns), [
        [label, *row] for label, (own, rows) in found.items() if own == columns for row in rows
    ]


def _selections(run: Finished) -> list[dict[str, Any]]:
    if not run.gallery:
        return []
    told = run.gallery["selections"]
    note = (
        "How often the first seed's gate takes each selection on the test split, at price "
        f"{run.gallery['price']:.3g}."
    )
    return [_plot("Selections by question type", heat_map(told["shares"], told["names"]), note)]


def _curves(run: Finished) -> list[dict[str, Any]]:
    plots = []
    for title, names in CURVES.items():
        series = {
            training: [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
            for training, rows in run.trainings.items()
            for name in names
        }
        series = {training: points for training, points in series.items() if points}
        if series:
            plots.append(_figure(lines_figure(series, title)))
    return [{"kind": "plots", "title": "Training", "plots": plots}] if plots else []


def _gallery(run: Finished) -> list[dict[str, Any]]:
    if not run.gallery:
        return []
    samples = []
    for sample in run.gallery["samples"]:
        picture = base64.b64encode((run.directory / PLACE / sample["picture"]).read_bytes()).decode()
        samples.append({**sample, "picture": f"data:image/png;base64,{picture}"})
    note = (
        "Levels from fine to coarse. Framed in blue: encoded; grey and crossed out: skipped, never encoded. "
        "Wrong answers are "
        f"shown more often than they occur: {run.gallery['wrong_share']:.2%} of the test questions at this "
        "price."
    )
    return [{"kind": "gallery", "title": "Samples", "samples": samples, "note": note}]


def _differences(runs: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """Config key -> run -> value, of the keys that are not the same in every run."""
    flat = {run.label: dict(_flatten(run.config, "")) for run in runs}
    keys = sorted({key for config in flat.values() for key in config} - {"name", "root", "borrow"})
    told = {key: {label: config.get(key) for label, config in flat.items()} for key in keys}
    return {key: values for key, values in told.items() if len({json.dumps(v) for v in values.values()}) > 1}


def _flatten(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            pair for name, inner in value.items() for pair in _flatten(inner, f"{key}.{name}".lstrip("."))
        ]
    return [(key, value)]


def _plot(title: str, figure: go.Figure, note: str, tall: bool = False) -> dict[str, Any]:
    return {"kind": "plots", "title": title, "plots": [_figure(figure)], "note": note, "tall": tall}


def _figure(figure: go.Figure) -> Any:
    return json.loads(figure.to_json())


def _table(title: str, columns: Sequence[str], rows: list[list[Any]], note: str) -> dict[str, Any]:
    return {"kind": "table", "title": title, "columns": list(columns), "rows": rows, "note": note}


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
