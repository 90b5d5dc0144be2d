"""Decisions that nobody learned: by chance, by words of the question, by likeness of question and level."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from pyrskip.evaluation.inputs import Inputs, product_of_rungs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import GREY, SKY, Section, Style
from pyrskip.gates.heuristics import SHARES, cosine_actions, keyword_actions, strategy_actions
from pyrskip.policies.sampling import multilinear

KEEP_PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)


def bernoulli(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """Each level beside the glance is kept whole with the same probability."""
    table, tile_level = inputs.tables[split], inputs.pyramid.tile_level
    actions, finer = table.actions, int(inputs.pyramid.tile_level.max())
    share = actions.selection.double() if actions.rung is None else actions.rung / (len(actions.ladder) - 1)
    kept = torch.stack([share[:, tile_level == level].mean(-1) for level in range(finer)], dim=-1)
    whole = ((kept == 0) | (kept == 1)).all(-1).nonzero().squeeze(1)
    for keep in KEEP_PROBABILITIES:
        weight = multilinear(torch.full((1, finer), keep, dtype=torch.float64), kept[whole] == 1)[0]
        yield Decisions(whole[:, None].expand(-1, len(table)), weight / weight.sum())


def keywords(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """By the kind of question that its words tell."""
    actions = inputs.tables[split].actions
    yield Decisions(keyword_actions(_texts(inputs, split), actions, inputs.pyramid.levels))


def strategy(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """By the kind of question, tables of tokens at several totals; none without rungs."""
    actions = inputs.tables[split].actions
    for share in SHARES if product_of_rungs(actions) else ():
        yield Decisions(strategy_actions(_texts(inputs, split), share, inputs.pyramid, actions))


def cosine(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The levels that are most like the question, of which every one is encoded to know it; none where tables
    have no similarity."""
    table, pyramid = inputs.tables[split], inputs.pyramid
    if table.similarity is not None:
        padding = pyramid.capacity(table.size)[table.image_of] == 0
        similarity = table.similarity.masked_fill(padding, float("-inf"))
        for k in range(1, pyramid.levels - 1):
            action = cosine_actions(similarity, table.actions, pyramid.tile_level, k)
            yield Decisions(action, encodes_all=True, projects_all=True)


def _texts(inputs: Inputs, split: str) -> Sequence[str]:
    """The text of every question."""
    table = inputs.tables[split]
    return [table.texts[i] for i in table.query_of.tolist()]


_style = partial(Style, SKY, section=Section.HEURISTICS)
METHODS.register("random:bernoulli", Method(bernoulli, Style(GREY, "--", "x", section=Section.RANDOM)))
METHODS.register("heuristic", Method(keywords, _style("", "X", "point", 90, place=1)))
METHODS.register("strategy", Method(strategy, _style(":", "X", place=2)))
METHODS.register("cosine", Method(cosine, _style("--", "P", place=3)))
