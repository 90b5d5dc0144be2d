"""Finished runs, read back from their directories."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pyrskip.errors import UserError
from pyrskip.evaluation.frontier import Row

METRICS = "csv/metrics.csv"
GALLERY, GALLERY_FILE = "frontier/gallery", "gallery.json"
"""In a run's directory, and in there."""


@dataclass(frozen=True)
class Finished:
    """A run whose frontier is drawn. label: its name, without the sweep's. versions, gallery: empty for a run
    that was made before they were written."""

    label: str
    directory: Path
    rows: list[Row]
    summary: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    gallery: dict[str, Any]

    @property
    def rule(self) -> str:
        return str(self.config.get("rule", {}).get("name", ""))

    @cached_property
    def trainings(self) -> dict[str, list[dict[str, float]]]:
        """The logged rows of each training of the run, by 'flex', 'gate/seed-0', ..., not of jobs beside
        them."""
        found = {}
        for path in sorted(
            path
            for place in ("*", "gate/*/*", "gate/*/*/member-*")
            for path in self.directory.glob(f"{place}/{METRICS}")
        ):
            name = str(path.parent.parent.relative_to(self.directory)).removeprefix("gate/")
            found[name] = read_metrics(path)
        return found


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; what a row does not hold is left out of it."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k is not None and v} for row in csv.DictReader(file)]


def load_runs(directory: Path) -> list[Finished]:
    """The run in a directory, or the runs of a sweep in it, in the order of their names. Raises UserError
    where there is none."""
    if (directory / "frontier.json").is_file():
        return [_load(directory)]
    inside = sorted(p.parent for p in directory.glob("*/frontier.json"))
    if not inside:
        raise UserError(
            f"{directory} is no finished run and holds none: there is no frontier.json; "
            "allowed: a directory that train made, or a sweep's"
        )
    return [_load(path) for path in inside]


def load_all(directories: Iterable[Path]) -> list[Finished]:
    """The runs in several directories, as `load_runs`. Labels of runs of the same name begin with as much of
    their paths as tells them apart. Raises UserError for a run that is given twice."""
    runs = [run for directory in directories for run in load_runs(directory)]
    parts = [run.directory.resolve().parts for run in runs]
    for run, own in zip(runs, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(f"{run.directory} is given twice; allowed: each run once")

    def label(own: tuple[str, ...]) -> str:
        alone = (n for n in range(1, len(own) + 1) if sum(of[-n:] == own[-n:] for of in parts) == 1)
        return "/".join(own[-next(alone) :])

    return [replace(run, label=label(own)) for run, own in zip(runs, parts, strict=True)]


def check_costs(runs: Sequence[Finished]) -> None:
    """Raises UserError for a run that counts costs in another way than the first does."""
    for run in runs:
        first, own = (of.config.get("cost") for of in (runs[0], run))
        if own != first:
            raise UserError(
                f"{run.directory} counts costs by cost={own}, {runs[0].directory} by cost={first}; allowed: "
                "runs that count alike"
            )


def _load(directory: Path) -> Finished:
    try:
        rows = [_row(row) for row in json.loads((directory / "frontier.json").read_text())]
        summary, config = (
            json.loads((directory / name).read_text()) for name in ("summary.json", "config.json")
        )
        if not rows or not isinstance(summary["targets"], dict) or not isinstance(config, dict):
            raise ValueError("a part of it is empty")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{directory} holds no frontier that can be read ({error}); draw it again with pyrskip eval "
            f"run={directory}"
        ) from error
    return Finished(
        label=directory.resolve().name,
        directory=directory,
        rows=rows,
        summary=summary,
        config=config,
        versions=_optional(directory / "versions.json"),
        gallery=_gallery(directory / GALLERY),
    )


def _row(plain: dict[str, Any]) -> Row:
    low, high = plain["accuracy_ci95"]
    return Row(**{**plain, "accuracy_ci95": (low, high)})


def _gallery(directory: Path) -> dict[str, Any]:
    """What write_gallery wrote, nothing where a picture of it is missing."""
    content = _optional(directory / GALLERY_FILE)
    whole = all((directory / str(s.get("picture"))).is_file() for s in content.get("samples", ()))
    return content if whole else {}


def _optional(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
