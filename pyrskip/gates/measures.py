"""Measures that others decide by: of a glance how much it shows, of a question how like the levels are.
Nothing of it is learned.

Axes: M images, C channels, h x w cells, N questions, T tiles, L levels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrskip.decision import ActionSet
from pyrskip.gates.heuristics import listed
from pyrskip.pyramid import Pyramid

THRESHOLDS = (0.8, 0.5, 0.3)
"""Relevance from 0 to 1 above which level 0, 1 and 2 is looked at; no higher than the last, level 3
(ARR-COC)."""
TEMPERATURE = 0.1
"""Temperature of the softmax over a question's cosines with the levels."""


def entropy(maps: Tensor, inside: Tensor) -> Tensor:
    """Information: the mean over cells of the entropy, in nats, of the softmax over a cell's channels. maps
    [M, C, h, w], inside [M, h, w] bool -> [M]."""
    log_probs = maps.log_softmax(1)
    return _mean(-(log_probs.exp() * log_probs).sum(1), inside)


def variance(maps: Tensor, inside: Tensor) -> Tensor:
    """How unlike an image's cells are: the variance of a channel over them, averaged over channels, 0 for one
    colour. As `entropy`."""
    return _mean(_from_centre(maps, inside).mean(1), inside)


def salience(maps: Tensor, inside: Tensor) -> Tensor:
    """How far what stands out most is from the rest: the largest distance of a cell from the mean of all. As
    `entropy`."""
    return _from_centre(maps, inside).sum(1).masked_fill(~inside, 0.0).amax((-1, -2)).sqrt()


def rank(score: Tensor, known: Tensor) -> Tensor:
    """The share of known scores [K] that are below each score [N]: from 0 to 1, whatever the scores' unit,
    and of each alone. float64."""
    return torch.searchsorted(known.sort().values, score.contiguous()).double() / len(known)


def finest(relevance: Tensor, levels: int, times: float) -> Tensor:
    """The finest level to look at, [N] int64, L - 1 for the glance alone: the first whose threshold relevance
    [N] exceeds. THRESHOLDS are stretched over the levels; times: as many images exceed each, where relevance
    is a rank."""
    place = np.linspace(0, len(THRESHOLDS) - 1, levels - 1)
    threshold = 1 - times * (1 - np.interp(place, range(len(THRESHOLDS)), THRESHOLDS))
    return (relevance[:, None] <= torch.from_numpy(threshold)).sum(-1)


def finest_actions(level: Tensor, actions: ActionSet, levels: int) -> Tensor:
    """The listed action that keeps a level [N] beside the glance, [N]."""
    return _of_levels([(of,) if of < levels - 1 else () for of in level.tolist()], actions)


def attended_actions(similarity: Tensor, actions: ActionSet, pyramid: Pyramid, share: float) -> Tensor:
    """The listed action that keeps, beside the glance, the levels on which so large a share of a question's
    attention falls, the most attended first, [N].

    similarity [N, T]: cosine of the question with each tile's mean token, -inf for padding; a level counts by
    its best tile. Attention: their softmax over all levels, the glance among them.
    """
    level = torch.stack(
        [similarity[:, pyramid.tile_level == i].amax(-1) for i in range(pyramid.levels)], dim=-1
    )
    weight, order = (level / TEMPERATURE).softmax(-1).sort(dim=-1, descending=True)
    before = weight.cumsum(-1) - weight
    kept = [
        tuple(sorted(of for of in row[:count] if of < pyramid.levels - 1))
        for row, count in zip(order.tolist(), (before < share).sum(-1).tolist(), strict=True)
    ]
    return _of_levels(kept, actions)


def _of_levels(kept: Sequence[tuple[int, ...]], actions: ActionSet) -> Tensor:
    number = {levels: listed(levels, actions) for levels in set(kept)}
    return torch.tensor([number[levels] for levels in kept], dtype=torch.int64)


def _from_centre(maps: Tensor, inside: Tensor) -> Tensor:
    """Squared distances of the cells from the mean of those inside, by channel, [M, C, h, w]."""
    within = inside[:, None]
    centre = (maps * within).sum((-1, -2), keepdim=True) / within.sum((-1, -2), keepdim=True)
    return (maps - centre) ** 2


def _mean(values: Tensor, inside: Tensor) -> Tensor:
    """Over the cells inside. values [M, h, w] -> [M]."""
    return (values * inside).sum((-1, -2)) / inside.sum((-1, -2))
