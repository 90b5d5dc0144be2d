"""Decisions that look at nothing: the full pyramid, the model without pyrskip, every listed action, and the
best mixes of those."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from pyrskip.evaluation.hull import upper_hull
from pyrskip.evaluation.inputs import Inputs, product_of_rungs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import BLACK, GREY, ORANGE, RED, Section, Style
from pyrskip.gates.heuristics import proportional_actions, whole
from pyrskip.rollouts.table import RolloutTable


def always(table: RolloutTable, column: int, variant: str = "") -> Decisions:
    """One of the table's columns for every question. Holds a single number."""
    return Decisions(torch.tensor(column).expand(len(table)), variant=variant)


def full(inputs: Inputs, split: str) -> Iterator[Decisions]:
    table = inputs.tables[split]
    yield always(table, table.actions.full)


def outside(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """A decision outside of the action set."""
    yield always(inputs.tables[split], inputs.tables[split].column(name))


def fixed(inputs: Inputs, split: str) -> Iterator[Decisions]:
    table = inputs.tables[split]
    for action, name in enumerate(table.actions.names):
        yield always(table, action, name)


def hull(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The vertices on validation of the upper hull of every listed action."""
    yield from _vertices(inputs, split, range(len(inputs.tables["val"].actions)))


def budget(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The vertices of the upper hull of what budget weights come to, where there are rungs: by 'capacity', or
    'learned' from the gate's rollouts."""
    actions = inputs.tables["val"].actions
    if product_of_rungs(actions):
        weights = whole(inputs.pyramid).double() if name == "capacity" else inputs.budget_weights
        assert weights is not None
        yield from _vertices(inputs, split, proportional_actions(weights, inputs.pyramid, actions))


def _vertices(inputs: Inputs, split: str, candidates: Sequence[int]) -> Iterator[Decisions]:
    """Those of the listed actions that are vertices of their upper hull on validation, cheapest first."""
    val = inputs.tables["val"]
    cost, score = (
        [float(of[:, action].double().mean()) for action in candidates] for of in (val.cost.flops, val.score)
    )
    for vertex in upper_hull(cost, score):
        yield always(inputs.tables[split], candidates[vertex])


_reference = partial(Style, section=Section.REFERENCES, by_type=True)
_point = partial(_reference, line="", kind="point", panels=("gate", "explained", "runs"), first=True)
_budget = partial(Style, ORANGE, panels=("gate",), section=Section.HEURISTICS)
METHODS.register("full", Method(full, _point(BLACK, marker="*", area=190)))
METHODS.register("reference", Method(partial(outside, "reference"), _point(RED, marker="D", place=1)))
METHODS.register(
    "question_only", Method(partial(outside, "question_only"), _reference(GREY, kind="floor", place=2))
)
_rings = Style(BLACK, "-", ".", "selections", panels=("gate",), section=Section.FIXED, first=True)
METHODS.register("fixed", Method(fixed, _rings, candidate=True, variants=True))
_behind = Style(
    BLACK, "--", "", panels=("gate", "explained", "runs"), section=Section.FIXED, place=1, first=True
)
METHODS.register("hull", Method(hull, _behind))
METHODS.register("budget:capacity", Method(partial(budget, "capacity"), _budget("--", "<")))
METHODS.register("budget:learned", Method(partial(budget, "learned"), _budget("-.", ">")))
