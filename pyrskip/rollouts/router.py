"""A router that reads pictures alone: which tiles are worth their tokens, whatever is asked
(InternVL3.5-Flash, arXiv:2508.18265).

Axes: N questions, M images, C channels, T tiles.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import ActionSet
from pyrskip.rollouts.table import RolloutTable

RIDGE = 0.01
"""Of the least squares, on features of unit variance."""


@dataclass(frozen=True)
class Router:
    """mean, scale [C]: of the features; weight [C + 1, T - 1]; score [M, T - 1]: of the images that it was
    fitted to, by which its thresholds are set."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    score: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """How much each tile is worth, [M, T - 1] float64. features [M, C]."""
        return F.pad((features.double() - self.mean) / self.scale, (0, 1), value=1.0) @ self.weight

    def keeps(self, features: Tensor, rate: float) -> Tensor:
        """The tiles that it leaves whole, [M, T - 1] bool: those with a score above what a share `rate` of
        the images that it was fitted to exceed."""
        return self(features) > self.score.quantile(1 - rate, dim=0)


def sight(table: RolloutTable) -> Tensor:
    """What the router reads of an image: the mean of its glance's cells, [M, C]."""
    maps, inside = (table.signals["image"][name] for name in ("glance", "glance_mask"))
    return (maps * inside[:, None]).sum((-1, -2)) / inside.sum((-1, -2))[:, None]


def least(actions: ActionSet) -> int:
    """The choice of a tile that the router does not leave whole: the fewest tokens but none, or none where
    there are no rungs."""
    return 1 if actions.choices > 2 else 0


def one_less(actions: ActionSet) -> Tensor | None:
    """The actions that leave each tile but one whole, [T - 1]; None where they are not listed."""
    tiles = actions.selection.shape[1] - 1
    whole = torch.full((tiles, tiles), actions.choices - 1)
    return actions.number(whole.fill_diagonal_(least(actions)))


def fit(table: RolloutTable, loss_ratio: Tensor) -> Router:
    """By least squares on the labels: 1 where the loss with fewer tokens of a tile, over that with all, is
    above its median. The paper's router is a classifier of the tile's own features. loss_ratio [N, T - 1]."""
    features = sight(table).double()
    own = features[table.image_of]
    mean, scale = own.mean(0), own.std(0, correction=0).clamp(min=1e-6)
    seen = F.pad((own - mean) / scale, (0, 1), value=1.0)
    label = (loss_ratio > loss_ratio.median(0).values).double()
    ridge = RIDGE * len(seen) * torch.eye(seen.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ label)
    router = Router(mean, scale, weight, features[:0])
    return Router(mean, scale, weight, router(features))
