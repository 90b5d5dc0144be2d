"""Never worse than fixed: at which prices a gate is above the upper hull of fixed selections, and what is
played at the others.

A gate is tested on the held-out half of the validation images, which no training and no choice of weights
looked at, so that it is called above where it is not at most LEVEL of the time, at each price for itself. The
hull has the vertices that all validation images choose, and is held to the same questions, image by image:
chosen where it is measured, it is if anything flattered. A guaranteed retention, which the same images give,
is of the gate's own decisions at its price, and not of what is played in their place.

Between the hull's vertices nothing need be mixed: what is best at a price, score - price x cost, is a vertex.

Axes: N questions, M images, P prices, V fixed selections.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor

from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.hull import upper_hull
from pyrskip.evaluation.inputs import Inputs
from pyrskip.inference.safe import Safe
from pyrskip.rollouts.held_out import held_out
from pyrskip.rollouts.table import RolloutTable

LEVEL = 0.05
RESAMPLES = 2000


def safe(inputs: Inputs, seed: int) -> Safe:
    """What is played in place of the gate of a seed. Between two neighbouring prices at which it is above the
    hull, the gate; beyond the frontier's prices never."""
    prices = sorted(inputs.prices_of("gate", seed))
    chances = dict(zip(inputs.prices_of("gate", seed), chances_of_none(inputs, seed), strict=True))
    runs = (list(run) for above, run in groupby(prices, key=lambda price: chances[price] < LEVEL) if above)
    return Safe(tuple((run[0], run[-1]) for run in runs), tuple(best_fixed(inputs)))


def best_fixed(inputs: Inputs) -> Iterator[tuple[float, str]]:
    """From which price on a vertex of validation's hull is the best fixed selection there, ascending."""
    vertices, cost, score = _hull(inputs)
    names = inputs.tables["val"].actions.names
    yield 0.0, names[vertices[-1]]
    for dear, cheap in pairwise(vertices[::-1]):
        yield (score[dear] - score[cheap]) / (cost[dear] - cost[cheap]), names[cheap]


def chances_of_none(inputs: Inputs, seed: int) -> list[float]:
    """At each of the gate's prices, the one-sided p-value against its being above the hull, by paired
    bootstrap over the held-out images; 1 where there are none."""
    action, table = inputs.decided("gate", seed, "val"), inputs.tables["val"]
    images = torch.tensor(held_out(table), dtype=torch.long)
    rows = torch.isin(table.image_of, images).nonzero().squeeze(1)
    if not len(rows):
        return [1.0] * len(action)
    beside = torch.full((len(action),), inputs.gate_flops["gate"])
    above = above_hull(inputs, table.take(rows), action[:, rows], beside)
    return Bootstrap(table.image_of[rows], RESAMPLES).chances_of_none(above)


def above_hull(inputs: Inputs, table: RolloutTable, action: Tensor, beside: Tensor) -> Tensor:
    """`heights` of listed actions [P, N] on the questions of a table, which cost as many FLOPs beside [P]."""
    vertices, score, flops = _hull(inputs)[0], table.score.double(), table.cost.flops
    return heights(
        score.gather(1, action.T).T,
        (flops.gather(1, action.T).T + beside[:, None]) / inputs.unit,
        score[:, vertices].T,
        flops[:, vertices].T / inputs.unit,
    )


def heights(score: Tensor, cost: Tensor, fixed_score: Tensor, fixed_cost: Tensor) -> Tensor:
    """Height above the hull of fixed selections at equal mean cost, as a mean over questions: score and cost
    [P, N], fixed [V, N] -> [P, N] float64.

    Between vertices a and b of slope s, of which the mix of the same mean cost has the shares 1 - w and w, a
    question counts with score - s x cost less that of the mix. To the first order that is what it adds to the
    height, the hull's own scores, costs and shares being of the same questions: so it is what to resample.
    """
    mean_cost, mean_score = fixed_cost.mean(1).tolist(), fixed_score.mean(1).tolist()
    hull = upper_hull(mean_cost, mean_score)
    found = []
    for own_score, own_cost in zip(score, cost, strict=True):
        (a, b), share, slope = _between(hull, mean_cost, mean_score, float(own_cost.mean()))
        mixed = [(1 - share) * of[a] + share * of[b] for of in (fixed_score, fixed_cost)]
        found.append(own_score - mixed[0] - slope * (own_cost - mixed[1]))
    return torch.stack(found) if found else score.double()


def _hull(inputs: Inputs) -> tuple[list[int], list[float], list[float]]:
    """The listed actions that are vertices of validation's hull, cheapest first; mean relative cost and score
    of every listed action there."""
    table = inputs.tables["val"]
    listed = len(table.actions)
    cost = (table.cost.flops[:, :listed].mean(0) / inputs.unit).tolist()
    score = table.score[:, :listed].mean(0, dtype=torch.float64).tolist()
    return upper_hull(cost, score), cost, score


def _between(
    hull: Sequence[int], cost: Sequence[float], score: Sequence[float], own: float
) -> tuple[tuple[int, int], float, float]:
    """The vertices that a cost lies between, the dearer one's share of their mix, and their slope. Below the
    cheapest, and above the dearest, that one alone."""
    for a, b in pairwise(hull):
        if cost[a] <= own < cost[b]:
            return (a, b), (own - cost[a]) / (cost[b] - cost[a]), (score[b] - score[a]) / (cost[b] - cost[a])
    end = hull[0] if own < cost[hull[0]] else hull[-1]
    return (end, end), 0.0, 0.0
