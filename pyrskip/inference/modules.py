"""The parts of a model and its gate, one torch module a graph: what an export traces and what backend='torch'
runs.

Axes: B questions, W words, Q query width, U tiles, C channels, h x w cells, T tiles, S actions, N visual
tokens, D width, K keys, V vocabulary, L layers, H heads.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyrskip.gates.gate import Gate
from pyrskip.models.language import Cache, Decoder, Visual
from pyrskip.models.native import NativeModel
from pyrskip.models.projector import Projector
from pyrskip.models.vision import VisionEncoder
from pyrskip.observation import Observation
from pyrskip.signals import Signal
from pyrskip.signals.query import Query


class SignalPart(nn.Module):
    """A signal that is computed from a source that the service has."""

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        self.signal = signal

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, W] int64, mask [B, W] bool -> query [B, W, Q]."""
        return cast(Tensor, self.signal(ids, mask)[0])


class GatePart(nn.Module):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(
        self,
        query: Tensor,
        query_mask: Tensor,
        glance: Tensor,
        glance_mask: Tensor,
        capacity: Tensor,
        cost: Tensor,
        price: Tensor,
    ) -> Tensor:
        """An Observation's members -> raw outputs, [B, T] or [B, S]."""
        signals = {"query": query, "query_mask": query_mask, "glance": glance, "glance_mask": glance_mask}
        return cast(Tensor, self.gate(Observation(signals, capacity, cost, price)))


class VisionPart(nn.Module):
    def __init__(self, vision: VisionEncoder) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [U, 3, rows, columns] in 0..1, multiples of the stride -> [U, C, h, w]."""
        return self.vision.features(pixels)


class ProjectorPart(nn.Module):
    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor, centre: Tensor, extent: Tensor, level: Tensor) -> Tensor:
        """features [B, N, C], centre and extent [B, N, 2] on the image, level [N] int64 -> tokens [B, N,
        D]."""
        return cast(Tensor, self.projector(features, centre, extent, level))


class PrefillPart(nn.Module):
    def __init__(self, language: Decoder) -> None:
        super().__init__()
        self.language = language

    def forward(self, visual: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """visual [B, N, D], all of them real; ids, mask [B, W] -> logits [B, V] and the STATE."""
        own = Visual(visual, torch.ones_like(visual[..., 0], dtype=torch.bool), torch.arange(visual.shape[0]))
        memories = self.language.memorise(visual)
        layers = self.language.layers_reading(memories)
        logits, real, caches, _ = self.language.prefill(own, (ids, mask), layers)
        return logits, real, *_stacked(caches), *_stacked(memories)


class DecodePart(nn.Module):
    def __init__(self, language: Decoder) -> None:
        super().__init__()
        self.language = language

    def forward(
        self,
        token: Tensor,
        step: Tensor,
        real: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_keys: Tensor | None = None,
        memory_values: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """token [B], its number in the answer [1] and the STATE -> logits [B, V] of the next token and the
        STATE's first three, one key longer."""
        memories: list[Cache] = []
        if memory_keys is not None and memory_values is not None:
            memories = list(zip(memory_keys, memory_values, strict=True))
        layers = self.language.layers_reading(memories)
        real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        caches = list(zip(keys, values, strict=True))
        logits, caches = self.language.decode(token, step, real, caches, layers)
        return logits, real, *_stacked(caches)


def _stacked(caches: Sequence[Cache]) -> tuple[Tensor, ...]:
    """Keys and values of all layers [L, ...]; nothing where there are no layers."""
    return tuple(torch.stack(part) for part in zip(*caches, strict=True))


def parts_of(model: NativeModel, gate: Gate) -> dict[str, nn.Module]:
    """Graph name -> module, in evaluation mode."""
    parts: dict[str, nn.Module] = {
        "query": SignalPart(Query(model)),
        "gate": GatePart(gate),
        "vision": VisionPart(model.vision),
        "projector": ProjectorPart(model.projector),
        "prefill": PrefillPart(model.language),
        "decode": DecodePart(model.language),
    }
    return {name: part.eval() for name, part in parts.items()}
