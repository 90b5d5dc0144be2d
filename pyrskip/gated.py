"""A torch model with its gate: what a gate observes of a batch, and decide, look, answer.

Axes: B questions, I images, T tiles, S actions, C channels, G tiles a side of a level, F of the next
finer one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import Candidates, Decision
from pyrskip.gates.gate import Gate
from pyrskip.gates.region import overlap
from pyrskip.models.tiers import Features, GatedModel
from pyrskip.observation import Layout, Observation
from pyrskip.policies.nested import under
from pyrskip.pyramid import Pyramid
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
        # a glance, and that with what the gate looked at
        self.looked: tuple[Features, Features] | None = None

    def glance(self, rows: Batch) -> Features:
        return encode_glance(self.model, rows)

    @torch.no_grad()
    def decide(self, rows: Batch, seen: Features) -> Decision:
        found = seen

        def look(tokens: Tensor) -> Features:
            nonlocal found
            found = self.model.look(rows, found, tokens)
            return found

        decision = self.gate.policy(self.observe(rows, seen, look)).mode(self.max_tokens)
        self.looked = None if found is seen else (seen, found)
        return decision

    def look(self, rows: Batch, seen: Features, decided: Decision) -> Features:
        if self.looked is not None and self.looked[0] is seen:
            seen = self.looked[1]
        return self.model.look(rows, seen, decided.tokens)

    def write(self, rows: Batch, seen: Features, decided: Decision) -> list[str]:
        return self.model.write(rows, seen, decided.tokens)

    def observe(
        self, rows: Batch, seen: Features, look: Callable[[Tensor], Features] | None = None
    ) -> Observation:
        """What the gate sees of a batch whose glance is encoded. look: as of `observe`."""
        price = sent(torch.as_tensor(self.price, dtype=torch.float32), self.model.device).expand(len(rows))
        look = look or (lambda tokens: self.model.look(rows, seen, tokens))
        return observe(self.model, self.gate.layout, self.signals, rows, seen, price, self.unit, look)

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
    look: Callable[[Tensor], Features],
) -> Observation:
    """The observation of a batch whose glance is encoded. price [B]; unit: FLOPs of relative cost 1; look:
    encodes what a decision [B, T] keeps."""
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
        reveal=partial(reveal, model, rows, look),
        reveal_level=partial(reveal_level, model, rows, look),
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


@torch.no_grad()
def reveal_level(
    model: GatedModel, rows: Batch, look: Callable[[Tensor], Features], level: int, keep: Tensor
) -> Tensor:
    """What tiles of a level show, encoded for the rows that keep them [B, G * G] bool, at the place of each
    tile of the next finer level, [B, F * F, C]; zero under the others. look: as of `reveal`."""
    pyramid = model.pyramid
    tiles = tiles_of(pyramid, level)
    wanted = F.pad(keep.long(), (tiles.start, pyramid.tiles - tiles.stop))
    shown = beneath(pyramid, level, look(wanted).maps[tiles], rows.size)[rows.image_of]
    return shown * under(keep, pyramid.grid[level], pyramid.grid[level - 1])[..., None]


def beneath(pyramid: Pyramid, level: int, maps: Sequence[Tensor], size: Tensor) -> Tensor:
    """Mean features of a level at the place of each tile of the next finer one. maps [I, C, rows, columns] of
    the level's tiles, zero outside of what is valid; size [I, 2] of the images -> [I, F * F, C]."""
    g, own = pyramid.grid[level], torch.stack(list(maps), dim=1).float()
    index = torch.arange(own.shape[-1], device=own.device)
    cells = pyramid.cells(size)[:, tiles_of(pyramid, level)].to(own.device)
    valid = (index[:, None] < cells[..., None, :1]) & (
        index < cells[..., None, 1:]
    )  # [I, G * G, rows, columns]
    parts = torch.cat([own, valid[:, :, None].to(own.dtype)], dim=2).unflatten(1, (g, g))
    whole = (
        parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    )  # [I, C + 1, rows, columns] of the level
    box = sent(pyramid.tile_box[tiles_of(pyramid, level - 1)], own.device)
    summed = whole.flatten(2) @ overlap(box, *whole.shape[2:]).T
    mean: Tensor = summed[:, :-1] / summed[:, -1:].clamp(min=1e-6)
    return mean.transpose(1, 2)


def tiles_of(pyramid: Pyramid, level: int) -> slice:
    """Where the tiles of a level are among all."""
    start = sum(g * g for g in pyramid.grid[:level])
    return slice(start, start + pyramid.grid[level] ** 2)
