"""Does a gate alone decide as the trained gate does? Checked on a whole split, at every export.

Axes: B questions, T tiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.export.parity import MARGIN, TOLERANCE, chunks
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.inference.alone import OutsideDecider
from pyrskip.inference.decider import UNLIMITED
from pyrskip.inference.modules import counting
from pyrskip.models.vlm.served import ServedModel
from pyrskip.observation import Observation
from pyrskip.sample import Batch

FLOPS = 0.01
"""Share by which a decision's FLOPs may differ: questions' tokens are counted by a rule."""


@dataclass
class GateParity:
    """One backend against the trained gate on a split, over all prices, without a limit of tokens and with
    one. inside: decisions whose margin is at most MARGIN, which may differ; differ: of the others.

    outputs: largest difference of the gate's raw outputs; flops: of a decision's, as a share of them.
    """

    backend: str
    prices: list[float]
    limit: int
    questions: int = 0
    decisions: int = 0
    inside: int = 0
    inside_that_differ: int = 0
    differ: int = 0
    outputs: float = 0.0
    flops: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.differ and self.outputs <= TOLERANCE and self.flops <= FLOPS

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.questions} questions, {self.decisions} decisions at {len(self.prices)} "
            f"prices, without a limit and with max_tokens={self.limit}: {self.differ} differ, {self.inside} "
            f"within {MARGIN} of a tie ({self.inside_that_differ} differ); largest difference of gate "
            f"outputs {self.outputs:.1e}, of FLOPs {self.flops:.1e}"
        )


@torch.no_grad()
def check_alone(
    model: ServedModel,
    gate: Gate,
    deciders: Mapping[str, OutsideDecider],
    data: ShardDataset,
    unit: float,
    prices: Sequence[float],
) -> list[GateParity]:
    """Compare every backend on every question of the split. Raises UserError, with what differs, where one of
    them is not the same."""
    size = torch.full((1, 2), model.pyramid.size)
    limit = max(1, int(model.realise(model.pyramid.capacity(size), size).sum()) // 4)
    results = {name: GateParity(name, list(prices), limit) for name in deciders}
    for samples in chunks(data):
        batch = Batch.collate(samples, model.pyramid.size)
        pictures = [Image.fromarray(sample.image.permute(1, 2, 0).numpy()) for sample in samples]
        gated = Gated(model, gate, unit)
        seen = gated.observe(batch, gated.glance(batch))
        wanted = {
            asked: _decided(model, gate, batch, seen, *asked) for asked in product(prices, (None, limit))
        }
        for name, decider in deciders.items():
            _compare(results[name], decider, pictures, batch, wanted)
    for result in results.values():
        if not result.holds:
            raise UserError(f"the export is not the gate, nothing was written: {result}")
    return list(results.values())


@dataclass(frozen=True)
class _Decided:
    """The gate's raw outputs [B, ...]; of its decision the model's tokens [B, T] and FLOPs [B]; whether it is
    within MARGIN of another [B]."""

    outputs: NDArray[np.float32]
    tokens: NDArray[np.int64]
    flops: NDArray[np.float64]
    inside: NDArray[np.bool_]


def _decided(
    model: ServedModel, gate: Gate, batch: Batch, seen: Observation, price: float, limit: int | None
) -> _Decided:
    seen = replace(seen, price=torch.full_like(seen.price, price))
    outputs, size = gate(seen), batch.size[batch.image_of]
    capacity = model.pyramid.capacity(size)
    # a limit is one of the model's own tokens
    alone = capacity * (torch.arange(capacity.shape[-1]) == model.pyramid.glance)
    own, glance = (model.realise(asked, size) for asked in (capacity, alone))
    policy = gate.policy(seen) if limit is None else counting(gate, seen, outputs, own, glance.sum(-1))
    decision = policy.mode(limit)
    tokens = model.realise(capacity * decision.selection, size)
    flops = model.cost(tokens, size, model.prompt_tokens(batch)).flops
    inside = policy.margin(decision, limit) <= MARGIN
    return _Decided(outputs.numpy(), tokens.numpy(), flops.numpy(), inside.numpy())


def _compare(
    result: GateParity,
    decider: OutsideDecider,
    pictures: Sequence[Image.Image],
    batch: Batch,
    wanted: Mapping[tuple[float, int | None], _Decided],
) -> None:
    opened = [decider.picture(picture) for picture in pictures]
    questions = zip(batch.image_of.tolist(), batch.texts, strict=True)
    asked = [decider.row(opened[image], text, 0.0) for image, text in questions]
    result.questions += len(asked)
    for (price, limit), of in wanted.items():
        rows = [replace(row, price=price, max_tokens=limit or UNLIMITED) for row in asked]
        found = decider.decide(rows, decider.glance(rows))
        differ = (found.asked != of.tokens).any(-1)
        result.decisions += len(rows)
        result.inside += int(of.inside.sum())
        result.inside_that_differ += int((of.inside & differ).sum())
        result.differ += int((~of.inside & differ).sum())
        result.outputs = max(result.outputs, float(np.abs(found.outputs - of.outputs).max()))
        flops = np.array([s.flops for s in found.selections]) - decider.spec.costs.gate
        apart = np.abs(flops / of.flops - 1)[~differ]
        result.flops = max(result.flops, float(apart.max(initial=0.0)))
