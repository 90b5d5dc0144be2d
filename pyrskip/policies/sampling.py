"""Samples, straight-through Gumbel ones among them, and selections of independent tiles.

Axes: B batch, T tiles, S actions. `gumbel_sigmoid` and `gumbel_softmax` are hard (0 or 1) in value, with the
gradient of their concrete relaxation: the value does not depend on the temperature, only the gradient does
(arXiv:1611.01144, arXiv:1308.3432).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.transfer import sent


def draw(logit: Tensor) -> Tensor:
    """Numbers drawn by their logits. [..., S] -> [...] int64. They are not checked, which would wait for an
    accelerator."""
    number: Tensor = torch.distributions.Categorical(logits=logit, validate_args=False).sample()
    return number


def gumbel_sigmoid(logit: Tensor, temperature: float) -> Tensor:
    """A Bernoulli(sigmoid(logit)) sample. Any shape -> same shape, 0 or 1."""
    u = torch.rand_like(logit).clamp(1e-7, 1 - 1e-7)
    soft = ((logit + u.log() - (-u).log1p()) / temperature).sigmoid()
    hard = (soft > 0.5).float()
    return hard + (soft - soft.detach())


def gumbel_softmax(logit: Tensor, temperature: float) -> Tensor:
    """A one-hot Categorical(logit) sample. [..., S] -> [..., S]."""
    noise = -torch.empty_like(logit).exponential_().clamp(min=1e-20).log()
    soft = ((logit + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), logit.shape[-1]).float()
    return hard + (soft - soft.detach())


def multilinear(keep: Tensor, selection: Tensor) -> Tensor:
    """Weight of each selection under independent tiles: prod_t keep_t if kept else 1 - keep_t.

    keep [B, T] in [0, 1], selection [S, T] bool -> [B, S]; sums to 1 over all 2^T selections.
    """
    on = sent(selection, keep.device)[None]
    return torch.where(on, keep[:, None], 1 - keep[:, None]).prod(-1)
