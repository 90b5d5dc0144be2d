"""An answer while it is written, a token at a time.

Axes: B batch, W question words, K keys, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.models.block import Cache, Layer
from pyrskip.models.recorded import Recording, Recordings, can_record

if TYPE_CHECKING:
    from pyrskip.models.language import Decoder, Visual


class Reading(Protocol):
    """`first` reads the prompt, `next` a token [B] of the answer; both give logits [B, V] of what follows."""

    def first(self) -> Tensor: ...

    def next(self, token: Tensor) -> Tensor: ...


LAUNCHED = 2
"""Tokens of an answer before one is recorded; most answers have ended by then."""
FIT = 64
"""Attention reads a multiple of so many keys at its full speed."""


class Launched:
    """A reading of any shape, kernel by kernel; on a GPU the later tokens of long answers are recorded, for
    each launch takes longer than its kernel."""

    def __init__(self, language: "Decoder", visual: "Visual", question: tuple[Tensor, Tensor]) -> None:
        self.language, self.written = language, 0
        self.recording: Recording | None = None
        self.logits, keys, caches, self.layers = language.prefill(visual, question)
        kind = Growing if self.logits.device.type == "cpu" else Slots
        self.rooms: Growing | Slots = kind(keys, caches, language.config.max_answer - 1)

    def first(self) -> Tensor:
        return self.logits

    def next(self, token: Tensor) -> Tensor:
        self.written += 1
        if self.written <= LAUNCHED or token.device.type != "cuda":
            return self.rooms.write(self.language, token, self.layers)
        if self.recording is None:
            self.token = token.clone()
            # without a circle to this reading, whose keys and values would outlive it
            write = partial(self.rooms.write, self.language, self.token, self.layers)
            with self.language.recordings.half(self.language):
                self.recording = Recording(write, tries=0)
        self.token.copy_(token)
        return self.recording.replay()


class Growing:
    """What is read of a prompt and of its answer so far, on a CPU: every layer's keys that are real, and a
    place for keys and values with room for `more` behind them, so that nothing is copied for a new token."""

    def __init__(self, keys: Sequence[Tensor], caches: Sequence[Cache], more: int) -> None:
        self.step, self.keys = 0, list(keys)
        self.places = [GrowingPlace(cache, more) for cache in caches]

    def write(self, language: "Decoder", token: Tensor, layers: Sequence[Layer]) -> Tensor:
        self.step += 1
        self.keys = [F.pad(of_layer, (0, 1), value=True) for of_layer in self.keys]
        return language.decode(token, torch.tensor([self.step]), self.keys, self.places, layers)[0]


class GrowingPlace:
    """One layer's keys and values."""

    def __init__(self, cache: Cache, more: int) -> None:
        self.length = cache[0].shape[2]
        self.memory = [F.pad(of, (0, 0, 0, more)) for of in cache]

    def extend(self, *new: Tensor) -> Cache:
        end = self.length + new[0].shape[2]
        for room, of in zip(self.memory, new, strict=True):
            room[:, :, self.length : end] = of
        self.length = end
        keys, values = (room[:, :, :end] for room in self.memory)
        return keys, values


class Slots:
    """As Growing, where shapes must stay: on accelerators, which plan attention for every shape. Slots for
    the answer's tokens lie in front, and are no keys until they are written."""

    def __init__(self, keys: Sequence[Tensor], caches: Sequence[Cache], more: int) -> None:
        self.more = more
        self.slots = slots = more + -(keys[0].shape[1] + more) % FIT
        self.at = torch.full((1,), -1, device=keys[0].device)
        self.keys = [F.pad(of_layer, (slots, 0)) for of_layer in keys]
        self.places = [SlottedPlace(cache, slots, self.at) for cache in caches]

    def fill(self, caches: Sequence[Cache]) -> None:
        """Begin with another prompt of the same shape."""
        for place, cache in zip(self.places, caches, strict=True):
            for room, of in zip(place.memory, cache, strict=True):
                room[:, :, self.slots :].copy_(of)
        for of_layer in self.keys:
            of_layer[:, : self.slots] = False
        self.at.fill_(-1)

    def write(self, language: "Decoder", token: Tensor, layers: Sequence[Layer]) -> Tensor:
        self.at.add_(1).clamp_(max=self.more - 1)  # a recording is tried out before it is used
        for of_layer in self.keys:
            of_layer.index_fill_(1, self.at, True)
        return language.decode(token, self.at + 1, self.keys, self.places, layers)[0]


class SlottedPlace:
    """One layer's keys and values. at [1]: the slot that is written next."""

    def __init__(self, cache: Cache, slots: int, at: Tensor) -> None:
        self.memory, self.at = [F.pad(of, (0, 0, slots, 0)) for of in cache], at

    def extend(self, *new: Tensor) -> Cache:
        for room, of in zip(self.memory, new, strict=True):
            room.index_copy_(2, self.at, of.to(room.dtype))
        keys, values = self.memory
        return keys, values


class Replay:
    """A reading of one question without padding, of tokens [1, N, D] and ids [1, W], in recordings."""

    def __init__(
        self, language: "Decoder", recordings: "Recordings[Replay]", visual: "Visual", ids: Tensor
    ) -> None:
        self.tokens, self.ids = tokens, ids = visual.tokens.clone(), ids.clone()
        own = replace(visual, tokens=tokens, real=visual.real.clone())
        _ = own.at  # it is copied here, since nothing may be copied from the CPU in a recording
        question = ids, torch.ones_like(ids, dtype=torch.bool)
        _, keys, caches, _ = language.prefill(own, question)
        rooms = Slots(keys, caches, language.config.max_answer - 1)
        self.token = token = ids.new_zeros(1)
        memories = [(k.clone(), v.clone()) for k, v in language.memorise(tokens)]
        layers = language.layers_reading(memories)

        def read() -> Tensor:
            for room, new in zip(memories, language.memorise(tokens), strict=True):
                for to, of in zip(room, new, strict=True):
                    to.copy_(of)
            logits, _, caches, _ = language.prefill(own, question, layers)
            rooms.fill(caches)
            return logits

        def write() -> Tensor:
            return rooms.write(language, token, layers)

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
