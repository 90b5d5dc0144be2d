"""Throughput of a training, logged as time/*."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Clock(Callback):
    """Means a step over the steps since it last logged."""

    def __init__(self) -> None:
        self.steps = self.questions = 0
        self.began = self.waited = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        self.questions += len(batch)
        if (batch_idx + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        passed = perf_counter() - self.began
        figures = {
            "time/step": passed / self.steps,
            "time/data_wait": (_waited(trainer) - self.waited) / self.steps,
            "time/questions_per_second": self.questions * trainer.world_size / passed,
        }
        # straight to the loggers: with accumulation Lightning would log other steps
        for logger in trainer.loggers:
            logger.log_metrics(figures, max(trainer.global_step - 1, 0))
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self.steps = self.questions = 0
        self.began, self.waited = perf_counter(), _waited(trainer)


def _waited(trainer: pl.Trainer) -> float:
    """Seconds that the loader has kept the training waiting."""
    return float(getattr(trainer.train_dataloader, "waited", 0.0))
