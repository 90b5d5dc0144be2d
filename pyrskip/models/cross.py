"""A small language model that reads visual tokens by cross-attention: they are keys and values alone, and no
layer updates them (Flamingo, arXiv:2204.14198; Llama 3.2 Vision).

Axes: U distinct sets of visual tokens, B questions, N visual tokens, Q text positions, K keys, D width, H
heads.

Next to the prefix decoder a visual token costs its keys and values, not every layer's whole work, and
questions that look at the same tokens of one image share them. That makes pyramids of over a thousand tokens
readable on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.models.attention import Sight, attention, attention_shares, weighted_attention
from pyrskip.models.block import Block, Cache, Layer, Room
from pyrskip.models.language import Decoder, Visual, text_rows
from pyrskip.models.norm import RMSNorm
from pyrskip.transfer import sent_together

NOISE = 0.1
"""Share of the usual random weights that is added where reading starts as the identity."""


@dataclass(frozen=True)
class Groups:
    """Text positions in rows of those that read the same visual tokens, so that a row's attention is one
    matrix product.

    place [P] int64: of position p, its row times `slots` and its number in that row; rows, slots: how many
    there are.
    """

    place: Tensor
    rows: int
    slots: int

    @classmethod
    def of(cls, row: Tensor, rows: int) -> "Groups":
        order = row.argsort(stable=True)
        count = torch.bincount(row, minlength=rows)
        first = count.cumsum(0) - count
        slot = torch.empty_like(row)
        slot[order] = torch.arange(len(row), device=row.device) - first[row[order]]
        slots = int(count.max()) if len(row) else 0
        return cls(row * slots + slot, rows, slots)

    def gather(self, x: Tensor) -> Tensor:
        """[P, D] -> [U, slots, D], zeros where a row has fewer positions."""
        out = x.new_zeros(self.rows * self.slots, x.shape[-1])
        return out.index_copy(0, self.place, x).view(self.rows, self.slots, -1)

    def scatter(self, x: Tensor) -> Tensor:
        """[U, slots, D] -> [P, D]."""
        return x.flatten(0, 1).index_select(0, self.place)


@dataclass(frozen=True)
class Memory:
    """What the text may read. visual: question b reads row of[b]; weight [B, N] in [0, 1] or None: of its
    tokens."""

    visual: Visual
    weight: Tensor | None = None
    found: dict[tuple[int, int], "Readers"] = field(default_factory=dict)

    def readers(self, positions: int, queries: int) -> "Readers":
        """Those of the text's last `queries` positions that are no padding: the same for every layer and
        every token of the answer."""
        of, words = self.visual.of, self.visual.words
        words = torch.ones(len(of), 0, dtype=torch.bool) if words is None else words
        key = min(positions, words.shape[1] + queries), queries
        if key not in self.found:
            reads = F.pad(words, (0, positions - words.shape[1]), value=True)[:, -queries:]
            place = reads.flatten().nonzero().squeeze(1)
            question = place // queries
            device = self.visual.tokens.device
            groups = Groups.of(of[question], len(self.visual.real))
            place, question, own = sent_together([place, question, groups.place], device)
            self.found[key] = Readers(place, question, replace(groups, place=own))
        return self.found[key]


@dataclass(frozen=True)
class Readers:
    """Positions of the text that read. place [P] int64: of question * queries + position; question [P]."""

    place: Tensor
    question: Tensor
    groups: Groups


class CrossBlock(Block):
    """A decoder block over the text that reads between attention and MLP, with a learned key for "nothing of
    this"."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__(width, heads, mlp, dropout)
        self.norm3 = RMSNorm(width)
        self.read_query = nn.Linear(width, width, bias=False)
        self.read_kv = nn.Linear(width, 2 * width, bias=False)
        self.read_out = nn.Linear(width, width, bias=False)
        # what text without an image reads; and how much attention falls to it tells how many tokens fit
        self.nothing = nn.Parameter(torch.stack([torch.randn(width), torch.zeros(width)]))

    @property
    def writers(self) -> tuple[nn.Linear, ...]:
        return (*super().writers, self.read_out)

    def memorise(self, tokens: Tensor) -> Cache:
        """tokens [U, N, D] -> keys and values [U, H, 1 + N, d], the learned one first."""
        kv = self.read_kv(tokens).unflatten(-1, (2, -1))
        kv = torch.cat([self.nothing.expand(kv.shape[0], 1, -1, -1).to(kv.dtype), kv], dim=1)
        k, v = kv.unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        sight: Sight,
        past: Cache | Room | None = None,
        wanted: int | None = None,
        watch: list[Tensor] | None = None,
        *,
        kv: Cache,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Cache]:
        """kv of `memorise`; memory: who reads which row of it, None where every question reads its own."""
        x, cache = self.attend(x, sight, past, wanted)
        if memory is None:
            read = self.read_own(x, kv)
        else:
            read = self.read_shared(x, sight.positions, memory, kv, watch)
        return self.mix(x + self.drop(read)), cache

    def read_own(self, x: Tensor, kv: Cache) -> Tensor:
        """x [B, Q, D], kv of B rows that are all real -> [B, Q, D]. Padding reads too, which nobody sees: no
        shape depends on data, so that it can be traced."""
        q = self._heads(self.read_query(self.norm3(x)))
        read: Tensor = self.read_out(attention(q, *kv, None).transpose(1, 2).flatten(2))
        return read

    def read_shared(
        self, x: Tensor, positions: int, memory: Memory, kv: Cache, watch: list[Tensor] | None = None
    ) -> Tensor:
        """x [B, Q, D] of the last of so many positions -> [B, Q, D], zeros in padding. What several questions
        see is held once, and padding reads nothing."""
        readers = memory.readers(positions, x.shape[1])
        query = self.read_query(self.norm3(x.flatten(0, 1).index_select(0, readers.place)))
        out = torch.zeros_like(x).flatten(0, 1)
        if watch is not None:
            put = out.index_copy(0, readers.place, query.to(x.dtype)).view_as(x)
            watch += [self._heads(put), kv[0]]
        read = self._read_positions(query, readers, memory, kv)
        return out.index_copy(0, readers.place, read.to(x.dtype)).view_as(x)

    def _read_positions(self, query: Tensor, readers: Readers, memory: Memory, kv: Cache) -> Tensor:
        """Queries [P, D] of positions -> what they read [P, D]."""
        groups = readers.groups
        q = self._heads(groups.gather(query))
        real = F.pad(memory.visual.real, (1, 0), value=True)[:, None, None]
        if memory.weight is None:
            mixed = attention(q, *kv, None if memory.visual.whole else real)
        else:
            weight = groups.gather(F.pad(memory.weight, (1, 0), value=1.0)[readers.question])[:, None]
            mixed = weighted_attention(q, *kv, real, weight)
        read: Tensor = self.read_out(groups.scatter(mixed.transpose(1, 2).flatten(2)))
        return read

    def _heads(self, q: Tensor) -> Tensor:
        return q.reshape(*q.shape[:2], self.heads, -1).transpose(1, 2)


class CrossDecoder(Decoder):
    """A language model over text that reads visual tokens."""

    def build_block(self) -> Block:
        c = self.config
        return CrossBlock(c.width, c.heads, c.mlp, c.dropout)

    def _initialise(self) -> None:
        """As the decoder's, but reading starts near the identity: a token that has come to name a thing, in
        the matrix that embeds words and writes answers alike, is then found by that name, and a word reads
        what the token says."""
        super()._initialise()
        same = torch.eye(self.width)
        for block in self.blocks:
            assert isinstance(block, CrossBlock)
            share = (len(block.writers) * len(self.blocks)) ** -0.5
            for linear, start in (
                (block.read_query, same),
                (block.read_kv, same.repeat(2, 1)),
                (block.read_out, same * share),
            ):
                linear.weight.data.mul_(NOISE).add_(start)

    def prompt(self, visual: Visual, question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, bool]:
        return *self.words(question), visual.asked_whole

    def layers(self, visual: Visual, weight: Tensor | None, which: range) -> Sequence[Layer]:
        blocks, memory = self.blocks[which.start : which.stop], Memory(visual, weight)
        memories = [block.memorise(visual.tokens) for block in blocks if isinstance(block, CrossBlock)]
        return [partial(block, kv=kv, memory=memory) for block, kv in zip(blocks, memories, strict=True)]

    def _attention(
        self, watch: Sequence[Tensor], visual: Visual, sight: Sight, words: int, last: bool
    ) -> Tensor:
        (q, k), real = watch, F.pad(visual.real[visual.at], (1, 0), value=True)
        return attention_shares(q[:, :, text_rows(0, words, last)], k[visual.at], real[:, None])[..., 1:]

    def _seen(self, x: Tensor, visual: Visual) -> Tensor:
        return visual.tokens.index_select(0, visual.at)

    def _without(self, x: Tensor, sight: Sight, kept: Visual, count: int) -> tuple[Tensor, Sight]:
        return x, sight  # they are no part of it

    def memorise(self, tokens: Tensor) -> list[Cache]:
        """Keys and values [U, H, 1 + N, d] of visual tokens [U, N, D], for each layer."""
        return [block.memorise(tokens) for block in self.blocks if isinstance(block, CrossBlock)]

    def layers_reading(self, memories: Sequence[Cache]) -> Sequence[Layer]:
        return [partial(block, kv=kv) for block, kv in zip(self.blocks, memories, strict=True)]
