"""Regions by rules that nobody learned; none where a level is one tile."""

from collections.abc import Iterator
from functools import partial

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.regions import NAMES
from pyrskip.evaluation.style import BLUE, GREEN, ORANGE, PURPLE, SKY, Section, Style


def played(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """What the model was asked about. ARR-COC's scores read every tile's tokens, so that it encodes and
    projects them all."""
    every = name.startswith("arr_coc")
    for column in inputs.played.get((name, 0, split), ()):
        yield Decisions(column, encodes_all=every, projects_all=every)


for _place, (_name, _colour, _marker) in enumerate(
    zip(NAMES, (GREEN, ORANGE, SKY, PURPLE, BLUE), ("1", "2", "X", "3", "4"), strict=True)
):
    _style = Style(_colour, "-.", _marker, panels=(), section=Section.HEURISTICS, place=8 + _place)
    METHODS.register(_name, Method(partial(played, _name), _style))
