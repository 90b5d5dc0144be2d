"""Pruner `visionselector`: VisionSelector (arXiv:2510.16598): the tokens that a scorer likes most, which has
learned through the frozen language model what is missed (`pyrskip.training.selector`).

Axes: U sets of visual tokens, N visual tokens, D width, H = D / 2.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable, PrunerConfig

START = 1e-4
"""Every weight of a scorer that has not learned. Columns that start alike stay alike: what is learned is how
far along one direction a token lies, times how far along another their mean does."""
BISECTIONS = 64
EDGE = 40.0
"""Beyond any score, a threshold at which a sigmoid is 0 or 1 in float64."""


@dataclass(frozen=True)
class SelectorConfig(PrunerConfig):
    """Of its training: budget: the share of tokens that stays, in (0, 1); steps, lr, seed; pull: at the end,
    the weight of the cross-entropy that pulls soft choices to hard ones."""

    budget: float = 0.2
    steps: int = 400
    lr: float = 0.002
    seed: int = 0
    pull: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.budget < 1:
            raise UserError(f"pruner.budget={self.budget}: allowed: above 0 and below 1")
        if self.steps < 1 or self.lr <= 0 or self.seed < 0 or self.pull < 0:
            raise UserError(
                f"pruner.steps={self.steps}, lr={self.lr}, seed={self.seed}, pull={self.pull}: allowed: at "
                "least 1, above 0, at least 0 and at least 0"
            )


class Scorer(nn.Module):
    """A token's score is the mean over all tokens of q_i . k_j / sqrt(H). In float64, so that what is chosen
    is not chosen by rounding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.full((width, width // 2), START))
        self.key = nn.Parameter(torch.full((width, width // 2), START))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """tokens [U, N, D], real [U, N] bool -> [U, N] float64; of what is real alone."""
        tokens = tokens.double() * real[..., None]
        # the mean over keys of what a query says to them is what it says to their mean
        mean = tokens.sum(1, keepdim=True) / real.sum(-1).clamp(min=1)[:, None, None]
        query, key = tokens @ self.query.double(), mean @ self.key.double()
        return (query @ key.transpose(1, 2)).squeeze(-1) / sqrt(self.query.shape[1])


@PRUNERS.register("visionselector")
class VisionSelector(KeepingPruner):
    """Tokens of the highest scores stay, whatever is asked. scorer: as it starts, where none is given."""

    config_class = SelectorConfig

    def __init__(self, config: PrunerConfig, scorer: Scorer | None = None) -> None:
        super().__init__(config)
        self.scorer = scorer

    def keep(self, seen: Prunable) -> Tensor:
        scorer = self.scorer or Scorer(seen.tokens.shape[-1])
        with torch.no_grad():
            return self.highest(scorer.to(seen.tokens.device)(seen.tokens, seen.real), seen)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of queries, the mean's key, and what they say to each other."""
        n, half = tokens.double(), language.width // 2
        return 2.0 * half * (n * language.width + language.width + n) * (n > 0)


class SoftTopK(torch.autograd.Function):
    """p = sigmoid(score + t), where t makes the probabilities of a row sum to its count; its gradient is
    diag(v) - v v^T / sum(v) with v = p (1 - p)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, real: Tensor, count: Tensor) -> Tensor:
        """score [U, N] float64, real [U, N] bool, count [U] at most as many as are real -> [U, N], 0 where
        not real."""
        low = -score.masked_fill(~real, float("-inf")).amax(-1, keepdim=True) - EDGE
        high = -score.masked_fill(~real, float("inf")).amin(-1, keepdim=True) + EDGE
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            less = ((score + middle).sigmoid() * real).sum(-1, keepdim=True) < count[:, None]
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        chosen = (score + (low + high) / 2).sigmoid() * real
        ctx.save_for_backward(chosen)
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (chosen,) = ctx.saved_tensors
        v = chosen * (1 - chosen)
        mean = (v * gradients[0]).sum(-1, keepdim=True) / v.sum(-1, keepdim=True).clamp(min=1e-300)
        return v * (gradients[0] - mean), None, None
