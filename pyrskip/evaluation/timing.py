"""Measured time of decisions: encoding, the gate, and the whole answer, on this machine.

Every decision runs the gathered path: only tiles that it keeps are encoded. A fixed decision encodes them in
one pass; a gated one encodes the glance, then what the gate decided, and is listed as 'gated:<name>'
without the gate's time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, blind, reference
from pyrskip.evaluation.answering import decision_of
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features
from pyrskip.rollouts.table import OUTSIDE
from pyrskip.sample import Batch

GATED = "gated:"
WARM_UP = 2


@dataclass(frozen=True)
class Clock:
    """Median milliseconds a question at one batch size. encode, total: by decision (total: encode, project,
    generate); gate: by gate, from an encoded glance to a decision."""

    encode: dict[str, float]
    total: dict[str, float]
    gate: dict[str, float]


@dataclass(frozen=True)
class Timing:
    """single: batch 1, batched: batch 32."""

    single: Clock
    batched: Clock


@torch.no_grad()
def measure(
    model: NativeModel,
    gates: Mapping[str, Gate],
    batch: Batch,
    actions: ActionSet,
    budget: BudgetRule,
    unit: float,
    repeats: int = 20,
) -> Timing:
    """Time every listed action, the decisions outside of the set, and the gates.

    batch: any questions, of which one an image is used; unit: FLOPs of relative cost 1; repeats >= 1 rounds
    after a warm-up, each over all decisions in turn, so that a slow moment of the machine hits all alike.
    """
    training = [(module, module.training) for module in (model, *gates.values())]
    for module, _ in training:
        module.eval()
    singles = [_alone(batch, [i]) for i in range(min(repeats, len(batch.image)))]
    batched = [_alone(batch, [i % len(batch.image) for i in range(32)])]
    clocks = [_clock(model, gates, rows, actions, budget, unit, repeats) for rows in (singles, batched)]
    for module, mode in training:
        module.train(mode)
    return Timing(*clocks)


def _clock(
    model: NativeModel,
    gates: Mapping[str, Gate],
    pool: Sequence[Batch],
    actions: ActionSet,
    budget: BudgetRule,
    unit: float,
    repeats: int,
) -> Clock:
    glance = torch.zeros(model.pyramid.tiles, dtype=torch.bool, device=model.device)
    glance[model.pyramid.glance] = True
    fixed = dict(zip(actions.names, actions.selection, strict=True))
    fixed |= dict(zip(OUTSIDE, (reference(model.pyramid), blind(model.pyramid)), strict=True))
    fixed = {name: kept.to(model.device) for name, kept in fixed.items()}
    passes = {name: [kept] for name, kept in fixed.items()}
    for name in actions.names:
        rest = fixed[name] & ~glance
        passes[GATED + name] = [glance, rest] if bool(rest.any()) else [glance]

    encode: dict[str, list[float]] = {name: [] for name in passes}
    total: dict[str, list[float]] = {name: [] for name in passes}
    decide: dict[str, list[float]] = {name: [] for name in gates}
    for turn in range(WARM_UP + repeats):
        rows = pool[turn % len(pool)]
        for name, parts in passes.items():
            encoded, answered = _answer(model, rows, parts, fixed[name.removeprefix(GATED)], budget)
            encode[name].append(encoded)
            total[name].append(answered)
        features = model.encode(rows, glance.expand(len(rows), -1))
        for name, gate in gates.items():
            decide[name].append(_decide(model, gate, rows, features, unit))

    def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
        return {name: 1000 * median(times[WARM_UP:]) / len(pool[0]) for name, times in seconds.items()}

    return Clock(medians(encode), medians(total), medians(decide))


def _answer(
    model: NativeModel, rows: Batch, passes: Sequence[Tensor], selection: Tensor, budget: BudgetRule
) -> tuple[float, float]:
    """Seconds until the tiles are encoded and until the answers are written."""
    tokens = budget.tokens(selection[None], model.pyramid.capacity(rows.size)[rows.image_of])
    now = _timer(model)
    start = now()
    features = model.encode(rows, passes[0].expand(len(rows), -1))
    for kept in passes[1:]:
        rest = model.encode(rows, kept.expand(len(rows), -1))
        features = Features((*rest.maps[:-1], features.maps[-1]), rest.encoded | features.encoded)
    encoded = now()
    model.write(rows, features, tokens)
    return encoded - start, now() - start


def _decide(model: NativeModel, gate: Gate, rows: Batch, features: Features, unit: float) -> float:
    """Seconds from an encoded glance to a decision. Any price takes as long."""
    now = _timer(model)
    start = now()
    price = torch.full((len(rows),), 0.1, device=model.device)
    decision_of(model, gate, rows, features, price, unit)
    return now() - start


def _timer(model: NativeModel) -> Callable[[], float]:
    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return perf_counter()

    return now


def _alone(batch: Batch, images: Sequence[int]) -> Batch:
    """One question on each of these images: the i-th image's i-th, in a circle. An image given twice is held
    twice."""
    questions = []
    for image in images:
        own = (batch.image_of == image).nonzero().squeeze(1).tolist()
        questions.append(own[image % len(own)])
    return Batch(
        image=batch.image[list(images)],
        size=batch.size[list(images)],
        image_of=torch.arange(len(images), device=batch.image_of.device),
        questions=tuple(batch.questions[q] for q in questions),
        keys=tuple(batch.keys[q] for q in questions),
        image_keys=tuple(batch.image_keys[i] for i in images),
    )
