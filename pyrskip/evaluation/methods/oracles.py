"""What a gate is measured against: decisions that know how questions of a type, or each answer, come out."""

from collections.abc import Iterator
from functools import partial

import torch

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import RED, Section, Style
from pyrskip.rollouts import oracles


def by_type(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The best action of each question type on the gate's training rollouts; a type that they never saw gets
    everything."""
    table = inputs.tables[split]
    for price in _prices(inputs):
        best = oracles.by_type(inputs.tables["gate"], price, inputs.unit)
        action = torch.tensor([best.get(kind, table.actions.full) for kind in table.types])
        yield Decisions(action, price=price)


def by_sample(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The best action of each question, which peeks at the answers."""
    for price in _prices(inputs):
        yield Decisions(oracles.by_sample(inputs.tables[split], price, inputs.unit), price=price)


def cross(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The best action of each question under another flex seed; none without its tables."""
    crossed = inputs.crossed
    for price in _prices(inputs) if crossed is not None else ():
        assert crossed is not None
        unit = crossed["gate"].mean_full_flops
        yield Decisions(oracles.cross(inputs.tables[split], crossed[split], price, unit), price=price)


def by_boxes(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The tiles, of the coarsest level that shows the answer, in which it lies; where a data set knows them,
    and decisions are not listed."""
    for column in inputs.unlisted.get(("oracle:boxes", 0, split), ()):
        yield Decisions(column)


def _prices(inputs: Inputs) -> list[float]:
    """The frontier's, and those that gates serve beside them."""
    own = {price for gates in inputs.gates.values() for gate in gates for price in gate.prices(())}
    return sorted({*inputs.prices, *own})


_style = partial(Style, RED, panels=("gate",), section=Section.ORACLES)
METHODS.register("oracle:type", Method(by_type, _style("-.", "1", first=True)))
METHODS.register("oracle:sample", Method(by_sample, _style(":", "2", place=2)))
METHODS.register("oracle:boxes", Method(by_boxes, _style("", "4", "point", place=4)))
METHODS.register("oracle:cross", Method(cross, _style("--", "3", place=1)))
