"""What an answer takes, part by part, on a GPU or a CPU (docs/gpu.md): a model of random weights that is large
enough to fill a GPU, under the full pyramid and the glance alone, one question at a time and 32 at once.

python benchmarks/answers.py [small]   prints a table; nothing is asserted. A minute on a GPU.
small: a model for a CPU.
"""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pyrskip.evaluation.timing import timer
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.reading import reading
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.sample import Batch, Question, Sample

TOKENS = 16
"""That are written, whether the answer has ended or not."""
WARM = 3  # a shape is launched, then recorded, then replayed
ROUNDS = 5


@dataclass(frozen=True)
class Took:
    """Medians in milliseconds for the whole batch. encode: tiles kept, by the encoder; tokens: pooled and
    projected; prefill; write: TOKENS tokens with their prefill; answer: all of it."""

    questions: int
    decision: str
    encode: float
    tokens: float
    prefill: float
    write: float
    answer: float

    @property
    def token(self) -> float:
        return (self.write - self.prefill) / (TOKENS - 1)


def build(small: bool) -> NativeModel:
    """A ViT-B/16 at 1,024 px in five levels, and a decoder of 16 layers x 1,024; small: ViT-Ti at 256 px in
    three, and 2 x 128."""
    side, levels, layers, width = (256, 3, 2, 128) if small else (1024, 5, 16, 1024)
    name = "vit_tiny_patch16_224" if small else "vit_base_patch16_224"
    torch.manual_seed(0)
    vision = VisionConfig(name, out_index=11, kwargs={"dynamic_img_size": True, "img_size": 224})
    mlp, tokenizer = width * 8 // 3 // 64 * 64, train_tokenizer(["is there a sign number 1? answer"], 2048)
    language = LanguageConfig(
        "decoder", layers=layers, width=width, heads=width // 64, mlp=mlp, max_answer=TOKENS
    )
    config = ModelConfig(PyramidConfig(side, levels), vision, TextConfig(), language, CostConfig())
    return NativeModel(config, tokenizer).eval()


def batch_of(model: NativeModel, questions: int) -> Batch:
    side, generator = model.pyramid.size, torch.Generator().manual_seed(0)
    asked = (Question("is there a sign number 1?", ("answer 1",)),)
    images = torch.randint(0, 256, (questions, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch.collate([Sample(str(i), image, asked) for i, image in enumerate(images)], side)


@torch.no_grad()
def measure(model: NativeModel, questions: int) -> list[Took]:
    batch, language = batch_of(model, questions).to(model.device), model.language
    size, image_of = batch.on_cpu
    capacity = model.pyramid.capacity(size)[image_of]
    glance = capacity * (torch.arange(model.pyramid.tiles) == model.pyramid.glance)
    clock, rows = partial(_clock, timer(model)), []
    for name, asked in (("full", capacity), ("glance alone", glance)):
        features, encode = clock(partial(model.encode, batch, asked > 0))
        (visual, _), tokens = clock(partial(model.visual, batch, features, asked))
        question = language.tokenize(batch.texts)

        def write(tokens: int, visual: Any = visual, question: Any = question) -> None:
            text = reading(language, language.recordings, visual, question)
            logits = text.first()
            for _ in range(tokens - 1):
                logits = text.next(logits.argmax(-1))

        prefill, whole = clock(partial(write, 1))[1], clock(partial(write, TOKENS))[1]
        answer = clock(partial(model.answer, batch, asked))[1]
        rows.append(Took(questions, name, encode, tokens, prefill, whole, answer))
    return rows


def _clock(now: Callable[[], float], run: Callable[[], Any]) -> tuple[Any, float]:
    for _ in range(WARM):
        found = run()
    times = []
    for _ in range(ROUNDS):
        start = now()
        found = run()
        times.append(now() - start)
    return found, 1000 * median(times)


def main(small: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, start = build(small).to(device), perf_counter()
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    table = Table(title=f"{name}, bfloat16, milliseconds")
    for column in (*(f.name for f in fields(Took)), "a token more"):
        table.add_column(column, justify="right")
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for questions in (1, 32):
            for row in measure(model, questions):
                cells = [getattr(row, f.name) for f in fields(Took)[2:]] + [row.token]
                table.add_row(str(row.questions), row.decision, *(f"{cell:.1f}" for cell in cells))
    console = Console(width=110)
    console.print(table)
    if device == "cuda":
        console.print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
    console.print(f"{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["small"]):
        sys.exit(f"{' '.join(sys.argv[1:])}: allowed: nothing, or small")
    main(small=len(sys.argv) > 1)
