"""How many tokens the language model reads of a picture that is encoded whole, whatever is asked: by a
router, and as a fixed prefix."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from pyrskip.decision import ActionSet
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.fixed import always
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import ORANGE, PURPLE, Section, Style
from pyrskip.rollouts import router
from pyrskip.rollouts.labels import log_ratio

RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the images that have a tile whole."""


def routed(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """A tile has all of its tokens, or its fewest, as a router says that reads the picture and no question
    (ViR of InternVL3.5-Flash), fitted to the gate's rollouts; none where these hold no probabilities or lack
    a decision without a tile."""
    table, gate = inputs.tables[split], inputs.tables["gate"]
    without = router.one_less(table.actions)
    if inputs.encode_flops.get(split) is None or gate.probability is None or without is None:
        return
    chance = gate.probability
    fitted = router.fit(gate, log_ratio(chance[:, gate.actions.full], chance[:, without]))
    for rate in RATES:
        keeps = fitted.keeps(router.sight(table), rate)[table.image_of]
        steps = torch.where(keeps, table.actions.choices - 1, router.least(table.actions))
        action = table.actions.number(steps)
        assert action is not None, "every combination is listed"
        yield Decisions(action, encodes_all=True)


def prefix(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The first tokens of a fixed order, the same for every question: coarser levels before finer ones, a
    level by its rungs (MQT, arXiv:2405.19315, and M3, arXiv:2405.17430, whose tokens nest)."""
    table = inputs.tables[split]
    if inputs.encode_flops.get(split) is not None:
        for name in prefixes(table.actions, inputs.pyramid.levels):
            yield replace(always(table, table.column(name)), encodes_all=True)


def prefixes(actions: ActionSet, levels: int) -> list[str]:
    """The names of the actions that keep a prefix, the shortest first."""
    names, coarser = ["glance"], ""
    for level in range(levels - 2, -1, -1):
        rungs = [f":{rung}" for rung in actions.ladder[1:-1]]
        names += [f"{level}{rung}{coarser}" for rung in (*rungs, "")]
        coarser = f",{level}{coarser}"
    return names


_style = partial(Style, panels=(), section=Section.PEERS)
METHODS.register("vir", Method(routed, _style(PURPLE, "-", "D", place=4)))
METHODS.register("prefix", Method(prefix, _style(ORANGE, "--", "p", place=5)))
