"""An answer while it is written, a token at a time.

Axes: B batch, W question words, K keys, D width, V vocabulary.
"""

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.models.block import Cache
from pyrskip.models.recorded import Recording, Recordings, can_record

if TYPE_CHECKING:
    from pyrskip.models.language import Decoder, Visual


class Reading(Protocol):
    """`first` reads the prompt, `next` a token [B] of the answer; both give logits [B, V] of what follows."""

    def first(self) -> Tensor: ...

    def next(self, token: Tensor) -> Tensor: ...


class Launched:
    """A reading of any shape, kernel by kernel."""

    def __init__(self, language: "Decoder", visual: "Visual", question: tuple[Tensor, Tensor]) -> None:
        self.language, self.step = language, 0
        self.logits, self.keys, caches, self.layers = language.prefill(visual, question)
        self.rooms = [Growing(cache, language.config.max_answer - 1) for cache in caches]

    def first(self) -> Tensor:
        return self.logits

    def next(self, token: Tensor) -> Tensor:
        self.step += 1
        self.keys = [F.pad(of_layer, (0, 1), value=True) for of_layer in self.keys]
        step = torch.full((1,), self.step, device=token.device)
        return self.language.decode(token, step, self.keys, self.rooms, self.layers)[0]


class Growing:
    """Keys and values with room for `more` behind them: what is added is written there, and nothing is copied
    for it."""

    def __init__(self, cache: Cache, more: int) -> None:
        self.length = cache[0].shape[2]
        self.held = [F.pad(of, (0, 0, 0, more)) for of in cache]

    def extend(self, *new: Tensor) -> Cache:
        end = self.length + new[0].shape[2]
        for held, of in zip(self.held, new, strict=True):
            held[:, :, self.length : end] = of
        self.length = end
        keys, values = (held[:, :, :end] for held in self.held)
        return keys, values


class Slots:
    """Keys and values whose shape and place stay, for a recording: of the answer's tokens in front, hidden
    from who reads until they are written, then those of the prompt. at [1]: the slot that is written next."""

    def __init__(self, cache: Cache, slots: int, at: Tensor) -> None:
        self.held = [F.pad(of, (0, 0, slots, 0)) for of in cache]
        self.slots, self.at = slots, at

    def fill(self, cache: Cache) -> None:
        for held, of in zip(self.held, cache, strict=True):
            held[:, :, self.slots :].copy_(of)

    def extend(self, *new: Tensor) -> Cache:
        for held, of in zip(self.held, new, strict=True):
            held.index_copy_(2, self.at, of.to(held.dtype))
        keys, values = self.held
        return keys, values


class Replay:
    """A reading of one question without padding, of tokens [1, N, D] and ids [1, W], in recordings."""

    def __init__(
        self, language: "Decoder", recordings: "Recordings[Replay]", visual: "Visual", ids: Tensor
    ) -> None:
        self.tokens, self.ids = visual.tokens.clone(), ids.clone()
        own = type(visual)(
            self.tokens, visual.real.clone(), torch.zeros(1, dtype=torch.int64), True, words=visual.words
        )
        question = self.ids, torch.ones_like(self.ids, dtype=torch.bool)
        own.at  # noqa: B018 - it is copied here, since nothing may be copied from the CPU in a recording
        self.token, self.at = ids.new_zeros(1), ids.new_zeros(1)
        slots = language.config.max_answer - 1
        _, keys, caches, _ = language.prefill(own, question)
        self.keys = [F.pad(of, (slots, 0)) for of in keys]
        self.rooms = [Slots(cache, slots, self.at) for cache in caches]
        self.memories = [tuple(of.clone() for of in pair) for pair in language.memorise(self.tokens)]
        layers = language.layers_reading(self.memories)  # type: ignore[arg-type]

        def read() -> Tensor:
            memories = language.memorise(self.tokens)
            for held, new in zip(self.memories, memories, strict=True):
                for to, of in zip(held, new, strict=True):
                    to.copy_(of)
            logits, _, caches, _ = language.prefill(own, question, layers)
            for room, cache in zip(self.rooms, caches, strict=True):
                room.fill(cache)
            for key in self.keys:
                key[:, :slots] = False
            self.at.fill_(-1)
            return logits

        def write() -> Tensor:
            self.at.add_(1).clamp_(max=slots - 1)  # a recording is tried out before
            for key in self.keys:
                key.index_fill_(1, self.at, True)
            return language.decode(self.token, self.at + 1, self.keys, self.rooms, layers)[0]

        self.reads = Recording(read, recordings.pool)
        self.writes = Recording(write, recordings.pool)

    def first(self) -> Tensor:
        return self.reads.replay()

    def next(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        return self.writes.replay()


def reading(
    language: "Decoder", recordings: "Recordings[Replay]", visual: "Visual", question: tuple[Tensor, Tensor]
) -> Reading:
    """The reading of a prompt: a recorded one of a single question on a GPU, where its shape comes again."""
    plain = visual.narrowing is None and visual.whole and visual.asked_whole and not language.training
    if plain and can_record(question[0]) and can_record(visual.tokens):
        shape = visual.tokens.shape, question[0].shape, visual.tokens.dtype
        found = recordings.of(language, shape, lambda: Replay(language, recordings, visual, question[0]))
        if found is not None:
            found.tokens.copy_(visual.tokens)
            found.ids.copy_(question[0])
            return found
    return Launched(language, visual, question)
