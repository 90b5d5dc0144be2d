"""Measured time of decisions: encoding, the gate, and the whole answer, on this machine.

Every decision runs the gathered path: only tiles that it keeps are encoded. A fixed decision encodes them in
one pass; a gated one encodes the glance, then what the gate decided, and is listed as 'gated:<name>'
without the gate's time. Of many listed decisions a few are timed well, evenly spread over what they cost; the
others' times lie between those of their neighbours in FLOPs.
"""

import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from pyrskip.answering import Answering, answer
from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Decision, blind, reference
from pyrskip.gated import Gated, encode_glance
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features
from pyrskip.pruners import Pruner
from pyrskip.rollouts.table import OUTSIDE
from pyrskip.sample import Batch

GATED = "gated:"
ROUNDS = 15
"""Rounds that a time is the median of, at most."""
TIMED = 16
"""Listed decisions that are timed, at most."""
RECORDED = 4
"""Single questions that are timed on a GPU, whose shapes are recorded before."""


@dataclass(frozen=True)
class Clock:
    """Median milliseconds a question at one batch size. encode, total: by decision (total: encode, project,
    generate); gate: by gate, from an encoded glance to a decision; of one that looks, from what it looks at,
    whose encoding is part of encode."""

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
    flops: Tensor,
    seconds: float,
    pruners: Mapping[str, Pruner | None] | None = None,
) -> Timing:
    """Time the listed actions, the decisions outside of the set, the gates, and the full pyramid behind
    pruners, which are listed by their names.

    batch: any questions, of which one an image is used; unit: FLOPs of relative cost 1; flops [S]: of each
    listed action; seconds: after which no other round begins, though one always ends, and one before it to
    warm up. A round is over all decisions in turn, so that a slow moment of the machine hits all alike.
    """
    training = [(module, module.training) for module in (model, *gates.values())]
    for module, _ in training:
        module.eval()
    singles = [alone(batch, [i]) for i in range(min(singles_of(model), len(batch.image)))]
    batched = [alone(batch, [i % len(batch.image) for i in range(32)])]
    clocks = [
        _clock(model, gates, rows, actions, budget, unit, flops.tolist(), seconds / 2, pruners or {})
        for rows in (singles, batched)
    ]
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
    flops: Sequence[float],
    seconds: float,
    pruners: Mapping[str, Pruner | None],
) -> Clock:
    timed = spread(flops, TIMED)
    kept = {actions.names[i]: actions.selection[i] for i in timed}
    scripted = {GATED + name: Scripted(model, selection, budget, True) for name, selection in kept.items()}
    kept |= dict(zip(OUTSIDE, (reference(model.pyramid), blind(model.pyramid)), strict=True))
    scripted |= {name: Scripted(model, selection, budget, False) for name, selection in kept.items()}
    full = actions.selection[actions.full]
    scripted |= {name: Scripted(model, full, budget, False, pruner) for name, pruner in pruners.items()}
    gated = {name: Gated(model, gate, unit, 0.1) for name, gate in gates.items()}  # any price takes as long

    record(model, scripted.values(), pool)
    encode: dict[str, list[float]] = {name: [] for name in scripted}
    total: dict[str, list[float]] = {name: [] for name in scripted}
    decide: dict[str, list[float]] = {name: [] for name in gates}
    end = perf_counter() + seconds
    for turn in range(1 + ROUNDS):
        if turn > 1 and perf_counter() > end:
            break
        rows = pool[turn % len(pool)]
        for name, decided in scripted.items():
            marks = Marks(model)
            answer(decided, rows, marks)
            encode[name].append(marks.seconds["glance"] + marks.seconds["encode"])
            total[name].append(encode[name][-1] + marks.seconds["answer"])
        glance = encode_glance(model, rows)
        every = torch.ones(len(rows), model.pyramid.tiles, dtype=torch.bool)
        looks = any(gate.config.looks for gate in gates.values())
        encoded = model.encode(rows, every) if looks else glance
        for name, deciding in gated.items():
            marks = Marks(model)
            deciding.decide(rows, encoded if gates[name].config.looks else glance)
            marks("gate")
            decide[name].append(marks.seconds["gate"])

    def medians(of: dict[str, list[float]]) -> dict[str, float]:
        return {name: 1000 * median(times[1:]) / len(pool[0]) for name, times in of.items()}

    def filled(times: dict[str, float]) -> dict[str, float]:
        for prefix in ("", GATED):
            own = [times[prefix + actions.names[i]] for i in timed]
            every = np.interp(flops, [flops[i] for i in timed], own).tolist()
            times = dict(zip((prefix + name for name in actions.names), every, strict=True)) | times
        return times

    return Clock(filled(medians(encode)), filled(medians(total)), medians(decide))


def spread(flops: Sequence[float], most: int) -> list[int]:
    """At most this many of the actions, in order of their FLOPs: all, or the cheapest, the dearest and those
    that are nearest to equal steps between them."""
    order = sorted(range(len(flops)), key=lambda i: flops[i])
    if len(order) <= most:
        return order
    ranked = np.array([flops[i] for i in order])
    steps = np.linspace(ranked[0], ranked[-1], most)
    return [order[i] for i in sorted({int(np.abs(ranked - step).argmin()) for step in steps})]


class Scripted:
    """A decision that is made before it begins. gated: the glance is encoded first, and what is kept beside
    it in a second pass, as under a gate. pruner: that the answer is given behind, else the model's own."""

    def __init__(
        self,
        model: NativeModel,
        selection: Tensor,
        budget: BudgetRule,
        gated: bool,
        pruner: Pruner | None = None,
    ) -> None:
        self.model, self.selection, self.budget = model, selection.cpu(), budget
        self.gated, self.pruner = gated, pruner or model.pruner

    def glance(self, rows: Batch) -> Features:
        if self.gated:
            return encode_glance(self.model, rows)
        return self.model.encode(rows, self.selection.expand(len(rows), -1))

    def decide(self, rows: Batch, seen: Features) -> Decision:
        size, image_of = rows.on_cpu
        capacity = self.model.pyramid.capacity(size)[image_of]
        return Decision(self.budget.tokens(self.selection[None], capacity))

    def look(self, rows: Batch, seen: Features, decided: Decision) -> Features:
        return self.model.look(rows, seen, decided.tokens)

    def write(self, rows: Batch, seen: Features, decided: Decision) -> list[str]:
        own, self.model.pruner = self.model.pruner, self.pruner
        try:
            return self.model.write(rows, seen, decided.tokens)
        finally:
            self.model.pruner = own


class Marks:
    """seconds: of each phase that was marked, from the end of the one before."""

    def __init__(self, model: NativeModel) -> None:
        self.now = timer(model)
        self.seconds: dict[str, float] = {}
        self.before = self.now()

    def __call__(self, phase: str) -> None:
        now = self.now()
        self.seconds[phase], self.before = now - self.before, now


def singles_of(model: NativeModel) -> int:
    """How many single questions are timed in turn."""
    return RECORDED if model.device.type == "cuda" else ROUNDS


def record(
    model: NativeModel, ways: Iterable[Answering[Batch, Features, Decision]], pool: Sequence[Batch]
) -> None:
    """What is timed are shapes that have come before: on a GPU the first is launched, the second recorded."""
    if model.device.type != "cuda" or len(pool[0]) > 1:
        return
    for rows in pool:
        for way in ways:
            for _ in range(2):
                answer(way, rows)


def device_name(device: torch.device) -> str:
    """What a GPU or this machine's processor is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    said = Path("/proc/cpuinfo")  # where the system has it; platform knows the processor's kind alone
    found = re.search(r"model name\s*: (.+)", said.read_text()) if said.is_file() else None
    name = found[1] if found else platform.processor() or "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def timer(model: NativeModel) -> Callable[[], float]:
    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return perf_counter()

    return now


def alone(batch: Batch, images: Sequence[int]) -> Batch:
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
