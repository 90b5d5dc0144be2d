"""What more GPUs would be given to do: measured on one process here, and counted from there to 512 ranks
(docs/scaling.md).

python benchmarks/scaling.py   prints tables; nothing is asserted. A few minutes on one core.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrskip.budget import BudgetRule, StochasticBudget, scale
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import DataConfig, parse_index, prepare
from pyrskip.decision import ActionSet
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.rollouts.scoring import score_native
from pyrskip.sample import Batch
from pyrskip.scenes.config import SceneConfig
from pyrskip.training.flex import FlexConfig, FlexModule

RANKS = (1, 8, 64, 512)
STEPS = 2000
BATCH = 4  # images a rank and step, five questions each
REPEATS = 3
# of a network of 200 Gb/s a node: bytes a second, and seconds a message
BANDWIDTH, LATENCY = 25e9, 10e-6
SAMPLES, ACTIONS = 10_000_000, 16


def ring(size: float, ranks: int) -> float:
    """Seconds of an all-reduce of `size` bytes around a ring of ranks."""
    return 2 * (ranks - 1) * (size / ranks / BANDWIDTH + LATENCY)


def stragglers(seconds: NDArray[np.float64], drawn: NDArray[np.int64]) -> tuple[float, float]:
    """Mean time of a step where every rank draws its own, and where all take the first rank's.

    seconds [K]: of each kind of step; drawn [steps, ranks]: whose. A step ends with its slowest rank.
    """
    return float(seconds[drawn].max(1).mean()), float(seconds[drawn[:, 0]].mean())


def draws(
    config: FlexConfig, model: NativeModel, ranks: int
) -> tuple[list[tuple[Tensor, float]], NDArray[np.int64]]:
    """The kinds of flex's steps (a selection, a share of its tokens), and which of them each rank draws at
    each step [steps, ranks], by the laws that flex draws from."""
    module, budget = (
        FlexModule(config, model, ActionSet.by_level(model.pyramid)),
        StochasticBudget(config.budget, config.seed),
    )
    kinds: dict[tuple[tuple[bool, ...], float], int] = {}
    drawn = np.zeros((STEPS, ranks), dtype=np.int64)
    for rank in range(ranks):
        for step in range(STEPS):
            (share,) = budget.fractions(step, rank)
            key = (tuple(module.selection(step * ranks + rank).tolist()), share)
            drawn[step, rank] = kinds.setdefault(key, len(kinds))
    return [(torch.tensor(selection), share) for selection, share in kinds], drawn


def scenes(directory: Path) -> ShardDataset:
    config = DataConfig(source="scenes", scenes=SceneConfig(size=512, train=64, test=8), val_fraction=0.1)
    prepare(config, directory)
    return ShardDataset(directory, "train", 512)


def scenes_model(data: ShardDataset) -> NativeModel:
    tokenizer = train_tokenizer(
        [t for qs in data.questions() for q in qs or () for t in (q.text, *q.answers)], 2048
    )
    vision = VisionConfig(out_index=3, weights="none")
    pyramid, language = PyramidConfig(size=512, levels=4), LanguageConfig(name="cross")
    return NativeModel(ModelConfig(pyramid, vision, TextConfig(), language, CostConfig()), tokenizer)


def seconds(way: Callable[[], object]) -> float:
    """Median of REPEATS, after one."""
    times = []
    for _ in range(REPEATS + 1):
        start = perf_counter()
        way()
        times.append(perf_counter() - start)
    return median(times[1:])


def step_of(model: NativeModel, batch: Batch, selection: Tensor, share: float) -> Callable[[], None]:
    """One step of flex: encode, answer, differentiate."""
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]

    def step() -> None:
        features = model.encode(batch, selection & (capacity > 0))
        model.loss(batch, features, scale(capacity, share) * selection).mean().backward()

    return step


def table(title: str, heads: Sequence[str], rows: Iterator[Sequence[str]]) -> Table:
    made = Table(*heads, title=title, title_justify="left")
    for row in rows:
        made.add_row(*row)
    return made


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="pyrskip-scaling-"))
    data = scenes(directory)
    model = scenes_model(data)
    samples = [s for s in (data[i] for i in range(BATCH)) if s is not None]
    batch = Batch.collate(samples, 512)
    console = Console(width=128)

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kinds, drawn = draws(FlexConfig(), model, max(RANKS))
    times = np.array([seconds(step_of(model, batch, *kind)) for kind in kinds])
    mean = float(times[drawn[:, 0]].mean())
    shards = parse_index(directory).splits["train"]
    size = sum((directory / s.shard).stat().st_size for s in shards) / len(data)
    read = seconds(lambda: [data[i] for i in range(32)]) / 32
    facts = [
        ("gradients, an all-reduce of each step", f"{4 * trained / 1e6:.2f} MB"),
        (
            f"a step of {BATCH} images and {len(batch)} questions",
            f"{mean:.2f} s, {times.min():.2f} to {times.max():.2f}",
        ),
        ("an image in its shard", f"{size / 1e3:.0f} kB"),
        ("reading and decoding one", f"{1e3 * read:.1f} ms, {size / read / 1e6:.1f} MB/s"),
    ]
    console.print(table("measured, one process, one thread", ("what", "value"), iter(facts)))

    def scaled() -> Iterator[Sequence[str]]:
        for ranks in RANKS:
            own, shared = stragglers(times, drawn[:, :ranks])
            for speed in (1, 1000):  # of this core, and of a thousand of it: about a GPU
                wait = ring(4 * trained, ranks) if ranks > 1 else 0.0
                step = shared / speed
                yield (
                    str(ranks),
                    f"{speed}x",
                    f"{own / shared:.2f}",
                    f"{1e3 * wait:.2f} ms",
                    f"{step / (step + wait):.1%}",
                    f"{ranks * BATCH * size / step / 1e6:.1f} MB/s",
                    f"{ranks * BATCH * read / step:.1f}",
                )

    heads = (
        "ranks",
        "speed",
        "own draws / shared",
        "all-reduce",
        "efficiency, shared",
        "reader",
        "cores that decode",
    )
    console.print(table("counted", heads, scaled()))

    actions = ActionSet.by_level(model.pyramid)
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    asked = actions.tokens(capacity, BudgetRule())
    with torch.no_grad():
        encoding = seconds(lambda: model.encode(batch, capacity > 0)) / len(batch)
        features = model.encode(batch, capacity > 0)
        playing = seconds(lambda: score_native(model, batch, features, asked)) / len(batch) / len(actions)
    each = encoding + ACTIONS * playing
    hours = SAMPLES * each / 3600
    # bytes a question: two float32 and three counts of 8 bytes of each column, and a fifth of its image's
    # glance
    glance = features.maps[-1][0].numel() * 4
    width = 32 * (ACTIONS + 2) + glance / 5
    rollouts = [
        ("encoding a question's share of its image, once", f"{1e3 * encoding:.1f} ms"),
        ("playing one action", f"{1e3 * playing:.1f} ms"),
        (f"{SAMPLES:,} questions x {ACTIONS} actions", f"{hours:,.0f} core hours"),
        ("their table", f"{SAMPLES * width / 1e9:.1f} GB"),
        (
            "on 512 ranks of 1000x",
            f"{3.6 * hours / 512:.0f} s, reading {512 * size / 5 / each / 1e3:,.0f} MB/s",
        ),
    ]
    console.print(table("rollouts", ("what", "value"), iter(rollouts)))


if __name__ == "__main__":
    main()
