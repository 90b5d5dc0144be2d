"""Budget weights learned from rollouts of rungs: levels that improve accuracy get more of a total.

Axes: S listed actions, K decisions, T tiles, F = T - 1 tiles beside the glance, R rungs, L levels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import ActionSet
from pyrskip.gates.heuristics import SHARES, spread, whole
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable

# of the search, in doublings of a level's weight: first step, last step, and how far from the capacities it
# may go
FIRST, LAST, FARTHEST = 2.0, 0.125, 6.0


def learned_weights(table: RolloutTable, pyramid: Pyramid) -> Tensor:
    """The weight of each tile, [T], for `budget.weights`.

    A level's tiles weigh their capacity times the level's factor. Factors are those under which every
    selection of whole levels, at SHARES of all tokens, answers most of the table's questions on average: from
    1, the capacities' weights, a level's is doubled or halved while that helps, then by less. The table must
    list every combination of rungs; it shows no glance but a whole one.
    """
    capacity, score = whole(pyramid), table.score[:, : len(table.actions)].double().mean(0)
    keep = ActionSet.by_level(pyramid).selection

    def weights(doublings: Tensor) -> Tensor:
        return capacity * 2 ** doublings[pyramid.tile_level]

    def mean_score(doublings: Tensor) -> float:
        return float(
            between(score, table.actions, spread(weights(doublings), SHARES, keep, pyramid) / capacity).mean()
        )

    best, step = torch.zeros(pyramid.levels, dtype=torch.float64), FIRST
    top = mean_score(best)
    while step >= LAST:
        before = top
        for level in range(pyramid.levels - 1):  # weights are relative: the glance's may stay
            for move in (step, -step):
                tried = best.clone()
                tried[level] = (tried[level] + move).clamp(-FARTHEST, FARTHEST)
                reached = mean_score(tried)
                if reached > top + 1e-9:
                    best, top = tried, reached
        if top == before:
            step /= 2
    return weights(best)


def between(score: Tensor, actions: ActionSet, share: Tensor) -> Tensor:
    """The score [K] of decisions between rungs, multilinear in the share [K, T] of its tokens that each tile
    gives.

    score [S]: of every combination of rungs.
    """
    ladder = torch.tensor(actions.ladder, dtype=torch.float64) / actions.ladder[-1]
    share = share[:, :-1].double().contiguous()
    above = torch.searchsorted(ladder, share).clamp(1, len(ladder) - 1)
    part = ((share - ladder[above - 1]) / (ladder[above] - ladder[above - 1]))[..., None]
    weight = part * F.one_hot(above, len(ladder)) + (1 - part) * F.one_hot(above - 1, len(ladder))
    of_tile = weight[:, torch.arange(share.shape[1]), actions.steps[:, :-1]]  # [K, S, F]
    return of_tile.prod(-1) @ score
