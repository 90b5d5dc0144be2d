"""Claims about the metric scheme: every logged name is in it, and every name in it is logged, by the rules
that it says."""

import atexit
import csv
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from pyrskip.config import read
from pyrskip.evaluation.summary import summary
from pyrskip.launch import conf_directory
from pyrskip.stages import run_stages
from pyrskip.tracking.frontier import frontier_metrics
from pyrskip.tracking.scheme import ANY_RULE, FLEX, FRONTIER, METRICS, Metric, find, markdown
from pyrskip.tracking.workspaces import as_json
from pyrskip.training.rules import RULES
from tests.configs import TWO_STEPS
from tests.offline import history, offline_runs
from tests.test_frontier import computed

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
FOREIGN = ("epoch", "step", "trainer/global_step")
"""Names that are Lightning's or the tracker's own."""
# what must log a metric, of what there is: a rule that the scheme knows and RULES does not is nobody's yet
EXISTING = (FLEX, FRONTIER, *RULES)
OWED = [
    (by, metric)
    for metric in METRICS
    for by in EXISTING
    if by in metric.by or (ANY_RULE in metric.by and by in RULES)
]


def trained(root: Path, *overrides: str) -> Path:
    """A tiny run of every stage that logs at every step."""
    small = [o for o in TWO_STEPS if not o.startswith("rule.optimizer")]
    overrides = (
        "experiment=easy_vqa",
        f"root={root}",
        *small,
        "rule.optimizer.steps=12",
        "trainer.log_every=1",
        *overrides,
    )
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return run_stages(*read(compose("train", overrides=["ablations=[]", *overrides])))


@cache
def logged(by: str) -> set[str]:
    """Every name in the CSVs of a rule's tiny run, or of a stage of it."""
    if by == FRONTIER:
        # a tiny run meets no target, a synthetic one does
        return set(frontier_metrics(json.loads(json.dumps(summary(computed(), lookup=0.5)))))
    run = lender()
    if by != FLEX:
        run = trained(run.parent, f"name={by}", f"from={run}", f"rule={by}", "stages=[gate]")
    names: set[str] = set()
    for path in (run / (FLEX if by == FLEX else "gate")).rglob("metrics.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names |= {name for name in rows[0] if any(row[name] for row in rows)}
    return names


@cache
def lender() -> Path:
    """A tiny run up to its rollouts, kept until the tests end."""
    directory = TemporaryDirectory()
    atexit.register(directory.cleanup)
    return trained(Path(directory.name), "stages=[data,flex,rollouts]")


@pytest.mark.parametrize("by", EXISTING)
def test_every_logged_name_is_in_the_scheme(by: str) -> None:
    assert {name for name in logged(by) if find(name) is None} <= set(FOREIGN)


@pytest.mark.parametrize(
    ("by", "metric"), [(b, m) for b, m in OWED if not m.media], ids=lambda v: getattr(v, "name", v)
)
def test_every_name_in_the_scheme_is_logged_by_what_it_says(by: str, metric: Metric) -> None:
    assert any(metric.pattern.fullmatch(name) for name in logged(by)), sorted(logged(by))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_an_offline_run_holds_every_metric_of_the_scheme(rule: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = trained(tmp_path, f"rule={rule}", "logger=wandb_offline")
    logged = {name for path in offline_runs(run) for row in history(path) for name in row}
    names = {n if find(n) else n.split(".")[0] for n in logged}  # a picture's have parts of it behind a dot
    owed = [m for by, m in OWED if by in (FLEX, rule, FRONTIER)]
    missing = {m.name for m in owed if not any(m.pattern.fullmatch(n) for n in names)}
    # where a tiny run's full pyramid is never right, there is nothing to retain
    assert {name for name in missing if "<target>" not in name} == set()
    assert {n for n in names if find(n) is None and not n.startswith("_")} <= set(FOREIGN)


def test_names_outside_of_the_scheme_are_not_found() -> None:
    for name in (
        "val/accuracy",
        "val/accuracy/a/b",
        "gate/keep_rate/level_",
        "train/lossy",
        "xtrain/loss",
        "train.loss",
    ):
        assert find(name) is None
    assert find("gate/keep_rate/level_0") is not None
    assert len({m.name for m in METRICS}) == len(METRICS)


def test_the_docs_are_the_scheme() -> None:
    assert markdown() in DOCS.read_text()


def panels(node: Any) -> Iterator[dict[str, Any]]:
    """Every panel's config below a node of a dashboard's JSON."""
    if isinstance(node, dict):
        if "viewType" in node and isinstance(node.get("config"), dict):
            yield node["config"]
        for inner in node.values():
            yield from panels(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from panels(inner)


def names_of(panel: dict[str, Any]) -> Iterator[str]:
    """The metrics that a panel points at; a pattern stands for the names that it matches."""
    yield from panel.get("metrics", ())
    yield from panel.get("mediaKeys", ())
    for axis in ("xAxis", "yAxis", "zAxis"):
        yield from [str(panel[axis]).removeprefix("summary:")] if panel.get(axis) else ()
    yield from [
        c["accessor"].removeprefix("summary:")
        for c in panel.get("columns", ())
        if c["accessor"].startswith("summary:")
    ]
    yield from re.findall(r'"(media/[a-z_]+)"', json.dumps(panel))


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_no_panel_points_at_a_metric_that_nobody_logs(part: str) -> None:
    pytest.importorskip("wandb_workspaces")
    found = list(panels(json.loads(as_json("someone", "something"))[part]))
    assert len(found) > 20
    example = {
        "<level>": "0",
        "<type>": "color",
        "<target>": "0.99",
        "<tension>": "focus",
        "<score>": "salience",
    }
    known = {re.sub(r"<\w+>", lambda match: example[match[0]], m.name) for m in METRICS} | set(FOREIGN)
    shown = set()
    for panel in found:
        names = set(names_of(panel)) | (
            {n for n in known if re.search(panel["metricRegex"], n)} if "metricRegex" in panel else set()
        )
        assert names - set(FOREIGN), panel
        assert names <= known, panel
        shown |= names
    # and what is logged is shown
    assert {m.name for m in METRICS if not any(m.pattern.fullmatch(name) for name in shown)} <= {
        "frontier/full/accuracy"
    }


def test_a_dashboards_configs_are_keys_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    from pyrskip.config import Config, to_plain
    from pyrskip.tracking.workspaces import COMPARED

    for key in COMPARED:
        value: Any = to_plain(Config())
        for part in key.split("."):
            value = value[part]
