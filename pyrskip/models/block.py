"""A layer of a prefix decoder, and the keys and values that it goes on from.

Axes: B batch, H heads, Q queries, K keys, N visual tokens, D width, d width of a head.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.models.attention import Sight, weighted_attention
from pyrskip.models.norm import RMSNorm

Cache = tuple[Tensor, Tensor]
"""Keys and values [B, H, K, d]."""


class Room(Protocol):
    """Keys and values that new ones are added to."""

    def extend(self, *new: Tensor) -> Cache:
        """new: keys and values [B, H, n, d] -> those that are read with them."""
        ...


class Layer(Protocol):
    """A layer of a decoder, bound to what it sees of the image."""

    def __call__(
        self,
        x: Tensor,
        sight: Sight,
        past: Cache | Room | None = None,
        wanted: int | None = None,
        watch: list[Tensor] | None = None,
    ) -> tuple[Tensor, Cache]: ...


class Block(nn.Module):
    """Pre-norm attention and SwiGLU. A key's weight multiplies the attention numerator, so that a gate of 0
    is a skipped token and a gate of 1 is plain attention, with gradients at both."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    @property
    def writers(self) -> tuple[nn.Linear, ...]:
        """What adds to the residual stream."""
        return (self.out, self.down)

    def forward(
        self,
        x: Tensor,
        sight: Sight,
        past: Cache | Room | None = None,
        wanted: int | None = None,
        watch: list[Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """x [B, Q, D] of the last positions of sight's, past keys and values or None; weight [B, N] in [0, 1]
        of the first N keys, or None (all 1).

        wanted: only so many last positions come out; the others are keys alone, which is all that the last
        layer needs. watch: gets the queries [B, H, Q, d] and keys [B, H, K, d] that read visual tokens.
        """
        x, cache = self.attend(x, sight, past, wanted, weight, watch)
        return self.mix(x), cache

    def attend(
        self,
        x: Tensor,
        sight: Sight,
        past: Cache | Room | None,
        wanted: int | None,
        weight: Tensor | None = None,
        watch: list[Tensor] | None = None,
    ) -> tuple[Tensor, Cache]:
        batch, queries, width = x.shape
        normal, heads = self.norm1(x), (self.heads, width // self.heads)
        kv = F.linear(normal, self.qkv.weight[width:]).view(batch, queries, 2, *heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        if wanted is not None:
            queries, x, normal = wanted, x[:, -wanted:], normal[:, -wanted:]
        q = F.linear(normal, self.qkv.weight[:width]).view(batch, queries, *heads).transpose(1, 2)
        if isinstance(past, tuple):
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        elif past is not None:
            k, v = past.extend(k, v)
        if watch is not None:
            watch += [q, k]
        if weight is None:
            mixed = sight.attend(q, k, v)
        else:
            weight = F.pad(weight, (0, k.shape[2] - weight.shape[1]), value=1.0)
            mixed = weighted_attention(q, k, v, sight.rows(queries), weight[:, None, None])
        return x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, queries, width))), (k, v)

    def mix(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.drop(self.down(F.silu(gate) * up))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
