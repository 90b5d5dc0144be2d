"""Attention of a prefix language model.

Axes: B batch, H heads, Q queries, K keys, P positions of a prompt, d width of a head.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EXPLICIT = 1 << 26
"""Attention weights that may be in memory at once."""


@dataclass(frozen=True)
class Sight:
    """What positions of a sequence see: a prompt, whose positions see what is real of it, and `tail`
    positions behind it, each of which sees that too, those before it and itself.

    real [B, P] bool; whole: that all of it is, where that is known.
    """

    real: Tensor
    tail: int = 0
    whole: bool = False

    @property
    def positions(self) -> int:
        return self.real.shape[1] + self.tail

    @property
    def keys(self) -> Tensor:
        """What the last position sees, [B, P + tail] bool."""
        return F.pad(self.real, (0, self.tail), value=True)

    @cached_property
    def mask(self) -> Tensor:
        """[B, P + tail, P + tail] bool; [B, 1, P] without a tail."""
        if not self.tail:
            return self.real[:, None]
        number = torch.arange(self.positions, device=self.real.device)
        prompt = self.real.shape[1]
        return self.keys[:, None] & ((number < prompt) | (number[:, None] >= number))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, Q, d] of the last positions, k and v [B, H, P + tail, d] -> [B, H, Q, d].

        On a CPU at once. Elsewhere the prompt and its tail apart, so that no [P, P] mask is made, nor any
        where nothing is padding: kernels without one are several times as fast.
        """
        of_prompt, prompt = q.shape[2] - self.tail, self.real.shape[1]
        if q.device.type == "cpu" or not self.tail:
            return attention(q, k, v, None if self.whole and not self.tail else self.rows(q.shape[2]))
        parts = [attention(q[:, :, of_prompt:], k, v, self._tail_rows)]
        if of_prompt:
            real = None if self.whole else self.real[:, None, None]
            parts.insert(0, attention(q[:, :, :of_prompt], k[:, :, :prompt], v[:, :, :prompt], real))
        return torch.cat(parts, dim=2)

    def rows(self, queries: int) -> Tensor:
        """`mask` of so many last positions, for all heads: [B, 1, queries or 1, K]."""
        return self.mask[:, None, -queries:]

    @cached_property
    def _tail_rows(self) -> Tensor | None:
        if self.tail == 1:
            return None if self.whole else self.keys[:, None, None]
        number = torch.arange(self.positions, device=self.real.device)
        behind = number[-self.tail :, None] >= number
        return self.keys[:, None, None] & behind


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """torch's scaled_dot_product_attention, but for half precision on a CPU, where its fused kernel takes
    several times as long as two matrix products.

    q [B, H, Q, d], k and v [B, H, K, d], allowed broadcast to [B, H, Q, K] bool; None: all. Of a query that
    is allowed nothing, anything finite comes back.
    """
    if (
        q.device.type != "cpu"
        or q.dtype == torch.float32
        or q.numel() // q.shape[-1] * k.shape[-2] > EXPLICIT
    ):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    mixed: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return mixed


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, weight: Tensor) -> Tensor:
    """sum_j w_j exp(s_ij) v_j / sum_j w_j exp(s_ij), in float32 at least: exact at w = 0 and w = 1 and
    differentiable at both.

    q [B, H, Q, d], k and v [B, H, K, d], allowed broadcast to [B, H, Q, K] bool, weight broadcast alike, in
    [0, 1]. Queries whose allowed keys all have weight 0 return an arbitrary finite value.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)
        shares: Tensor = WeightedSoftmax.apply(scores, weight.to(dtype).masked_fill(~allowed, 0))
        mixed = shares @ v.to(dtype)
    return mixed.to(q.dtype)


def attention_shares(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    """What each query attends to, heads averaged, [B, Q, K] in float32. q [B, H, Q, d], k [B, H, K, d],
    allowed broadcast to [B, Q, K] bool."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    shares: Tensor = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min).softmax(-1).mean(1)
    return shares


class WeightedSoftmax(torch.autograd.Function):
    """w_j exp(s_j) / sum_k w_k exp(s_k) over the last axis: softmax(s + ln w), with a gradient at w = 0 too.

    scores [B, H, Q, K], weight [B, 1, Q or 1, K] in [0, 1].

    A weight's gradient holds exp(s_j) / sum_k w_k exp(s_k), which at w_j = 0 has no bound: it is cut at the
    square root of the largest number, so that what is summed of it stays finite.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor) -> Tensor:
        bias = weight.log()
        biased = scores + bias.masked_fill(bias.amax(-1, keepdim=True).isneginf(), 0)
        shares = biased.softmax(-1)
        largest, key = shares.max(-1, keepdim=True)
        log_sum = biased.gather(-1, key) - largest.log()
        ctx.save_for_backward(scores, weight, shares, log_sum)
        return shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        scores, weight, shares, log_sum = ctx.saved_tensors
        toward = grad - (grad * shares).sum(-1, keepdim=True)
        limit = math.log(torch.finfo(scores.dtype).max) / 2
        slope = (scores - log_sum).clamp_(max=limit).exp_().mul_(toward)
        return toward.mul_(shares), slope.sum_to_size(weight.shape)
