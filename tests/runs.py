"""A finished run's directory from synthetic tables, for tests of what looks at finished runs."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from pyrskip.config import Config, to_plain
from pyrskip.evaluation.frontier import Frontier
from pyrskip.evaluation.inference import Shown
from pyrskip.evaluation.inputs import decide
from pyrskip.evaluation.pick import pick
from pyrskip.evaluation.runs import GALLERY
from pyrskip.evaluation.scores import FILE, save_scores
from pyrskip.evaluation.summary import summary
from pyrskip.report.gallery import write_gallery
from pyrskip.sweeps.jobs import Job, keep, name_of
from tests.tables import synthetic_pyramid
from tests.test_frontier import computed

# what a page must show as text, and never run
NASTY = "what color is it?</script><img src=x onerror=alert(1)>"


def write_run(directory: Path, rule: str = "supervised", frontier: Frontier | None = None) -> Path:
    """frontier.json, summary.json, config.json, versions.json, a gallery and a training's metrics, one of
    them NaN."""
    directory.mkdir(parents=True)
    frontier, pyramid = frontier or computed(), synthetic_pyramid()
    inputs, table = frontier.inputs, frontier.inputs.tables["test"]
    config = to_plain(Config(name=directory.name))
    config["rule"]["name"] = rule
    parts = {
        "frontier.json": [asdict(row) for row in frontier.rows],
        "summary.json": summary(frontier, lookup=0.5),
        "config.json": config,
        "versions.json": {"python": "3.11", "torch": "2"},
    }
    for name, content in parts.items():
        (directory / name).write_text(json.dumps(content))
    save_scores(frontier, directory / FILE)
    action = decide(inputs.gates["gate"][0], table, pyramid, inputs.budget, inputs.unit, [0.2])[0]
    rows = pick(action, table, 12)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 64, 48), generator=generator, dtype=torch.uint8)
    answers = [
        Shown(
            image=image,
            question=NASTY if i == 0 else table.texts[int(table.query_of[row])],
            answer="yes",
            truth="yes",
            right=bool(table.score[row, action[row]] > 0.5),
            kept=table.actions.selection[action[row]],
            tokens=20,
            relative_cost=0.3,
            type=table.types[row],
        )
        for i, row in enumerate(rows)
    ]
    write_gallery(answers, action, table, pyramid, 0.2, directory / GALLERY)
    metrics = directory / "gate/gate/seed-0/csv/metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,train/loss,val/accuracy/all\n0,0.7,\n10,nan,0.8\n20,0.5,0.9\n")
    return directory


def job(directory: Path, *varied: str, state: str = "waiting", why: str = "") -> Job:
    return Job(directory / name_of(varied), ("experiment=easy_vqa",), varied, state, why)


def done(sweep: Path, *varied: str) -> Job:
    made = job(sweep, *varied, state="done")
    write_run(made.directory)
    keep(made)
    return made
