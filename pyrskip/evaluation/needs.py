"""Does the pyramid matter, and is the question not enough? What each type of question loses without a level,
from rollouts."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from pyrskip.decision import ActionSet
from pyrskip.evaluation.report import WIDTH
from pyrskip.rollouts.table import RolloutTable

LOST, KEPT, BLIND = 0.20, 0.03, 0.05
"""A level matters to a type that loses LOST of accuracy without it. The glance is enough for one that loses
less than KEPT at it, and is LOST above its most frequent answer when it sees all. The question alone gives
nothing away where it is worth at most BLIND more than the most frequent answer."""


@dataclass(frozen=True)
class Need:
    """Accuracies of one type of question. without: with all levels but one, by that level; majority: of its
    most frequent answer."""

    type: str
    questions: int
    full: float
    without: dict[int, float]
    glance: float
    question_only: float
    majority: float


def lists_levels(actions: ActionSet) -> bool:
    """Whether the actions are the selections of whole levels, all of them."""
    names = {name for name in actions.names if "." not in name}
    return actions.rung is None and len(names) == len(actions) == 2 ** (actions.selection.shape[1] - 1)


def needs_of(table: RolloutTable, answers: Mapping[str, Counter[str]]) -> list[Need]:
    """One a type, of a table whose actions are selections of levels. answers: how often each is right, by
    type."""
    selection, levels = table.actions.selection, table.actions.selection.shape[1]
    without = {
        level: int((selection == (torch.arange(levels) != level)).all(-1).int().argmax())
        for level in range(levels - 1)
    }
    found = []
    for kind in sorted(set(table.types)):
        score = table.score[[i for i, of in enumerate(table.types) if of == kind]].mean(0)
        glance, question_only = (float(score[table.column(name)]) for name in ("glance", "question_only"))
        found.append(
            Need(
                kind,
                sum(of == kind for of in table.types),
                float(score[table.actions.full]),
                {level: float(score[column]) for level, column in without.items()},
                glance,
                question_only,
                answers[kind].most_common(1)[0][1] / answers[kind].total(),
            )
        )
    return found


def print_needs(needs: list[Need], console: Console | None = None) -> None:
    levels = list(needs[0].without)
    table = Table(title="What each type of question needs: accuracy, %")
    columns = ("full", *(f"no level {level}" for level in levels), "glance", "question", "majority")
    table.add_column("type", no_wrap=True)
    for name in ("questions", *columns):
        table.add_column(name, justify="right")
    for need in needs:
        told = (need.full, *need.without.values(), need.glance, need.question_only, need.majority)
        table.add_row(need.type, str(need.questions), *(f"{100 * value:.1f}" for value in told))
    mean = sum(need.full for need in needs) / len(needs)
    table.add_row("mean over types", "", f"{100 * mean:.1f}")
    (console or Console(width=None if sys.stdout.isatty() else WIDTH)).print(table)
    for line in verdicts(needs):
        print(line)


def verdicts(needs: list[Need]) -> list[str]:
    lost = [n.type for n in needs if n.full - n.without[0] >= LOST]
    kept = [n.type for n in needs if n.full - n.glance < KEPT and n.full - n.majority >= LOST]
    told = [n.type for n in needs if n.question_only - n.majority > BLIND]
    return [
        f"types that lose at least {100 * LOST:.0f} points without level 0: {', '.join(lost) or 'none'}",
        f"types that lose less than {100 * KEPT:.0f} points at the glance alone: {', '.join(kept) or 'none'}",
        f"the question alone is worth over {100 * BLIND:.0f} points more than the most frequent answer to: "
        f"{', '.join(told) or 'no type'}",
    ]
