"""Does the pyramid matter, and is the question not enough? What each type of question loses without a level,
from rollouts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyrskip.decision import ActionSet
from pyrskip.rollouts.table import RolloutTable

NEAR_NOTHING = 0.01


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


def doubt(full: float, floors: Mapping[str, float]) -> str | None:
    """Why figures of a split say nothing of gates, in a sentence; None where they may. full: accuracy of the
    full pyramid; floors: accuracies without any image, by name."""
    look = "look at answers beside the accepted ones, and at data.files.metric, before any other figure"
    name = max(floors, key=lambda name: floors[name])
    if full < NEAR_NOTHING:
        return f"full is right on {full:.2%} of the test questions, near 0: {look}"
    if full < floors[name]:
        return (
            f"full is right on {full:.2%} of the test questions, below the question's floor ({name}, without "
            f"an image: {floors[name]:.2%}): {look}"
        )
    return None


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
