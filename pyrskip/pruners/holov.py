"""Pruner `holov`: HoloV (arXiv:2510.02912): visual tokens from all over the picture, the more from where they
are attended to and where they differ."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.pruners.average import apportioned
from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable, PrunerConfig, rank, unit

SCALE, VARIANCE = 1000.0, 0.09
"""Weights of attention and of variance in a token's score."""


@dataclass(frozen=True)
class HoloVConfig(PrunerConfig):
    """runs: how many runs of equal length the tokens are cut into, in their order."""

    runs: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs < 1:
            raise UserError(f"pruner.runs={self.runs}: allowed: at least 1")


@PRUNERS.register("holov")
class HoloV(KeepingPruner):
    """A token's score is 1000 a + 0.09 v m(1000 a) / m(v): a its share of the row's salience, which stands
    for the encoder's attention here, v the variance of its cosines with the other tokens of its run, m the
    mean over the run. A run's share of the tokens that stay is its mean score's; inside a run those of the
    highest salience stay. What is more than a run holds goes to the others, so that no token of the budget
    is lost."""

    config_class = HoloVConfig
    needs = ("salience",)

    def keep(self, seen: Prunable) -> Tensor:
        assert isinstance(self.config, HoloVConfig)
        runs, salience = self.config.runs, seen.beside["salience"][0].double()

        def pick(row: int, count: int) -> Tensor:
            tokens, _ = seen.row(row)
            attention = salience[row, : len(tokens)]
            attention = SCALE * attention / attention.sum().clamp(min=1e-12)
            cuts = [i * len(tokens) // runs for i in range(runs + 1)]
            places = [torch.arange(a, b, device=tokens.device) for a, b in pairwise(cuts)]
            places = [run for run in places if len(run)]
            weight = torch.stack([_score(tokens[run], attention[run]).mean() for run in places])
            room = torch.tensor([len(run) for run in places], device=tokens.device)
            kept = [
                run[rank(attention[run][None], torch.ones_like(run[None], dtype=torch.bool))[0] < share]
                for run, share in zip(places, filled(weight, room, count).tolist(), strict=True)
            ]
            return torch.cat(kept)

        return self.by_row(seen, pick)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of cosines inside runs of n // P tokens and of one more; a token alone has none."""
        assert isinstance(self.config, HoloVConfig)
        short, longer = tokens // self.config.runs, tokens % self.config.runs
        pairs = longer * (short + 1) ** 2 * (short > 0) + (self.config.runs - longer) * short**2 * (short > 1)
        return 2.0 * language.width * pairs.double()


def filled(weight: Tensor, room: Tensor, total: int) -> Tensor:
    """Shares [P] of a total by weights [P], none more than its room [P]: what is too much for one goes to
    the others by their weights. The total is at most all room."""
    share = torch.zeros_like(room)
    while (left := total - int(share.sum())) > 0:
        free = room - share
        more = apportioned(weight.clamp(min=1e-12) * (free > 0), left)
        share = share + torch.minimum(more, free)
    return share


def _score(tokens: Tensor, attention: Tensor) -> Tensor:
    """Of a run's tokens [n, D], [n]."""
    n = len(tokens)
    if n < 2:
        return attention
    cosine = (unit(tokens) @ unit(tokens).T)[~torch.eye(n, dtype=torch.bool, device=tokens.device)]
    variance = cosine.view(n, n - 1).var(-1, correction=0)
    mean = variance.mean().clamp(min=1e-12)
    return attention + VARIANCE * variance * attention.mean() / mean
