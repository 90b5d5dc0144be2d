"""Pruner `ptp`: Pyramid Token Pruning (arXiv:2509.15704): a budget for every tile by how salient it is, and
in it the tokens that encoder and question attend to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.pruners.inside import InsideConfig, InsidePruner
from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable, rank, spread


@dataclass(frozen=True)
class PtpConfig(InsideConfig):
    """alpha: in [0, 1], how much the question's attention counts; the rest is the encoder's."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"pruner.alpha={self.alpha}: allowed: 0 to 1")


@PRUNERS.register("ptp")
class Ptp(InsidePruner):
    """A tile's budget is max(1, floor(K s / sum of s)), s its mean salience, which stands for the attention
    that the encoder's tokens receive; what is left of K goes to the most salient tiles that have room, and
    where too much was given, the least salient ones give it back. A token's score is
    (1 - alpha) salience, spread over 0 to 1, + alpha max over the question's words of their attention to it
    behind layer 2 of 24, heads averaged; the highest of each tile stay."""

    config_class = PtpConfig
    needs = ("salience", "attention")
    places = (2,)
    depth = 24
    rows = "words"

    def begin(self, seen: Prunable) -> Mapping[str, tuple[Tensor, ...]]:
        return {"salience": seen.beside["salience"]}

    def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
        assert isinstance(self.config, PtpConfig)
        (salience,), (attention, rows) = seen.beside["salience"], seen.beside["attention"]
        top_down = attention.masked_fill(~rows[..., None], 0.0).amax(1)
        score = (1 - self.config.alpha) * spread(salience, seen.real) + self.config.alpha * top_down
        budget = tile_budgets(salience, seen, self.stays(whole))
        keep = torch.zeros_like(seen.real)
        for tile in range(budget.shape[1]):
            own = seen.real & (seen.tile == tile)
            keep |= own & (rank(score, own) < budget[:, tile, None])
        return Kept.of(seen, keep)


def tile_budgets(salience: Tensor, seen: Prunable, total: Tensor) -> Tensor:
    """Tokens [U, T] of a total [U] for each tile; none for a tile without tokens."""
    tiles = int(seen.tile.max()) + 1 if seen.tile.numel() else 0
    member = F.one_hot(seen.tile, tiles) * seen.real[..., None]
    room = member.sum(1)
    mean = (salience.double()[..., None] * member).sum(1) / room.clamp(min=1)
    share = total[:, None] * mean / mean.sum(-1, keepdim=True).clamp(min=1e-12)
    budget = torch.minimum((share + 1e-9).floor().long().clamp(min=1), room)
    place = rank(mean, room > 0)
    while bool((left := total - budget.sum(-1)).any()):
        more, less = budget < room, budget > (budget.amax(-1, keepdim=True) > 1).long()
        gets = more & (rank(-place.double(), more) < left[:, None])
        gives = less & (rank(place.double(), less) < -left[:, None])
        budget = budget + gets.long() - gives.long()
    return budget
