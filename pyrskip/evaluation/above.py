"""Does more cost ever hurt? Whether a fixed selection, or a gate at a price, answers more than the full
pyramid.

Axes: N test questions. Runs are of several flex seeds on the same questions: a gain is the mean over runs,
and over a run's gate seeds. Images are resampled; the runs are those that there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Interval
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.methods import method_of
from pyrskip.evaluation.scores import Scored

# Holm's correction needs p-values far below a hundredth
RESAMPLES = 10_000
LEVEL = 0.05


@dataclass(frozen=True)
class Candidate:
    """A fixed selection, or a gate at a price. gain: of accuracy over the full pyramid's, its interval, and
    that of each run.

    p: one-sided, that the gain is at most 0, by paired bootstrap over images; p_holm: corrected for all
    candidates (Holm 1979). significant: p_holm below .05, and above full in every run.
    """

    method: str
    price: float | None
    relative_flops: float
    gain: float
    gain_ci95: Interval
    gain_of_runs: tuple[float, ...]
    p: float
    p_holm: float
    significant: bool


def above_full(runs: Sequence[Scored]) -> list[Candidate]:
    """Every candidate that all runs have, the largest gain first. Raises UserError where there is none."""
    bootstrap = runs[0].bootstrap(RESAMPLES)
    named = [{_name(row): None for row in run.rows if _tested(row.method)} for run in runs]
    found = []
    for name in [name for name in named[0] if all(name in others for others in named)]:
        of_runs, costs = [], []
        for run in runs:
            full = next(score for row, score in zip(run.rows, run.score, strict=True) if row.method == "full")
            seeds = [i for i, row in enumerate(run.rows) if _name(row) == name]
            of_runs.append(run.score[seeds].mean(0) - full)
            costs += [run.rows[i].relative_flops for i in seeds]
        gain = torch.stack(of_runs).mean(0)
        found.append((name, sum(costs) / len(costs), gain, [float(of_run.mean()) for of_run in of_runs]))
    if not found:
        raise UserError(
            "no fixed selection or gate is in every run; allowed: runs with one action set and the same "
            "prices"
        )
    gains = torch.stack([gain for *_, gain, _ in found])
    p, intervals = bootstrap.chances_of_none(gains), bootstrap.intervals(gains)
    return sorted(
        (
            Candidate(
                method=name[0],
                price=name[1],
                relative_flops=cost,
                gain=float(gain.mean()),
                gain_ci95=interval,
                gain_of_runs=tuple(of_runs),
                p=one,
                p_holm=corrected,
                significant=corrected < LEVEL and min(of_runs) > 0,
            )
            for (name, cost, gain, of_runs), interval, one, corrected in zip(
                found, intervals, p, holm(p), strict=True
            )
        ),
        key=lambda candidate: -candidate.gain,
    )


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number, step down (Holm 1979), in the order given."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def _tested(row: str) -> bool:
    method = method_of(row)
    return method is not None and method.candidate


def _name(row: Row) -> tuple[str, float | None]:
    return row.method, row.price
