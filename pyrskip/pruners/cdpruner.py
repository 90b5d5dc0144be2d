"""Pruner `cdpruner`: CDPruner (arXiv:2506.10967): visual tokens that differ from each other and answer to the
question, the most probable set of a determinantal point process, found greedily."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable, PrunerConfig, spread, unit

NOTHING = 1e-9
"""Of what a token adds: no more than rounding, where more tokens stay than they have dimensions."""


@dataclass(frozen=True)
class CdPrunerConfig(PrunerConfig):
    """theta: in (0, 1), how much relevance counts beside diversity: relevance r becomes exp(alpha r) with
    alpha = theta / (2 (1 - theta)); null: r as it is."""

    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta is not None and not 0 < self.theta < 1:
            raise UserError(f"pruner.theta={self.theta}: allowed: above 0 and below 1, or null")


@PRUNERS.register("cdpruner")
class CdPruner(KeepingPruner):
    """The kernel is r_i cos(i, j) r_j of the projected tokens. Relevance r is the mean over the question's
    words of the cosine of token and word, spread over 0 to 1 within a row; the paper has CLIP's likeness of
    patch and text, which CLIP turns upside down, and the model's own embeddings stand for it here.

    The search takes again and again the token with the largest d, at first the kernel's diagonal; each taken
    j with e = (K_j - sum_t c_t[j] c_t) / sqrt(d_j) lessens d by e^2. Where no token adds anything any more,
    the most relevant ones follow, of equals the first.
    """

    config_class = CdPrunerConfig
    needs = ("text",)

    def keep(self, seen: Prunable) -> Tensor:
        tokens, real = unit(seen.tokens), seen.real
        relevance = self.relevance(seen)
        weight = torch.zeros_like(relevance).where(~real, relevance)
        kernel = weight[:, :, None] * (tokens @ tokens.transpose(1, 2)) * weight[:, None]
        adds = kernel.diagonal(dim1=1, dim2=2).clone()
        rows, keep = torch.arange(len(real), device=real.device), torch.zeros_like(real)
        stays = self.stays(real.sum(-1))
        most = int(stays.amax()) if len(stays) else 0
        found = kernel.new_zeros(len(real), most, real.shape[1])
        for taken in range(most):
            order = torch.where(adds > NOTHING, adds, NOTHING * (weight / weight.amax(-1, keepdim=True) - 1))
            place = order.masked_fill(keep | ~real, float("-inf")).argmax(-1)
            known = torch.zeros_like(adds)
            if taken:
                known = (found[rows, :taken, place][:, None] @ found[:, :taken])[:, 0]
            own = adds[rows, place][:, None]
            found[:, taken] = torch.where(own > NOTHING, (kernel[rows, place] - known) * own.rsqrt(), 0.0)
            adds = adds - found[:, taken] ** 2
            keep[rows, place] |= taken < stays
        return keep

    def relevance(self, seen: Prunable) -> Tensor:
        """[U, N], of real tokens in 0..1, or what theta makes of it."""
        words, mask = seen.beside["text"]
        alike = unit(seen.tokens) @ unit(words).transpose(1, 2)
        mean = (alike * mask[:, None]).sum(-1) / mask.sum(-1).clamp(min=1)[:, None]
        relevance = spread(mean, seen.real)
        assert isinstance(self.config, CdPrunerConfig)
        theta = self.config.theta
        return relevance if theta is None else (theta / (2 * (1 - theta)) * relevance).exp()

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of cosines with tokens and words, and of the search."""
        n, k = tokens.double(), self.stays(tokens).double()
        return 2.0 * language.width * n * (n + words) + k * (k - 1) * n
