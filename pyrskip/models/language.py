"""The small language model: a prefix decoder, trained from scratch, that writes answers of an open
vocabulary.

Axes: B batch, U distinct sets of N visual tokens, W question words, A answer tokens, K keys, D width, V
vocabulary.

A sequence is [visual tokens][question][<answer> a1 a2 ... <end>]. The prompt (visual tokens and question)
sees itself whole, the answer is causal. Words carry learned positions from fixed starts and visual tokens
carry their image coordinates, so that a row's result depends neither on how many tokens were skipped nor on
its batch mates.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from pyrskip.cost import Transformer
from pyrskip.errors import UserError, unknown_name
from pyrskip.models.attention import Sight, attention_shares
from pyrskip.models.block import Block, Cache, Layer, Room
from pyrskip.models.norm import RMSNorm
from pyrskip.models.reading import Replay, reading
from pyrskip.models.recorded import Recordings
from pyrskip.pruners import Narrowing
from pyrskip.transfer import sent
from pyrskip.words import encoded, read

PAD, ANSWER, END = 0, 1, 2
SPECIAL = ("<pad>", "<answer>", "<end>")
LANGUAGES = ("decoder", "cross")
REMEMBERED = 1 << 17
"""Questions, and answers, whose tokens are kept."""


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

    @cached_property
    def at(self) -> Tensor:
        """`of` where the tokens are."""
        return sent(self.of, self.tokens.device)

    @property
    def asked_whole(self) -> bool:
        """Whether the questions are known to have no padding."""
        return self.words is not None and bool(self.words.all())


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
        self.answer_ids_of: dict[str, list[int]] = {}
        self.recordings: Recordings[Replay] = Recordings()
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
            new = _unknown(texts, self.ids_of)
            for text, of in zip(new, encoded(new, self.tokenizer), strict=True):
                self.ids_of[text] = read(text, of, self.config.max_words) or [END]
            last = self.last_question = (key, *self._pad([self.ids_of[text] for text in texts]))
        return last[1], last[2]

    def tokenize_answers(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Answers as ids [B, A], each ended by <end>, and mask [B, A] bool."""
        cut = self.config.max_answer - 1
        new = _unknown(texts, self.answer_ids_of)
        for text, of in zip(new, self.tokenizer.encode_batch(new), strict=True):
            self.answer_ids_of[text] = [*of.ids[:cut], END]
        return self._pad([self.answer_ids_of[text] for text in texts])[0]

    def can_write(self, answer: str) -> bool:
        """Whether an answer fits, its end included."""
        return len(self.tokenizer.encode(answer).ids) < self.config.max_answer

    def _pad(self, ids: list[list[int]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(ids, mask) on the model's device, and the mask on the CPU."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        longest = int(lengths.max(initial=1))
        mask = np.arange(longest) < lengths[:, None]
        padded = np.full(mask.shape, PAD)
        padded[mask] = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        device, real = self.embed.weight.device, torch.from_numpy(mask)
        return (sent(torch.from_numpy(padded), device), sent(real, device)), real

    def logits(
        self, visual: Visual, weight: Tensor | None, question: tuple[Tensor, Tensor], answer: Tensor
    ) -> Tensor:
        """Teacher-forced logits [B, A, V] of the answer tokens.

        weight [B, N] in [0, 1] of each question's visual tokens, or None; question (ids, mask) [B, W]; answer
        [B, A].
        """
        x, real, whole = self.prompt(visual, question)
        start = torch.full_like(answer[:, :1], ANSWER)
        given = self._answer(torch.cat([start, answer[:, :-1]], dim=1), 0)
        x, sight = torch.cat([x, given], dim=1), Sight(real, given.shape[1], whole)
        return self._head(self._run(x, sight, visual, question[1], given.shape[1], weight)[0])

    @torch.no_grad()
    def generate(
        self,
        visual: Visual,
        question: tuple[Tensor, Tensor],
        mark: Callable[[str], None] = lambda phase: None,
    ) -> list[str]:
        """Greedy answers, decoded with a cache of keys and values. mark: called with 'prefill' when that is
        done."""
        answer = reading(self, self.recordings, visual, question)
        logits = answer.first()
        mark("prefill")
        written: list[Tensor] = []
        done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for step in range(self.config.max_answer):
            token = logits.argmax(-1)
            written.append(token.masked_fill(done, END))
            done = done | (token == END)
            if bool(done.all()) or step + 1 == self.config.max_answer:
                break
            logits = answer.next(token)
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
        x, real, whole = self.prompt(visual, question)
        x = torch.cat([x, self._answer(torch.full_like(question[0][:, :1], ANSWER), 0)], dim=1)
        x, keys, caches, layers = self._run(x, Sight(real, 1, whole), visual, question[1], 1, layers=layers)
        return self._head(x[:, -1]), keys, caches, layers

    def _run(
        self,
        x: Tensor,
        sight: Sight,
        visual: Visual,
        words: Tensor,
        wanted: int,
        weight: Tensor | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Cache], Sequence[Layer]]:
        """Run a prompt and what follows it [B, P + tail, D] through all layers: the last `wanted` positions,
        each layer's keys that the last position may see [B, K] and its cache, and the layers. words [B, W]:
        which of the question's are real."""
        depth, narrowing = len(self.blocks), visual.narrowing
        due = [*sorted(narrowing.steps if narrowing is not None else ()), depth]
        layers = self.layers(visual, weight, range(due[0])) if layers is None else layers
        keys, all_keys, caches = sight.keys, [], []
        for i in range(depth):
            watch: list[Tensor] | None = [] if i + 1 in due[:-1] else None
            x, cache = layers[i](x, sight, wanted=wanted if i + 1 == depth else None, watch=watch)
            all_keys.append(keys)
            caches.append(cache)
            if watch is not None:
                x, sight, visual = self._narrow(x, sight, visual, words, i + 1, watch)
                to_next = range(i + 1, due[due.index(i + 1) + 1])
                layers, keys = [*layers, *self.layers(visual, None, to_next)], sight.keys
        return x, all_keys, caches, layers

    def _narrow(
        self, x: Tensor, sight: Sight, visual: Visual, words: Tensor, run: int, watch: Sequence[Tensor]
    ) -> tuple[Tensor, Sight, Visual]:
        """What goes on when so many layers have run: x [B, Q, D] without the visual tokens that leave there,
        and those that stay."""
        narrowing, count = visual.narrowing, visual.tokens.shape[1]
        assert narrowing is not None
        last = narrowing.pruner.rows == "last"
        attention = self._attention(watch, visual, sight, words.shape[1], last)
        rows = torch.ones_like(words[:, :1]) if last else words
        left = narrowing.after(run, self._seen(x, visual), visual.real[visual.at], attention, rows)
        every = torch.arange(len(x))
        kept = Visual(left.tokens, left.real, every, words=visual.words, narrowing=left.next)
        return *self._without(x, sight, kept, count), kept

    def _attention(
        self, watch: Sequence[Tensor], visual: Visual, sight: Sight, words: int, last: bool
    ) -> Tensor:
        """Attention [B, R, N] on visual tokens, heads averaged, of the prompt's last token, or of so many
        words of the question."""
        (q, k), count = watch, visual.tokens.shape[1]
        text = text_rows(count, words, last)
        keys = slice(count + words + 1)  # no answer is a key of its prompt
        return attention_shares(q[:, :, text], k[:, :, keys], sight.mask[:, text, keys])[..., :count]

    def _seen(self, x: Tensor, visual: Visual) -> Tensor:
        """Visual tokens [B, N, D] as the next layer would read them."""
        return x[:, : visual.tokens.shape[1]]

    def _without(self, x: Tensor, sight: Sight, kept: Visual, count: int) -> tuple[Tensor, Sight]:
        """A sequence with these visual tokens instead of the `count` that it has, and what sees what in
        it."""
        real = torch.cat([kept.real, sight.real[:, count:]], dim=1)
        return torch.cat([kept.tokens, x[:, count:]], dim=1), Sight(real, sight.tail)

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
            x, cache = layer(x, Sight(real), past=past)
            longer.append(cache)
        return self._head(x[:, -1]), longer

    def prompt(self, visual: Visual, question: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, bool]:
        """Embedded prompt [B, P, D], which of its positions are keys [B, P] bool, and whether all of them are
        known to be."""
        x, mask = self.words(question)
        x = torch.cat([visual.tokens.index_select(0, visual.at), x], dim=1)
        return x, torch.cat([visual.real[visual.at], mask], dim=1), visual.whole and visual.asked_whole

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
        """Embeddings of unit variance, while the same matrix gives logits of unit variance."""
        embedded: Tensor = self.embed(ids) * self.width**0.5
        return embedded

    def _head(self, x: Tensor) -> Tensor:
        logits = F.linear(self.norm(x), self.embed.weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _unknown(texts: Sequence[str], known: dict[str, list[int]]) -> list[str]:
    """Those of the texts that are not known; where too many are, all are forgotten."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if len(known) + len(new) > REMEMBERED:
        known.clear()
        new = list(dict.fromkeys(texts))
    return new


def text_rows(start: int, words: int, last: bool) -> slice:
    """Where the last token of a prompt is, behind so many words, or those words are."""
    return slice(start + words, start + words + 1) if last else slice(start, start + words)
