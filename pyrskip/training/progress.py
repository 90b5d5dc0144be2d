"""Progress of a training, or of predictions, on the terminal."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.progress import FIRST, Work, progress

SHOWN = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "score": "gate/accuracy",
    "cost": "cost/relative_flops",
}


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Loss, accuracy or score, mean keep rate and relative cost, as far as they are logged."""
    shown = {name: float(metrics[key]) for name, key in SHOWN.items() if key in metrics}
    kept = [float(value) for key, value in metrics.items() if key.startswith("gate/keep_rate/")]
    return shown | ({"keep": sum(kept) / len(kept)} if kept else {})


class ShowProgress(Callback):
    """Says how far the first rank is. title: what is trained, or predicted of a split."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._work: Work | None = None
        self._showing = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, self.title, int(trainer.num_training_batches), "step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._work is None:
            return
        if self._work.calls + 1 == FIRST and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # Python runs ahead of the device, which tells how long a step takes
        self._work.reach(batch_idx + 1, lambda: _line(trainer.callback_metrics))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = sum(int(number) for number in trainer.num_predict_batches)
        self._start(trainer, f"{self.title}, {pl_module.split}", batches, "batch")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._work is not None:
            self._work.advance()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._showing.__exit__(type(exception), exception, None)
        self._work = None

    def _start(self, trainer: pl.Trainer, title: str, total: int, unit: str) -> None:
        if trainer.is_global_zero:
            self._work = self._showing.enter_context(progress(title, total, unit))

    def _end(self) -> None:
        self._showing.close()
        self._work = None


def _line(metrics: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in figures(metrics).items())
