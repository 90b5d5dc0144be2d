"""A torch model with its gate: what a gate observes of a batch, and decide, look, answer.

Axes: B questions, T tiles, S actions.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from pyrskip.decision import Candidates, Decision
from pyrskip.gates.gate import Gate
from pyrskip.models.tiers import Features, GatedModel
from pyrskip.observation import Layout, Observation
from pyrskip.sample import Batch
from pyrskip.signals import Signal, read, signals_of
from pyrskip.transfer import sent


class Gated:
    """A model and its gate at a price, for `pyrskip.answering.answer`.

    unit: FLOPs of relative cost 1; price: a number, or one a question [B]; max_tokens: the most tokens of a
    decision, or None.
    """

    def __init__(
        self,
        model: GatedModel,
        gate: Gate,
        unit: float,
        price: float | Tensor = 0.0,
        max_tokens: int | None = None,
    ) -> None:
        self.model, self.gate, self.unit, self.price, self.max_tokens = model, gate, unit, price, max_tokens
        self.signals = signals_of(model, gate.config.needs)

    def glance(self, rows: Batch) -> Features:
        return encode_glance(self.model, rows)

    @torch.no_grad()
    def decide(self, rows: Batch, seen: Features) -> Decision:
        return self.gate.policy(self.observe(rows, seen)).mode(self.max_tokens)

    def look(self, rows: Batch, seen: Features, decided: Decision) -> Features:
        return self.model.look(rows, seen, decided.tokens)

    def write(self, rows: Batch, seen: Features, decided: Decision) -> list[str]:
        return self.model.write(rows, seen, decided.tokens)

    def observe(self, rows: Batch, seen: Features) -> Observation:
        """What the gate sees of a batch whose glance is encoded."""
        price = sent(torch.as_tensor(self.price, dtype=torch.float32), self.model.device).expand(len(rows))
        return observe(self.model, self.gate.layout, self.signals, rows, seen, price, self.unit)

    @torch.no_grad()
    def gate_flops(self, rows: Batch, there: Collection[str] = ()) -> float:
        """FLOPs of one decision, in the cost model's unit: the gate and the signals that it reads; means over
        the batch. there: sources whose signals are paid already."""
        own = self.gate.flops(self.observe(rows, self.glance(rows))) * self.model.convention.per_mac / 2
        size = rows.size[rows.image_of]
        read = (s for s in self.signals.values() if s.source not in there)
        return own + sum(float(s.flops(self.model, rows.texts, size).mean()) for s in read)


def encode_glance(model: GatedModel, rows: Batch) -> Features:
    """The features of a batch of which the glance alone is encoded."""
    keep = torch.arange(model.pyramid.tiles) == model.pyramid.glance
    with torch.no_grad():
        return model.encode(rows, keep.expand(len(rows), -1))


def observe(
    model: GatedModel,
    layout: Layout,
    signals: Mapping[str, Signal],
    rows: Batch,
    features: Features,
    price: Tensor,
    unit: float,
) -> Observation:
    """The observation of a batch whose glance is encoded. price [B]; unit: FLOPs of relative cost 1."""
    # on the CPU, where what sizes come to is known without waiting for the model
    image_size, image_of = rows.on_cpu
    size, capacity = image_size[image_of], model.pyramid.capacity(image_size)[image_of]
    tokens = layout.actions.tokens(capacity, layout.budget)
    realised = model.realise(tokens, size[:, None].expand(-1, len(layout.actions), -1))
    cost = model.cost(realised, size, model.prompt_tokens(rows).cpu()).flops / unit
    device = price.device
    return Observation(
        signals=read(signals, model, rows, features),
        capacity=sent(capacity, device),
        cost=sent(cost.float(), device),
        price=price,
        reveal=partial(reveal, model, rows, lambda tokens: model.look(rows, features, tokens)),
        candidates=Candidates(sent(tokens, device)),
    )


@torch.no_grad()
def reveal(
    model: GatedModel, rows: Batch, look: Callable[[Tensor], Features], tile: int, keep: Tensor
) -> Tensor:
    """Mean features [B, C] of one tile, encoded for the rows that keep it; zero for the others. look: encodes
    what a decision [B, T] keeps."""
    wanted = torch.zeros(len(rows), model.pyramid.tiles, dtype=torch.int64, device=keep.device)
    wanted[:, tile] = keep
    cells = look(wanted).maps[tile].float()
    count = model.pyramid.cells(rows.size)[:, tile].prod(-1).clamp(min=1)
    # maps are zero outside of what is valid
    return (cells.sum((-1, -2)) / count[:, None])[rows.image_of] * keep[:, None]
