"""What every point of a frontier scored on every test question, kept beside it: what compares points question by question.

Axes: P points of the test split, N questions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.curves import of_tiles
from pyrskip.evaluation.frontier import Frontier, Row
from pyrskip.evaluation.runs import Finished

FILE = "frontier/scores.safetensors"


@dataclass(frozen=True)
class Scored:
    """A finished run's points: rows P, score [P, N] float64; keys N, `<image>/<number>` each; label: the run's."""

    label: str
    rows: Sequence[Row]
    score: Tensor
    keys: tuple[str, ...]

    def bootstrap(self, resamples: int) -> Bootstrap:
        images = [key.rpartition("/")[0] for key in self.keys]
        number = {image: i for i, image in enumerate(dict.fromkeys(images))}
        return Bootstrap(torch.tensor([number[image] for image in images]), resamples)


def save_scores(frontier: Frontier, path: Path) -> None:
    """In half precision, without selections of single tiles, of which there may be thousands."""
    points = [p for p in frontier.points if p.row.split == "test" and not of_tiles(p.row)]
    keys = json.dumps(frontier.inputs.tables["test"].keys)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({"score": torch.stack([p.score for p in points]).half()}, path, {"keys": keys})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def load_scores(runs: Sequence[Finished]) -> list[Scored]:
    """Runs whose frontiers asked the same test questions, each in the first one's order. Raises UserError for others."""
    scored = [_load(run) for run in runs]
    first = scored[0]
    for i, run in enumerate(scored):
        where = {key: column for column, key in enumerate(run.keys)}
        if where.keys() != set(first.keys):
            raise UserError(f"{run.label} was tested on other questions than {first.label}; allowed: runs on the same data")
        scored[i] = Scored(run.label, run.rows, run.score[:, [where[key] for key in first.keys]], first.keys)
    return scored


def _load(run: Finished) -> Scored:
    rows = [row for row in run.rows if row.split == "test" and not of_tiles(row)]
    try:
        with safe_open(run.directory / FILE, "pt") as file:
            score, keys = file.get_tensor("score").double(), tuple(json.loads(file.metadata()["keys"]))
        if score.shape != (len(rows), len(keys)):
            raise ValueError(f"scores are {list(score.shape)}, not {[len(rows), len(keys)]}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.directory} holds no scores of its frontier ({error}); draw it again with pyrskip eval run={run.directory}"
        ) from error
    return Scored(run.label, rows, score, keys)
