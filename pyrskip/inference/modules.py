"""The parts of a model and its gate, or of a gate alone, one torch module a graph: what an export traces and
what backend='torch' runs.

Axes: B questions, W words, U tiles, C channels, h x w cells, T tiles, S actions, N visual tokens, D width,
K keys, V vocabulary, L layers, H heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pyrskip.decision import Candidates, realise
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import FIXED, signal_graph
from pyrskip.inference.outside import Outside
from pyrskip.models.block import Cache
from pyrskip.models.language import Decoder, Visual
from pyrskip.models.native import NativeModel
from pyrskip.models.projector import Projector
from pyrskip.models.text import MiniLmText
from pyrskip.models.tiers import GatedModel
from pyrskip.models.vision import VisionEncoder
from pyrskip.observation import Observation
from pyrskip.policies import Policy
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.pyramid import Pyramid
from pyrskip.signals import Signal, signals_of


class SignalPart(nn.Module):
    def __init__(self, signal: Signal) -> None:
        super().__init__()
        self.signal = signal

    def forward(self, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The source's tensors [B, ...] -> the signal's."""
        made = self.signal(value) if mask is None else self.signal(value, mask)
        # what a graph returns as it came would lose its name
        return tuple(tensor.clone() for tensor in made)


class GatePart(nn.Module):
    """The gate, its policy and what decisions cost. unit: FLOPs of relative cost 1."""

    def __init__(self, model: NativeModel, gate: Gate, unit: float) -> None:
        super().__init__()
        self.gate, self.unit, self.flops_of = gate, unit, model.flops_of
        # whether the list is complete is found out here: in a trace it would seem to depend on data
        self.complete = gate.layout.actions.complete

    def forward(
        self,
        signals: dict[str, Tensor],
        cells: Tensor,
        encode: Tensor,
        words: Tensor,
        price: Tensor,
        max_tokens: Tensor,
    ) -> tuple[Tensor, ...]:
        """signals: name -> [B, ...]; cells [B, T, 2] of each tile's map; encode [B, T] float64: FLOPs of
        encoding it; words [B]: tokens of the prompt; price [B]; max_tokens [B].

        -> the gate's raw outputs [B, ...] and, of the mode: tokens asked [B, T], rows and columns that maps
        are pooled to [B, T, 2], FLOPs of the answer [B] float64, probability [B].
        """
        layout = self.gate.layout
        capacity = cells.prod(-1)
        candidates = Candidates(layout.actions.tokens(capacity, layout.budget))
        realised = realise(candidates.tokens, cells[:, None]).prod(-1)
        cost = (self.flops_of(realised, encode, words) / self.unit).float()
        seen = Observation(signals, capacity, cost, price, candidates=candidates)
        outputs = self.gate(seen)
        policy = self.gate.policy(seen, outputs)
        decision = policy.mode(max_tokens)
        pooled = realise(decision.tokens, cells)
        flops = self.flops_of(pooled.prod(-1), encode, words)
        # a sum of float32 may be a little over 1
        probability = policy.log_prob(decision).exp().clamp(max=1)
        return outputs, decision.tokens, pooled, flops, probability


class FixedPart(nn.Module):
    """Listed actions, played without a gate, and what they cost."""

    def __init__(self, model: NativeModel, gate: Gate) -> None:
        super().__init__()
        self.layout, self.flops_of = gate.layout, model.flops_of

    def forward(self, action: Tensor, cells: Tensor, encode: Tensor, words: Tensor) -> tuple[Tensor, ...]:
        """action [B]: its number; cells, encode, words: as GatePart's -> tokens asked [B, T], rows and
        columns that maps are pooled to [B, T, 2], FLOPs of the answer [B] float64."""
        tokens = self.layout.actions.tokens(cells.prod(-1), self.layout.budget)
        asked = tokens.gather(1, action[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)
        pooled = realise(asked, cells)
        return asked, pooled, self.flops_of(pooled.prod(-1), encode, words)


@dataclass(frozen=True)
class Sight:
    """What the gate of a served model looks through, without the model: enough for its signals."""

    sources: ClassVar[frozenset[str]] = frozenset({"question", "glance", "pixels"})
    pyramid: Pyramid
    vision: VisionEncoder
    text: MiniLmText


class GateAlonePart(nn.Module):
    """The gate, its policy and what decisions cost a model that gives every tile its own number of tokens."""

    def __init__(self, gate: Gate, outside: Outside, unit: float) -> None:
        super().__init__()
        self.gate, self.context, self.cross, self.unit = gate, outside.context, outside.cross, unit
        self.complete = gate.layout.actions.complete  # as in GatePart

    def forward(
        self,
        signals: dict[str, Tensor],
        cells: Tensor,
        tokens: Tensor,
        places: Tensor,
        encode: Tensor,
        words: Tensor,
        price: Tensor,
        max_tokens: Tensor,
        lone: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """tokens [B, T] int64 that each tile gives where it is kept; places [B, T] int64: tokens of the
        prompt that its picture takes; the rest as GatePart's. lone [B, 3] float64: tokens, places and FLOPs
        of the glance where nothing is beside it; None of a model to which it is then the same.

        -> the gate's raw outputs [B, ...] and, of the mode: which tiles are kept [B, T] bool, FLOPs of the
        answer [B] float64, probability [B].
        """
        layout = self.gate.layout
        capacity = cells.prod(-1)
        candidates = Candidates(layout.actions.tokens(capacity, layout.budget))
        cost = (
            self._flops(
                candidates.tokens > 0,
                places[:, None],
                encode[:, None],
                words[:, None],
                None if lone is None else lone[:, None],
            )
        ) / self.unit
        seen = Observation(signals, capacity, cost.float(), price, candidates=candidates)
        outputs = self.gate(seen)
        policy = counting(self.gate, seen, outputs, tokens, None if lone is None else lone[:, 0].long())
        decision = policy.mode(max_tokens)
        keep = decision.selection
        probability = policy.log_prob(decision).exp().clamp(max=1)
        return outputs, keep, self._flops(keep, places, encode, words, lone), probability

    def _flops(
        self, keep: Tensor, places: Tensor, encode: Tensor, words: Tensor, lone: Tensor | None
    ) -> Tensor:
        """[..., T] -> [...] float64: Outside.flops, of tiles that are no padding where they are kept."""
        a, b, c = self.context
        # onnxruntime sums int64 as floats, which may be too short for FLOPs but not for tokens
        visual, encoding = (keep * places).sum(-1).double(), (keep * encode).sum(-1)
        if lone is not None:
            alone = keep.sum(-1) == 1
            visual = torch.where(alone, lone[..., 1], visual)
            encoding = torch.where(alone, lone[..., 2], encoding)
        n = visual + words.double()
        flops = a + b * n + c * n * n + encoding
        if self.cross is None:
            return flops
        layers, picture, answer = self.cross
        k = keep.sum(-1).double()
        return flops + (layers * (k > 0) + picture * k) * (n + answer)


def counting(
    gate: Gate, seen: Observation, outputs: Tensor, tokens: Tensor, lone: Tensor | None = None
) -> Policy:
    """The gate's policy, whose limits count the tokens [B, T] that tiles give in the model that answers.
    lone [B]: those of the glance where nothing is beside it, None where they are the same."""
    assert seen.candidates is not None
    keep = seen.candidates.tokens > 0
    own = keep * tokens[:, None]
    if lone is not None:
        glance = torch.where(keep.sum(-1) == 1, lone[:, None], own[..., -1])
        own = torch.cat([own[..., :-1], glance[..., None]], dim=-1)
    policy = gate.policy(replace(seen, candidates=Candidates(own)), outputs)
    if isinstance(policy, BernoulliPolicy):  # it lists nothing, and counts tokens by capacity
        return policy.counting(tokens)
    return policy


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
        return logits, real[0].contiguous(), *_stacked(caches), *_stacked(memories)


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
        logits, caches = self.language.decode(token, step, [real] * len(layers), caches, layers)
        return logits, real, *_stacked(caches)


def _stacked(caches: Sequence[Cache]) -> tuple[Tensor, ...]:
    """Keys and values of all layers [L, ...]; nothing where there are no layers."""
    return tuple(torch.stack(part) for part in zip(*caches, strict=True))


def is_bare(signal: Signal) -> bool:
    """Whether a signal is its source, so that it needs no graph."""
    return type(signal).forward is Signal.forward


def parts_of(model: NativeModel, gate: Gate, unit: float) -> dict[str, nn.Module]:
    """Graph name -> module, in evaluation mode. unit: FLOPs of relative cost 1."""
    parts: dict[str, nn.Module] = {
        **_signal_parts(signals_of(model, gate.config.needs)),
        "gate": GatePart(model, gate, unit),
        FIXED: FixedPart(model, gate),
        "vision": VisionPart(model.vision),
        "projector": ProjectorPart(model.projector),
        "prefill": PrefillPart(model.language),
        "decode": DecodePart(model.language),
    }
    return {name: part.eval() for name, part in parts.items()}


def alone_parts_of(sight: Sight, gate: Gate, outside: Outside, unit: float) -> dict[str, nn.Module]:
    """Graph name -> module of a gate alone, as `parts_of`."""
    signals = signals_of(cast(GatedModel, sight), gate.config.needs)
    return {
        name: part.eval()
        for name, part in (
            *_signal_parts(signals).items(),
            ("gate", GateAlonePart(gate, outside, unit)),
            ("vision", VisionPart(sight.vision)),
        )
    }


def _signal_parts(signals: Mapping[str, Signal]) -> dict[str, nn.Module]:
    return {signal_graph(name): SignalPart(of) for name, of in signals.items() if not is_bare(of)}
