"""The search for the jobs that cost least for what they answer: Optuna asks, jobs run, Optuna is told.

Two objectives, both on validation: accuracy, up, and relative FLOPs, down. The study is a journal in the
sweep's directory, so that a search that was killed goes on with the jobs that it had asked for; a journal,
and not a database, since shared file systems of clusters lose locks of databases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pyrskip.errors import UserError

STUDY = "study.log"


@dataclass(frozen=True)
class Outcome:
    """A job's state, and its (accuracy, relative FLOPs) on validation where it is done."""

    state: str
    point: tuple[float, float] | None


def search(
    directory: Path,
    space: Mapping[str, BaseDistribution],
    trials: int,
    at_once: int,
    seed: int,
    launch: Callable[[Sequence[Mapping[str, Any]]], Sequence[Outcome]],
) -> None:
    """Run up to `trials` jobs in all, those of earlier calls in this directory included, `at_once` side by
    side.

    space: key -> what it may be. launch: runs jobs of these values, and gives an outcome each. Raises
    UserError where the directory holds the study of another space.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="pareto",
        storage=JournalStorage(JournalFileBackend(str(directory / STUDY))),
        sampler=TPESampler(seed=seed + _number_of_trials(directory), constant_liar=True),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    _check_space(study, space, directory)
    left = study.get_trials(states=[TrialState.RUNNING])  # asked for by a search that was killed
    while left or _count(study) < trials:
        batch, left = left[:at_once], left[at_once:]
        while len(batch) < at_once and _count(study) < trials:
            number = study.ask(dict(space)).number
            batch.append(study.get_trials(deepcopy=False)[number])
        for trial, outcome in zip(batch, launch([t.params for t in batch]), strict=True):
            if outcome.point is not None and outcome.state == "done":
                study.tell(trial.number, outcome.point)
            else:
                study.tell(
                    trial.number, state=TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
                )


def _count(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False))


def _number_of_trials(directory: Path) -> int:
    """A search that goes on must not draw again what it drew first."""
    path = directory / STUDY
    return path.stat().st_size if path.exists() else 0


def _check_space(study: optuna.Study, space: Mapping[str, BaseDistribution], directory: Path) -> None:
    for trial in study.get_trials(deepcopy=False):
        if trial.distributions and dict(trial.distributions) != dict(space):
            raise UserError(
                f"{directory / STUDY} searched {', '.join(sorted(trial.distributions))} in other ranges; "
                "allowed: the same ranges, or another name="
            )
