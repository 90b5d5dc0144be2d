"""Levels by measures of the glance, and by the question's attention to the levels; nobody learned them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import BLUE, GREEN, ORANGE, PURPLE, Section, Style
from pyrskip.gates import measures
from pyrskip.rollouts.table import RolloutTable

TIMES = (0.25, 0.5, 1.0, 1.4, 2.5, 4.0)
"""How many times as many images as the published thresholds let through are looked at closely."""
SHARES = (0.3, 0.5, 0.7, 0.9)
"""Shares of the question's attention that the kept levels get."""
WEIGHTS = {"entropy": 0.3, "salience": 0.3, "coupling": 0.4}
"""ARR-COC's, of information, salience and query-content coupling."""

Measure = Callable[[Tensor, Tensor], Tensor]


def by_measure(measure: Measure, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The level that a measure of the glance's map asks for, by its rank among the images of the gate's
    rollouts; none where looking at the glance is no part of the answer."""
    if inputs.encode_flops.get(split) is not None:
        yield from _at_thresholds(_ranked(measure, inputs, split), inputs, split)


def arr_coc(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The same by a weighted mean of three ranks: how much the glance shows, how much something in it stands
    out, and how like its tokens are to the question. Ranks, for the public code's spread of scores over a
    batch makes an answer depend on its batch mates."""
    table, gate = inputs.tables[split], inputs.tables["gate"]
    if inputs.encode_flops.get(split) is None or table.similarity is None or gate.similarity is None:
        return
    glance = inputs.pyramid.glance
    ranks = {
        "entropy": _ranked(measures.entropy, inputs, split),
        "salience": _ranked(measures.salience, inputs, split),
        "coupling": measures.rank(table.similarity[:, glance], gate.similarity[:, glance]),
    }
    relevance = torch.stack([weight * ranks[name] for name, weight in WEIGHTS.items()]).sum(0)
    yield from _at_thresholds(relevance, inputs, split)


def attention(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The levels that the question attends to most, of which every one is encoded to know it; none where
    tables have no similarity."""
    table, pyramid = inputs.tables[split], inputs.pyramid
    if table.similarity is None:
        return
    padding = pyramid.capacity(table.size)[table.image_of] == 0
    similarity = table.similarity.masked_fill(padding, float("-inf"))
    for share in SHARES:
        action = measures.attended_actions(similarity, table.actions, pyramid, share)
        yield Decisions(action, encodes_all=True, projects_all=True)


def _ranked(measure: Measure, inputs: Inputs, split: str) -> Tensor:
    """The rank [N] of each question's image."""
    found, known = (_measured(measure, inputs.tables[name]) for name in (split, "gate"))
    return measures.rank(found, known)[inputs.tables[split].image_of]


def _measured(measure: Measure, table: RolloutTable) -> Tensor:
    of_image = table.signals["image"]
    return measure(of_image["glance"], of_image["glance_mask"])


def _at_thresholds(relevance: Tensor, inputs: Inputs, split: str) -> Iterator[Decisions]:
    actions, levels = inputs.tables[split].actions, inputs.pyramid.levels
    for times in TIMES:
        level = measures.finest(relevance, levels, times)
        yield Decisions(measures.finest_actions(level, actions, levels))


_style = partial(Style, panels=(), section=Section.HEURISTICS)
for _name, _measure, _look in (
    ("entropy", measures.entropy, _style(GREEN, ":", "1", place=4)),
    ("variance", measures.variance, _style(ORANGE, ":", "2", place=5)),
):
    METHODS.register(_name, Method(partial(by_measure, _measure), _look))
METHODS.register("arr_coc", Method(arr_coc, _style(PURPLE, "--", "3", place=6)))
METHODS.register("attention", Method(attention, _style(BLUE, ":", "4", place=7)))
