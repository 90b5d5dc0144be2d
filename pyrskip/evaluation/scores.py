"""What every point of a frontier scored on every test question, kept beside it: what compares points question
by question.

Axes: P points of the test split, N questions.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyrskip.errors import UserError, unknown_name
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.curves import of_tiles
from pyrskip.evaluation.frontier import Frontier, Row
from pyrskip.evaluation.runs import Finished, check_costs
from pyrskip.files import write_whole

FILE = "frontier/scores.safetensors"


@dataclass(frozen=True)
class Scored:
    """A finished run's points: rows P, score [P, N] float64; keys N, `<image>/<number>` each; types N; label:
    the run's."""

    label: str
    rows: Sequence[Row]
    score: Tensor
    keys: tuple[str, ...]
    types: tuple[str, ...]

    def take(self, columns: Sequence[int]) -> "Scored":
        """The same points on some of the questions, in this order."""
        keys, types = (tuple(of[column] for column in columns) for of in (self.keys, self.types))
        return replace(self, score=self.score[:, list(columns)], keys=keys, types=types)

    def of_type(self, kind: str) -> "Scored":
        """The questions of one type, at what they cost. Raises UserError for a type that none has."""
        if kind not in self.types:
            raise unknown_name("type", kind, sorted(set(self.types)))
        rows = []
        for row in self.rows:
            cost = row.by_type[kind]["relative_flops"]
            rows.append(replace(row, relative_flops=cost, flops=row.flops / row.relative_flops * cost))
        own = self.take([column for column, of in enumerate(self.types) if of == kind])
        return replace(own, rows=rows)

    def bootstrap(self, resamples: int) -> Bootstrap:
        images = [key.rpartition("/")[0] for key in self.keys]
        number = {image: i for i, image in enumerate(dict.fromkeys(images))}
        return Bootstrap(torch.tensor([number[image] for image in images]), resamples)


def save_scores(frontier: Frontier, path: Path) -> None:
    """Write scores in half precision, without selections of single tiles, of which there may be thousands."""
    points = [p for p in frontier.points if p.row.split == "test" and not of_tiles(p.row)]
    table = frontier.inputs.tables["test"]
    score = torch.stack([frontier.score(point).half() for point in points])
    named = {"keys": json.dumps(table.keys), "types": json.dumps(table.types)}
    write_whole(path, safetensors.torch.save({"score": score}, named))


def load_scores(runs: Sequence[Finished]) -> list[Scored]:
    """Runs whose frontiers are of the same test questions, each in the first one's order. Raises UserError
    for others, and for runs that count costs differently."""
    keys = same_questions(runs)
    where = [{key: column for column, key in enumerate(own)} for own in keys]
    return [_load(run).take([of[key] for key in keys[0]]) for run, of in zip(runs, where, strict=True)]


def same_questions(runs: Sequence[Finished]) -> list[tuple[str, ...]]:
    """The keys of each run's test questions, in its own order. Raises UserError for a run with others than
    the first has, or one that counts costs differently."""
    check_costs(runs)
    found: list[tuple[str, ...]] = []
    for run in runs:
        with _opened(run) as file:
            found.append(_listed(file, "keys"))
        if set(found[-1]) != set(found[0]):
            raise UserError(
                f"{run.directory} was tested on other questions than {runs[0].directory}; allowed: runs on "
                "the same data"
            )
    return found


def _load(run: Finished) -> Scored:
    rows = [row for row in run.rows if row.split == "test" and not of_tiles(row)]
    with _opened(run) as file:
        score = file.get_tensor("score").double()
        keys, types = (_listed(file, name) for name in ("keys", "types"))
        if score.shape != (len(rows), len(keys)):
            raise ValueError(f"scores are {list(score.shape)}, not {[len(rows), len(keys)]}")
    return Scored(run.label, rows, score, keys, types)


@contextmanager
def _opened(run: Finished) -> Iterator[Any]:
    """Its scores' file; what cannot be read of it is a UserError."""
    try:
        with safe_open(run.directory / FILE, "pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.directory} holds no scores of its frontier ({error}); draw it again with pyrskip eval "
            f"run={run.directory}"
        ) from error


def _listed(file: Any, name: str) -> tuple[str, ...]:
    return tuple(json.loads(file.metadata()[name]))
