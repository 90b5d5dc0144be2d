"""A tiny native model and batches for it, for tests that need a model and not what it knows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.sample import Batch, Question, Sample

SIDE = 64
# stride 8 and BatchNorm, 5k parameters
BACKBONE = VisionConfig("mobilenetv3_small_050", out_index=2, weights="none")
ANSWERS = ("red", "blue", "yes", "no", "twenty seven")
TEXTS = (
    "what colour is it?",
    "is there a red circle in the picture?",
    "how many?",
    "what does the small sign say?",
)
# rows and columns of the images: the whole canvas, two aspects, one with ragged edges, one far smaller than
# the canvas
SIZES = ((64, 64), (40, 64), (64, 23), (51, 30), (9, 13))


def tiny_model(
    grid: Sequence[int] = (1,),
    levels: int = 3,
    layers: int = 2,
    text: str = "embedding",
    vision: VisionConfig = BACKBONE,
    cost: CostConfig | None = None,
    language: str = "decoder",
    halo: int = 0,
) -> NativeModel:
    """Random weights of unit variance, so that answers depend on every token."""
    torch.manual_seed(0)
    config = ModelConfig(
        PyramidConfig(SIDE, levels, tuple(grid), halo),
        vision,
        TextConfig(text),
        LanguageConfig(language, layers=layers, width=32, heads=2, mlp=48, vocabulary=320, max_answer=6),
        cost or CostConfig(),
    )
    return NativeModel(config, train_tokenizer([*TEXTS, *ANSWERS] * 3, 320)).eval()


def tiny_batch(questions: Sequence[int] = (2, 1, 3, 1, 2), seed: int = 0) -> Batch:
    """Images of SIZES with as many questions each as are given."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for row, count in enumerate(questions):
        image = torch.randint(0, 256, (3, *SIZES[row % len(SIZES)]), generator=generator, dtype=torch.uint8)
        asked = [(row + i) % len(TEXTS) for i in range(count)]
        kept = tuple(Question(TEXTS[i], (ANSWERS[(row + i) % len(ANSWERS)],), f"type {i}") for i in asked)
        samples.append(Sample(f"image-{row}", image, kept))
    return Batch.collate(samples, SIDE)


def every_tile(model: NativeModel, batch: Batch) -> Tensor:
    """The decision that asks for all of every tile: [B, T] int64."""
    return model.pyramid.capacity(batch.size)[batch.image_of]


def mixed_decisions(model: NativeModel, batch: Batch, seed: int = 0) -> Tensor:
    """Random selections that hold the glance, at random shares of capacity: [B, T] int64. Row 0 keeps the
    glance alone, the last row everything whole."""
    generator = torch.Generator().manual_seed(seed)
    capacity = every_tile(model, batch)
    keep = torch.rand(capacity.shape, generator=generator) < 0.5
    keep[0], keep[-1] = False, True
    keep[:, model.pyramid.glance] = True
    share = torch.rand(capacity.shape, generator=generator)
    share[-1] = 1.0
    return (capacity * share).ceil().long() * keep


def with_answers(batch: Batch, answers: Sequence[str]) -> Batch:
    """The batch with these accepted answers, round and round."""
    questions = [replace(q, answers=(answers[i % len(answers)],)) for i, q in enumerate(batch.questions)]
    return replace(batch, questions=tuple(questions))


def taught_model(batch: Batch, steps: int = 80, mixed: bool = True, language: str = "decoder") -> NativeModel:
    """A model that has learned to answer the batch, so that what it writes is words. mixed: under every
    second step's random decisions as well as from the whole pyramid."""
    model = tiny_model(language=language)
    every = every_tile(model, batch)
    features = model.encode(batch, every > 0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        asked = mixed_decisions(model, batch, step) if mixed and step % 2 == 0 else every
        optimizer.zero_grad()
        model.loss(batch, features, asked).mean().backward()
        optimizer.step()
    return model.eval()
