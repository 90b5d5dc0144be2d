"""Regions by rules that nobody learned; none where a level is one tile."""

from collections.abc import Iterator
from functools import partial

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.regions import NAMES, REDUNDANT
from pyrskip.evaluation.style import BLUE, GREEN, ORANGE, PURPLE, SKY, Section, Style


def by_rule(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """What the model was asked about. What neighbouring levels have in common is known once both are encoded;
    ARR-COC's scores read every tile's tokens, so that it projects them all as well."""
    projects = name.startswith("arr_coc")
    for column in inputs.unlisted.get((name, 0, split), ()):
        yield Decisions(column, encodes_all=projects or name == REDUNDANT, projects_all=projects)


for _place, (_name, _colour, _marker) in enumerate(
    zip(
        NAMES,
        (GREEN, ORANGE, SKY, BLUE, ORANGE, PURPLE, BLUE),
        ("1", "2", "X", "*", "p", "3", "4"),
        strict=True,
    )
):
    _style = Style(_colour, "-.", _marker, panels=(), section=Section.HEURISTICS, place=8 + _place)
    METHODS.register(_name, Method(partial(by_rule, _name), _style))
