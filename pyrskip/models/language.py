"""The small language model: a prefix decoder, trained from scratch, that writes answers of an open vocabulary.

Axes: B batch, N visual tokens, W question words, A answer tokens, K keys, D width, V vocabulary.

A sequence is [visual tokens][question][<answer> a1 a2 ... <end>]. The prompt (visual tokens and question) sees itself
whole, the answer is causal. Words carry learned positions from fixed starts and visual tokens carry their image
coordinates, so that a row's result depends neither on how many tokens were skipped nor on its batch mates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from pyrskip.cost import Transformer
from pyrskip.errors import UserError, choose

PAD, ANSWER, END = 0, 1, 2
SPECIAL = ("<pad>", "<answer>", "<end>")


@dataclass(frozen=True)
class LanguageConfig:
    """name: 'decoder'. max_words: questions are cut there. max_answer: tokens of an answer, its end included.

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
        if self.name != "decoder":
            raise choose("language.name", self.name, ("decoder",))
        if min(self.max_words, self.vocabulary) < 1 or self.max_answer < 2 or not 0 <= self.dropout < 1:
            raise UserError(
                f"language.max_words={self.max_words}, vocabulary={self.vocabulary}, max_answer={self.max_answer}, "
                f"dropout={self.dropout}: allowed: at least 1, 1 and 2, and [0, 1)"
            )
        if min(self.layers, self.width, self.heads, self.mlp) < 1 or self.width % self.heads:
            raise UserError(
                f"language.layers={self.layers}, language.width={self.width}, language.heads={self.heads}, "
                f"language.mlp={self.mlp}: allowed: at least 1 each, and heads that divide width"
            )

    def transformer(self, vocabulary: int) -> Transformer:
        """What it costs. Raises UserError where sizes do not fit."""
        return Transformer(self.layers, self.width, self.heads, self.heads, self.mlp, gated=True, vocab=vocabulary)


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
    """Pre-norm attention and SwiGLU. A key's weight multiplies the attention numerator, so that a gate of 0 is a skipped
    token and a gate of 1 is plain attention, with gradients at both."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(
        self,
        x: Tensor,
        allowed: Tensor,
        weight: Tensor | None = None,
        past: tuple[Tensor, Tensor] | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, Q, D], allowed [B, Q, K] bool, weight [B, K] in [0, 1] or None (all 1), past keys and values or None.

        wanted: only so many last positions come out; the others are keys alone, which is all that the last layer needs.
        """
        batch, queries, width = x.shape
        normal, heads = self.norm1(x), (self.heads, width // self.heads)
        kv = F.linear(normal, self.qkv.weight[width:]).view(batch, queries, 2, *heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        if wanted is not None:
            queries, x, normal, allowed = wanted, x[:, -wanted:], normal[:, -wanted:], allowed[:, -wanted:]
        q = F.linear(normal, self.qkv.weight[:width]).view(batch, queries, *heads).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if weight is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
        else:
            mixed = weighted_attention(q, k, v, allowed[:, None], weight[:, None, None])
        x = x + self._drop(self.out(mixed.transpose(1, 2).reshape(batch, queries, width)))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self._drop(self.down(F.silu(gate) * up)), (k, v)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, weight: Tensor) -> Tensor:
    """sum_j w_j exp(s_ij) v_j / sum_j w_j exp(s_ij), in float32: exact at w = 0 and w = 1 and differentiable at both.

    q [B, H, Q, d], k and v [B, H, K, d], allowed broadcast to [B, H, Q, K] bool, weight broadcast alike, in [0, 1].
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~allowed, float("-inf"))
        shift = scores.amax(-1, keepdim=True).detach().clamp(min=torch.finfo(scores.dtype).min)
        numerator = (scores - shift).exp() * weight.float()
        mixed: Tensor = (numerator @ v.float()) / numerator.sum(-1, keepdim=True).clamp(min=1e-30)
    return mixed.to(q.dtype)


class Decoder(nn.Module):
    """A prefix language model over visual tokens [B, N, D] and text."""

    def __init__(self, config: LanguageConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.width = config.width
        vocabulary = tokenizer.get_vocab_size()
        self.embed = nn.Embedding(vocabulary, config.width)
        self.word_position = nn.Embedding(config.max_words, config.width)
        self.answer_position = nn.Embedding(config.max_answer, config.width)
        blocks = [Block(config.width, config.heads, config.mlp, config.dropout) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(config.width)
        self._initialise(blocks)

    def _initialise(self, blocks: Sequence[Block]) -> None:
        """Unit variance everywhere: with the usual 0.02 a model this narrow needs many times the steps to compare question
        and image at all."""
        nn.init.normal_(self.embed.weight, std=self.width**-0.5)
        for position in (self.word_position, self.answer_position):
            nn.init.normal_(position.weight, std=0.3)
        for block in blocks:
            for linear in (block.qkv, block.gate_up, block.out, block.down):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            for linear in (block.out, block.down):
                linear.weight.data /= (2 * len(blocks)) ** 0.5

    @property
    def transformer(self) -> Transformer:
        return self.config.transformer(self.embed.num_embeddings)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Questions as ids [B, W] and mask [B, W] bool, on the model's device."""
        ids = [e.ids[: self.config.max_words] or [END] for e in self.tokenizer.encode_batch(list(texts))]
        return self._pad(ids)

    def tokenize_answers(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Answers as ids [B, A], each ended by <end>, and mask [B, A] bool."""
        cut = self.config.max_answer - 1
        return self._pad([[*e.ids[:cut], END] for e in self.tokenizer.encode_batch(list(texts))])

    def can_write(self, answer: str) -> bool:
        """Whether an answer fits, its end included."""
        return len(self.tokenizer.encode(answer).ids) < self.config.max_answer

    def _pad(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, ids), default=1)
        padded = torch.tensor([row + [PAD] * (longest - len(row)) for row in ids]).view(len(ids), longest)
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(longest) < lengths[:, None]
        device = self.embed.weight.device
        return padded.to(device), mask.to(device)

    def logits(
        self, visual: Tensor, visual_mask: Tensor, weight: Tensor | None, question: tuple[Tensor, Tensor], answer: Tensor
    ) -> Tensor:
        """Teacher-forced logits [B, A, V] of the answer tokens.

        visual [B, N, D], visual_mask [B, N] bool, weight [B, N] in [0, 1] or None, question (ids, mask), answer [B, A].
        """
        x, keys = self._prompt(visual, visual_mask, question)
        start = torch.full_like(answer[:, :1], ANSWER)
        asked = self._answer(torch.cat([start, answer[:, :-1]], dim=1), 0)
        batch, prompt, length = x.shape[0], x.shape[1], asked.shape[1]
        allowed = torch.zeros(batch, prompt + length, prompt + length, dtype=torch.bool, device=x.device)
        allowed[:, :, :prompt] = keys[:, None]
        allowed[:, prompt:, prompt:] = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if weight is not None:
            weight = F.pad(weight, (0, prompt + length - weight.shape[1]), value=1.0)
        x = torch.cat([x, asked], dim=1)
        for i, block in enumerate(self.blocks):
            x, _ = block(x, allowed, weight, wanted=length if i + 1 == len(self.blocks) else None)
        return self._head(x)

    @torch.no_grad()
    def generate(self, visual: Tensor, visual_mask: Tensor, question: tuple[Tensor, Tensor]) -> list[str]:
        """Greedy answers, decoded with a cache of keys and values."""
        logits, keys, caches = self.prefill(visual, visual_mask, question)
        written: list[Tensor] = []
        done = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        for step in range(self.config.max_answer):
            token = logits.argmax(-1)
            written.append(token.masked_fill(done, END))
            done = done | (token == END)
            if bool(done.all()) or step + 1 == self.config.max_answer:
                break
            keys = F.pad(keys, (0, 1), value=True)
            logits, caches = self.decode(token, torch.tensor([step + 1], device=keys.device), keys, caches)
        ids = torch.stack(written, dim=1).tolist()
        return [t.strip() for t in self.tokenizer.decode_batch([row[: row.index(END)] if END in row else row for row in ids])]

    def prefill(
        self, visual: Tensor, visual_mask: Tensor, question: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Read a prompt and <answer>: logits [B, V] of the first token, keys that are real [B, K], and each layer's cache."""
        x, keys = self._prompt(visual, visual_mask, question)
        x = torch.cat([x, self._answer(torch.full_like(question[0][:, :1], ANSWER), 0)], dim=1)
        keys = F.pad(keys, (0, 1), value=True)
        last = torch.arange(keys.shape[1], device=x.device) == keys.shape[1] - 1
        # the prompt does not see <answer>, the last key
        unseen = ~last[:, None] & last[None, :]
        allowed = keys[:, None] & ~unseen
        caches = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, allowed, wanted=1 if i + 1 == len(self.blocks) else None)
            caches.append(cache)
        return self._head(x[:, -1]), keys, caches

    def decode(
        self, token: Tensor, step: Tensor, keys: Tensor, caches: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Append a token [B], the answer's number `step` [1]: logits [B, V] of the next, and the longer caches. keys [B, K]."""
        x = self._embed(token[:, None]) + self.answer_position(step)
        longer = []
        for block, past in zip(self.blocks, caches, strict=True):
            x, cache = block(x, keys[:, None], past=past)
            longer.append(cache)
        return self._head(x[:, -1]), longer

    def _prompt(self, visual: Tensor, visual_mask: Tensor, question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids, mask = question
        words = self._embed(ids) + self.word_position.weight[: ids.shape[1]]
        return torch.cat([visual, words], dim=1), torch.cat([visual_mask, mask], dim=1)

    def _answer(self, ids: Tensor, start: int) -> Tensor:
        return self._embed(ids) + self.answer_position.weight[start : start + ids.shape[1]]

    def _embed(self, ids: Tensor) -> Tensor:
        """Of unit variance, while the same matrix gives logits of unit variance."""
        embedded: Tensor = self.embed(ids) * self.width**0.5
        return embedded

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embed.weight).float()
