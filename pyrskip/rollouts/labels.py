"""Labels that others train their gates on: scores or losses of a question -> what to decide.

Axes: B batch, S listed actions, T tiles. A label is of its question alone.
"""

import torch
from torch import Tensor

NOISE = 1e-6


def cares(score: Tensor, cost: Tensor, enough: float, margin: float) -> Tensor:
    """The cheapest action whose score is enough and that no dearer one betters by more than the margin, the
    dearest where there is none (CARES, arXiv:2510.19496, with actions for resolutions). score, cost [B, S] ->
    [B] int64."""
    order = cost.argsort(dim=-1, stable=True)
    rising = score.gather(1, order)
    # the best of those that are dearer; of the dearest, none
    dearer = rising.flip(-1).cummax(-1).values.flip(-1)[:, 1:]
    # float noise must not hide a score that is just enough, nor one that is just as much better
    good = (rising[:, :-1] >= enough - NOISE) & (dearer - rising[:, :-1] <= margin + NOISE)
    last = torch.ones_like(good[:, :1])
    return order.gather(1, torch.cat([good, last], dim=1).int().argmax(-1, keepdim=True)).squeeze(1)


def awares(low: Tensor, full: Tensor, margin: float) -> Tensor:
    """Whether more than the glance is needed: not where its answer is right or no worse than the full
    pyramid's (AwaRes, arXiv:2603.16932, where a judge says so). low, full: scores [B] in [0, 1], of which the
    full one may be better by the margin -> [B] bool."""
    return full - low > margin + NOISE


def log_ratio(whole: Tensor, without: Tensor, floor: float = 1e-6) -> Tensor:
    """log of the loss without a tile over that with every tile (InternVL3.5, arXiv:2508.18265, with tiles for
    its patches' rates). whole [B], without [B, T]: the answer's probability; floor: of a loss, since that of
    a certain answer is 0 -> [B, T]."""
    loss, dropped = (-p.clamp(floor, 1.0).log() + floor for p in (whole[:, None], without))
    return dropped.log() - loss.log()
