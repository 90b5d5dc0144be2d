"""The small language model: a prefix decoder, trained from scratch, that writes answers of an open
vocabulary.

Axes: B batch, U distinct sets of N visual tokens, W question words, A answer tokens, K keys, D width, V
vocabulary.

A sequence is [visual tokens][question][<answer> a1 a2 ... <end>]. The prompt (visual tokens and question)
sees itself whole, the answer is causal. Words carry learned positions from fixed starts and visual tokens
carry their image coordinates, so that a row's result depends neither on how many tokens were skipped nor on
its batch mates.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyrskip.cost import Transformer
from pyrskip.errors import UserError, unknown_name
from pyrskip.models.norm import RMSNorm
from pyrskip.pruners import Narrowing
from pyrskip.words import encoded, read

PAD, ANSWER, END = 0, 1, 2
SPECIAL = ("<pad>", "<answer>", "<end>")
LANGUAGES = ("decoder", "cross")
REMEMBERED = 1 << 17
"""Questions whose tokens are kept."""
EXPLICIT = 1 << 26
"""Attention weights that may be in memory at once."""


@dataclass(frozen=True)
class LanguageConfig:
    """name: 'decoder' (visual tokens go through every layer, as the question does) or 'cross' (every layer
    reads them).

    max_words: tokens of a question, its options and its end where it has more. max_answer: tokens of an
    answer, its end included.

    vocabulary: most entries of the byte-level BPE, which is trained on the training split.
    """

    name: str = "decoder"
    layers: int = 3
    width: int = 96
    heads: int = 4
    mlp: int = 192
    max_words: int = 48
    max_answer: int = 16
    vocabulary: int = 2048
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in LANGUAGES:
            raise unknown_name("language.name", self.name, LANGUAGES)
        if min(self.max_words, self.vocabulary) < 1 or self.max_answer < 2 or not 0 <= self.dropout < 1:
            raise UserError(
                f"language.max_words={self.max_words}, vocabulary={self.vocabulary}, "
                f"max_answer={self.max_answer}, "
                f"dropout={self.dropout}: allowed: at least 1, 1 and 2, and [0, 1)"
            )
        if min(self.layers, self.width, self.heads, self.mlp) < 1 or self.width % self.heads:
            raise UserError(
                f"language.layers={self.layers}, language.width={self.width}, language.heads={self.heads}, "
                f"language.mlp={self.mlp}: allowed: at least 1 each, and heads that divide width"
            )

    def transformer(self, vocabulary: int) -> Transformer:
        """What it costs. Raises UserError where sizes do not fit."""
        cross = self.name == "cross"
        return Transformer(
            self.layers,
            self.width,
            self.heads,
            self.heads,
            self.mlp,
            gated=True,
            vocab=vocabulary,
            cross=cross,
            lean=True,
        )


@dataclass(frozen=True)
class Visual:
    """Visual tokens of questions, held once where several see the same: question b sees row of[b].

    tokens [U, N, D]; real [U, N] bool: the others are padding; of [B] int64, on the CPU. Where it is known
    without waiting for an accelerator, whole: that none are padding; words [B, W] bool, on the CPU: which
    positions of the questions are no padding. narrowing: what leaves some of the tokens out between layers,
    if anything.
    """

    tokens: Tensor
    real: Tensor
    of: Tensor
    whole: bool = False
    words: Tensor | None = None
    narrowing: Narrowing | None = None


Cache = tuple[Tensor, Tensor]
"""Keys and values [B, H, K, d]."""


class Room:
    """Keys and values with room for `more` behind them: what is added is written there, and nothing is copied
    for it."""

    def __init__(self, cache: Cache, more: int) -> None:
        self.length = cache[0].shape[2]
        self.held = [F.pad(of, (0, 0, 0, more)) for of in cache]

    def extend(self, *new: Tensor) -> Cache:
        """new: keys and values [B, H, n, d] -> all so far."""
        end = self.length + new[0].shape[2]
        for held, of in zip(self.held, new, strict=True):
            held[:, :, self.length : end] = of
        self.length = end
        keys, values = (held[:, :, :end] for held in self.held)
        return keys, values


class Layer(Protocol):
    """A layer of a decoder, bound to what it sees of the image."""

    def __call__(
        self,
        x: Tensor,
        allowed: Tensor,
        past: Cache | Room | None = None,
        wanted: int | None = None,
        watch: list[Tensor] | None = None,
    ) -> tuple[Tensor, Cache]: ...


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: any text can be written, known words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, 256 + len(SPECIAL)),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


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
        allowed: Tensor,
        past: Cache | Room | None = None,
        wanted: int | None = None,
        watch: list[Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """x [B, Q, D], allowed [B, Q, K] bool, past keys and values or None; weight [B, N] in [0, 1] of the
        first N keys, or None (all 1).

        wanted: only so many last positions come out; the others are keys alone, which is all that the last
        layer needs. watch: gets the queries [B, H, Q, d] and keys [B, H, K, d] that read visual tokens.
        """
        x, cache = self.attend(x, allowed, past, wanted, weight, watch)
        return self.mix(x), cache

    def attend(
        self,
        x: Tensor,
        allowed: Tensor,
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
            queries, x, normal, allowed = wanted, x[:, -wanted:], normal[:, -wanted:], allowed[:, -wanted:]
        q = F.linear(normal, self.qkv.weight[:width]).view(batch, queries, *heads).transpose(1, 2)
        if isinstance(past, Room):
            k, v = past.extend(k, v)
        elif past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if watch is not None:
            watch += [q, k]
        if weight is None:
            mixed = attention(q, k, v, allowed[:, None])
        else:
            weight = F.pad(weight, (0, k.shape[2] - weight.shape[1]), value=1.0)
            mixed = weighted_attention(q, k, v, allowed[:, None], weight[:, None, None])
        return x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, queries, width))), (k, v)

    def mix(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.drop(self.down(F.silu(gate) * up))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


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


class Decoder(nn.Module):
    """A prefix language model over visual tokens and text."""

    def __init__(self, config: LanguageConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.width = config.width
        vocabulary = tokenizer.get_vocab_size()
        self.embed = nn.Embedding(vocabulary, config.width)
        self.word_position = nn.Embedding(config.max_words, config.width)
        self.answer_position = nn.Embedding(config.max_answer, config.width)
        self.blocks = nn.ModuleList([self.build_block() for _ in range(config.layers)])
        self.norm = RMSNorm(config.width)
        self.ids_of: dict[str, list[int]] = {}
        self.last_question: tuple[object, tuple[Tensor, Tensor], Tensor] | None = None
        self._initialise()

    def build_block(self) -> Block:
        c = self.config
        return Block(c.width, c.heads, c.mlp, c.dropout)

    def _initialise(self) -> None:
        """Unit variance everywhere: with the usual 0.02 a model this narrow needs many times the steps to
        compare question and image at all."""
        nn.init.normal_(self.embed.weight, std=self.width**-0.5)
        for position in (self.word_position, self.answer_position):
            nn.init.normal_(position.weight, std=0.3)
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            for linear in block.writers:
                linear.weight.data /= (len(block.writers) * len(self.blocks)) ** 0.5

    @property
    def transformer(self) -> Transformer:
        return self.config.transformer(self.embed.num_embeddings)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Questions as ids [B, W] and mask [B, W] bool, on the model's device."""
        return self._question(texts)[0]

    def words_of(self, texts: Sequence[str]) -> Tensor:
        """The mask of `tokenize`, on the CPU."""
        return self._question(texts)[1]

    def _question(self, texts: Sequence[str]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Those asked last are remembered: a training step, or a rollout of many actions, asks the same ones
        several times."""
        # a tensor of inference mode is of no use to a training step
        key, last = (
            (tuple(texts), self.embed.weight.device, torch.is_inference_mode_enabled()),
            self.last_question,
        )
        if last is None or last[0] != key:
            new = [text for text in dict.fromkeys(texts) if text not in self.ids_of]
            if len(self.ids_of) + len(new) > REMEMBERED:
                self.ids_of.clear()
                new = list(dict.fromkeys(texts))
            for text, of in zip(new, encoded(new, self.tokenizer), strict=True):
                self.ids_of[text] = read(text, of, self.config.max_words) or [END]
            last = self.last_question = (key, *self._pad([self.ids_of[text] for text in texts]))
        return last[1], last[2]

    def tokenize_answers(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Answers as ids [B, A], each ended by <end>, and mask [B, A] bool."""
        cut = self.config.max_answer - 1
        return self._pad([[*e.ids[:cut], END] for e in self.tokenizer.encode_batch(list(texts))])[0]

    def can_write(self, answer: str) -> bool:
        """Whether an answer fits, its end included."""
        return len(self.tokenizer.encode(answer).ids) < self.config.max_answer

    def _pad(self, ids: list[list[int]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(ids, mask) on the model's device, and the mask on the CPU."""
        longest = max(map(len, ids), default=1)
        padded = torch.tensor([row + [PAD] * (longest - len(row)) for row in ids]).view(len(ids), longest)
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(longest) < lengths[:, None]
        device = self.embed.weight.device
        return (padded.to(device), mask.to(device)), mask

    def logits(
        self, visual: Visual, weight: Tensor | None, question: tuple[Tensor, Tensor], answer: Tensor
    ) -> Tensor:
        """Teacher-forced logits [B, A, V] of the answer tokens.

        weight [B, N] in [0, 1] of each question's visual tokens, or None; question (ids, mask) [B, W]; answer
        [B, A].
        """
        x, keys = self.prompt(visual, question)
        start = torch.full_like(answer[:, :1], ANSWER)
        given = self._answer(torch.cat([start, answer[:, :-1]], dim=1), 0)
        batch, prompt, length = x.shape[0], x.shape[1], given.shape[1]
        allowed = torch.zeros(batch, prompt + length, prompt + length, dtype=torch.bool, device=x.device)
        allowed[:, :, :prompt] = keys[:, None]
        allowed[:, prompt:, prompt:] = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        x = torch.cat([x, given], dim=1)
        return self._head(self._run(x, allowed, visual, question[1], length, weight)[0])

    @torch.no_grad()
    def generate(
        self,
        visual: Visual,
        question: tuple[Tensor, Tensor],
        mark: Callable[[str], None] = lambda phase: None,
    ) -> list[str]:
        """Greedy answers, decoded with a cache of keys and values. mark: called with 'prefill' when that is
        done."""
        logits, keys, read, layers = self.prefill(visual, question)
        mark("prefill")
        caches: Sequence[Cache | Room] = [Room(cache, self.config.max_answer - 1) for cache in read]
        written: list[Tensor] = []
        device = logits.device
        done = torch.zeros(len(logits), dtype=torch.bool, device=device)
        for step in range(self.config.max_answer):
            token = logits.argmax(-1)
            written.append(token.masked_fill(done, END))
            done = done | (token == END)
            if bool(done.all()) or step + 1 == self.config.max_answer:
                break
            keys = [F.pad(of_layer, (0, 1), value=True) for of_layer in keys]
            logits, _ = self.decode(token, torch.tensor([step + 1], device=device), keys, caches, layers)
        ids = torch.stack(written, dim=1).tolist()
        return [
            t.strip()
            for t in self.tokenizer.decode_batch(
                [row[: row.index(END)] if END in row else row for row in ids]
            )
        ]

    def prefill(
        self, visual: Visual, question: tuple[Tensor, Tensor], layers: Sequence[Layer] | None = None
    ) -> tuple[Tensor, list[Tensor], list[Cache], Sequence[Layer]]:
        """Read a prompt and <answer>: logits [B, V] of the first token, each layer's keys that are real [B,
        K] and its cache, and the layers to go on with. layers: by default those of these visual tokens."""
        x, keys = self.prompt(visual, question)
        x = torch.cat([x, self._answer(torch.full_like(question[0][:, :1], ANSWER), 0)], dim=1)
        keys = F.pad(keys, (0, 1), value=True)
        last = torch.arange(keys.shape[1], device=x.device) == keys.shape[1] - 1
        # the prompt does not see <answer>, the last key
        unseen = ~last[:, None] & last[None, :]
        allowed = keys[:, None] & ~unseen
        x, real, caches, layers = self._run(x, allowed, visual, question[1], 1, layers=layers)
        return self._head(x[:, -1]), real, caches, layers

    def _run(
        self,
        x: Tensor,
        allowed: Tensor,
        visual: Visual,
        words: Tensor,
        wanted: int,
        weight: Tensor | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Cache], Sequence[Layer]]:
        """Run a prompt [B, P, D] and what follows it through all layers: the last `wanted` positions, each
        layer's keys that the last position may see [B, K] and its cache, and the layers. words [B, W]: which
        of the question's are real."""
        depth, narrowing = len(self.blocks), visual.narrowing
        due = [*sorted(narrowing.steps if narrowing is not None else ()), depth]
        layers = self.layers(visual, weight, range(due[0])) if layers is None else layers
        real, caches = [], []
        for i in range(depth):
            watch: list[Tensor] | None = [] if i + 1 in due[:-1] else None
            x, cache = layers[i](x, allowed, wanted=wanted if i + 1 == depth else None, watch=watch)
            real.append(allowed[:, -1].contiguous())
            caches.append(cache)
            if watch is not None:
                x, allowed, visual = self._narrow(x, allowed, visual, words, i + 1, watch)
                to_next = range(i + 1, due[due.index(i + 1) + 1])
                layers = [*layers, *self.layers(visual, None, to_next)]
        return x, real, caches, layers

    def _narrow(
        self, x: Tensor, allowed: Tensor, visual: Visual, words: Tensor, run: int, watch: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Visual]:
        """What goes on when so many layers have run: x and allowed [B, Q, Q] without the visual tokens that
        leave there, and those that stay."""
        narrowing, count = visual.narrowing, visual.tokens.shape[1]
        assert narrowing is not None
        last = narrowing.pruner.rows == "last"
        attention = self._attention(watch, visual, allowed, words.shape[1], last)
        rows = torch.ones_like(words[:, :1]) if last else words
        real = visual.real[visual.of]
        left = narrowing.after(run, self._seen(x, visual), real, attention, rows)
        every = torch.arange(len(x))
        kept = Visual(left.tokens, left.real, every, words=visual.words, narrowing=left.next)
        return *self._without(x, allowed, kept, count), kept

    def _attention(
        self, watch: Sequence[Tensor], visual: Visual, allowed: Tensor, words: int, last: bool
    ) -> Tensor:
        """Attention [B, R, N] on visual tokens, heads averaged, of the prompt's last token, or of so many
        words of the question."""
        (q, k), count = watch, visual.tokens.shape[1]
        text = text_rows(count, words, last)
        keys = slice(count + words + 1)  # no answer is a key of its prompt
        return attention_shares(q[:, :, text], k[:, :, keys], allowed[:, text, keys])[..., :count]

    def _seen(self, x: Tensor, visual: Visual) -> Tensor:
        """Visual tokens [B, N, D] as the next layer would read them."""
        return x[:, : visual.tokens.shape[1]]

    def _without(self, x: Tensor, allowed: Tensor, kept: Visual, count: int) -> tuple[Tensor, Tensor]:
        """A sequence with these visual tokens instead of the `count` that it has, and what sees what in
        it."""
        x = torch.cat([kept.tokens, x[:, count:]], dim=1)
        # a visual token sees what the first one did
        seen = torch.cat([allowed[:, :1].expand(-1, kept.real.shape[1], -1), allowed[:, count:]], dim=1)
        visual = kept.real[:, None].expand(-1, x.shape[1], -1)
        return x, torch.cat([visual, seen[..., count:]], dim=2)

    def decode(
        self,
        token: Tensor,
        step: Tensor,
        keys: Sequence[Tensor],
        caches: Sequence[Cache | Room],
        layers: Sequence[Layer],
    ) -> tuple[Tensor, list[Cache]]:
        """Append a token [B], the answer's number `step` [1]: logits [B, V] of the next, and the longer
        caches; those with room are longer themselves. keys: of each layer [B, K]; layers of `prefill`."""
        x = self._embed(token[:, None]) + self.answer_position(step)
        longer = []
        for layer, past, real in zip(layers, caches, keys, strict=True):
            x, cache = layer(x, real[:, None], past=past)
            longer.append(cache)
        return self._head(x[:, -1]), longer

    def prompt(self, visual: Visual, question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Embedded prompt [B, P, D] and which of its positions are keys [B, P] bool."""
        x, mask = self.words(question)
        x = torch.cat([visual.tokens[visual.of], x], dim=1)
        return x, torch.cat([visual.real[visual.of], mask], dim=1)

    def layers(self, visual: Visual, weight: Tensor | None, which: range) -> Sequence[Layer]:
        """These layers for a prompt. weight [B, N] in [0, 1] of each question's visual tokens, or None."""
        return [partial(self.blocks[i], weight=weight) for i in which]

    def memorise(self, tokens: Tensor) -> list[Cache]:
        """What layers read of visual tokens [U, N, D] outside of the prompt: nothing."""
        return []

    def layers_reading(self, memories: Sequence[Cache]) -> Sequence[Layer]:
        """The layers for a prompt, each bound to its part of `memorise`, where every question has a row of
        visual tokens of its own, all real."""
        return list(self.blocks)

    def words(self, question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Question (ids, mask) [B, W] -> embedded with their positions [B, W, D], and the mask."""
        ids, mask = question
        return self._embed(ids) + self.word_position.weight[: ids.shape[1]], mask

    def _answer(self, ids: Tensor, start: int) -> Tensor:
        return self._embed(ids) + self.answer_position.weight[start : start + ids.shape[1]]

    def _embed(self, ids: Tensor) -> Tensor:
        """Of unit variance, while the same matrix gives logits of unit variance."""
        embedded: Tensor = self.embed(ids) * self.width**0.5
        return embedded

    def _head(self, x: Tensor) -> Tensor:
        logits = F.linear(self.norm(x), self.embed.weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def text_rows(start: int, words: int, last: bool) -> slice:
    """Where the last token of a prompt is, behind so many words, or those words are."""
    return slice(start + words, start + words + 1) if last else slice(start, start + words)
