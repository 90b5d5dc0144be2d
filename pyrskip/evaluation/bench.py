"""What decisions take on the clock, phase by phase, beside what they cost in FLOPs, on the model's device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from pyrskip.answering import Answering, answer
from pyrskip.decision import Decision
from pyrskip.evaluation.timing import Marks, Scripted, alone, record, singles_of, timer
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features
from pyrskip.sample import Batch

SIZES = (1, 8, 32)
"""Questions that are answered at once."""
ROUNDS = 30
"""Rounds that a time is the median of, at most."""
LEAST = 3
PHASES = ("encode", "gate", "prefill", "decode")


@dataclass(frozen=True)
class Timed:
    """A decision at one batch size. In milliseconds a question: medians of each phase, and of the whole,
    which is measured without a stop between phases, and its 90th percentile. time, flops: over those of the
    full pyramid; memory: MiB that were allocated at most on an accelerator, None on a CPU."""

    questions: int
    decision: str
    encode: float
    gate: float
    prefill: float
    decode: float
    total: float
    total_p90: float
    time: float
    flops: float
    memory: float | None


Way = Answering[Batch, Features, Decision]


@torch.no_grad()
def bench(
    model: NativeModel, gate: Gate, batch: Batch, unit: float, price: float, seconds: float
) -> list[Timed]:
    """Answers under the full pyramid, level 0 alone, the glance alone and the gate at a price, in turn.

    batch: any questions, of which one an image is used; unit: FLOPs of relative cost 1; seconds: after which
    no other round begins, shared by the batch sizes; at least LEAST rounds are run.
    """
    pyramid, budget = model.pyramid, gate.layout.budget
    glance = torch.arange(pyramid.tiles) == pyramid.glance
    ways: dict[str, Way] = {
        "full": Scripted(model, torch.ones_like(glance), budget, False),
        "level 0 alone": Scripted(model, model.reference, budget, False),
        "glance alone": Scripted(model, glance, budget, False),
        "gate": Gated(model, gate, unit, price),
    }
    rows: list[Timed] = []
    for size in SIZES:
        images = len(batch.image)
        count = min(singles_of(model) if size == 1 else ROUNDS, images)
        pool = [alone(batch, [(i + k) % images for k in range(size)]) for i in range(count)]
        rows += _at(model, gate, ways, pool, unit, seconds / len(SIZES))
    return rows


def _at(
    model: NativeModel, gate: Gate, ways: dict[str, Way], pool: Sequence[Batch], unit: float, seconds: float
) -> list[Timed]:
    size, now = len(pool[0]), timer(model)
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    flops: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float | None] = {}
    record(model, ways.values(), pool)
    end, turn = perf_counter() + seconds, 0
    while turn <= LEAST or (turn <= ROUNDS and perf_counter() < end):
        batch = pool[turn % len(pool)]
        for name, way in ways.items():
            marks = Marks(model)
            decided = answer(_Phased(model, way, marks), batch, marks).decided
            before = now()
            answer(way, batch)
            taken = now() - before
            if turn == 0:  # it warms up
                memory[name] = _memory(model, lambda way=way, batch=batch: answer(way, batch))  # type: ignore[misc]
                continue
            phases[name].append(marks.seconds)
            whole[name].append(taken)
            flops[name].append(_flops(model, batch, decided))
        turn += 1
    own = Gated(model, gate, unit).gate_flops(pool[0])
    full = float(np.mean(flops["full"]))

    def row(name: str) -> Timed:
        a_question = 1000 / size
        took = {
            phase: a_question * median(sum(of.get(part, 0.0) for part in parts) for of in phases[name])
            for phase, parts in zip(
                PHASES, (("glance", "encode"), ("gate",), ("prefill",), ("answer",)), strict=True
            )
        }
        if name != "gate":
            took["gate"] = 0.0
        total = a_question * median(whole[name])
        return Timed(
            questions=size,
            decision=name,
            **took,
            total=total,
            total_p90=a_question * float(np.percentile(whole[name], 90)),
            time=median(whole[name]) / median(whole["full"]),
            flops=(float(np.mean(flops[name])) + (own if name == "gate" else 0.0)) / full,
            memory=memory[name],
        )

    return [row(name) for name in ways]


class _Phased:
    """An answering whose writing marks where the prompt has been read."""

    def __init__(self, model: NativeModel, way: Way, mark: Callable[[str], None]) -> None:
        self.model, self.way, self.mark = model, way, mark

    def glance(self, rows: Batch) -> Features:
        return self.way.glance(rows)

    def decide(self, rows: Batch, seen: Features) -> Decision:
        return self.way.decide(rows, seen)

    def look(self, rows: Batch, seen: Features, decided: Decision) -> Features:
        return self.way.look(rows, seen, decided)

    def write(self, rows: Batch, seen: Features, decided: Decision) -> list[str]:
        visual, _ = self.model.visual(rows, seen, decided.tokens)
        return self.model.language.generate(visual, self.model.language.tokenize(rows.texts), self.mark)


def _flops(model: NativeModel, batch: Batch, decided: Decision) -> float:
    image_size, image_of = batch.on_cpu
    size = image_size[image_of]
    realised: Tensor = model.realise(decided.tokens.cpu(), size)
    return float(model.cost(realised, size, model.prompt_tokens(batch)).flops.mean())


def _memory(model: NativeModel, run: Callable[[], object]) -> float | None:
    if model.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(model.device)
    run()
    return torch.cuda.max_memory_allocated(model.device) / 2**20
