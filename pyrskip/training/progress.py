"""Progress of a training on the terminal: a bar there, plain lines elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

SHOWN = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "score": "gate/accuracy",
    "cost": "cost/relative_flops",
}
THEME = RichProgressBarTheme(progress_bar="#0072B2", progress_bar_finished="#009E73", metrics="default")


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Loss, accuracy or score, mean keep rate and relative cost, as far as they are logged."""
    shown = {name: float(metrics[key]) for name, key in SHOWN.items() if key in metrics}
    kept = [float(value) for key, value in metrics.items() if key.startswith("gate/keep_rate/")]
    return shown | ({"keep": sum(kept) / len(kept)} if kept else {})


class Bar(RichProgressBar):
    """Lightning's rich bar, with elapsed time and ETA, on stderr. title: what is trained."""

    def __init__(self, title: str, **console: Any) -> None:
        super().__init__(refresh_rate=5, leave=True, theme=THEME, console_kwargs={"stderr": True, **console})
        self.title = title

    def _get_train_description(self, current_epoch: int) -> str:
        return self.title

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return dict(figures(trainer.callback_metrics))


class Lines(Callback):
    """A line for each fifth of the run."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total = int(trainer.num_training_batches)
        if trainer.is_global_zero and (batch_idx + 1) * 5 // total > batch_idx * 5 // total:
            shown = "  ".join(
                f"{name} {value:.4f}" for name, value in figures(trainer.callback_metrics).items()
            )
            print(f"  {self.title}: step {batch_idx + 1}/{total}  {shown}", file=sys.stderr, flush=True)
