"""The Lightning Trainer of every stage that trains, and its resumption."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from pyrskip.data.datamodule import StepData
from pyrskip.errors import UserError
from pyrskip.training.checkpoint import PatientIO
from pyrskip.training.clock import Clock
from pyrskip.training.preemption import Stop, after_the_step, answer_signals
from pyrskip.training.progress import Bar, Lines

CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class TrainerConfig:
    """Lightning's own words. checkpoint_every: steps that a kill can cost at most. quiet: no progress."""

    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    gradient_clip: float | None = 1.0
    checkpoint_every: int = 200
    log_every: int = 20
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("devices", "nodes", "accumulate", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)}: at least 1 is needed")
        if self.accelerator not in ("cpu", "gpu", "cuda", "mps", "tpu", "auto"):
            raise UserError(f"trainer.accelerator={self.accelerator!r} is unknown; allowed: auto, cpu, cuda, gpu, mps, tpu")
        if self.gradient_clip is not None and not 0 < self.gradient_clip < float("inf"):
            raise UserError(f"trainer.gradient_clip={self.gradient_clip} clips nothing; allowed: null, or more than 0")


def build_trainer(
    config: TrainerConfig,
    directory: Path,
    loggers: Sequence[Logger] = (),
    title: str = "",
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """A Trainer whose one epoch is the whole run and whose checkpoints go to `directory`/last.ckpt.

    title: what its progress is told as.
    """
    terminal = sys.stderr.isatty() and not config.quiet
    progress: list[Callback] = [] if config.quiet else [Bar(title) if terminal else Lines(title)]
    checkpoint = ModelCheckpoint(
        dirpath=directory,
        filename=Path(CHECKPOINT).stem,
        every_n_train_steps=config.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return _trainer(
        config,
        logger=list(loggers),
        callbacks=[Clock(), *callbacks, checkpoint, Stop(directory / CHECKPOINT), *progress],
        enable_progress_bar=terminal,
    )


def check_trainer(config: TrainerConfig, steps: Iterable[int]) -> None:
    """Refuse a Trainer that cannot be here, and steps of optimizers that accumulation does not divide. Starts nothing."""
    for count in steps:
        if count % config.accumulate:
            raise UserError(
                f"trainer.accumulate={config.accumulate} does not divide optimizer.steps={count}; "
                "allowed: a divisor of every trained stage's steps"
            )
    _trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def _trainer(config: TrainerConfig, **rest: Any) -> pl.Trainer:
    try:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=config.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.gradient_clip,
            max_epochs=1,
            max_steps=-1,
            log_every_n_steps=config.log_every,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            plugins=[PatientIO()],
            **rest,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(
            f"trainer.accelerator={config.accelerator}, devices={config.devices}, nodes={config.nodes}, "
            f"strategy={config.strategy}, precision={config.precision} cannot run here: {' '.join(str(error).split())}"
        ) from error
    answer_signals(trainer)
    return trainer


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: StepData, directory: Path) -> None:
    """Train to the end, from the directory's checkpoint where there is one."""
    path = directory / CHECKPOINT
    if path.exists():
        check_readable(path, module)
    with after_the_step():
        trainer.fit(module, data, ckpt_path=path if path.exists() else None, weights_only=True)


def check_readable(path: Path, module: torch.nn.Module | None = None) -> None:
    """Refuse what is no whole checkpoint of Lightning's, or one of another module than `module`."""
    mend = "delete it to train this stage from its start"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is no whole checkpoint ({type(error).__name__}); {mend}") from error
    if not isinstance(saved, dict) or not {"state_dict", "pytorch-lightning_version"} <= saved.keys():
        raise UserError(f"{path} is no checkpoint of a training; {mend}")
    if module is not None:
        there = {name: tuple(getattr(value, "shape", ())) for name, value in dict(saved["state_dict"]).items()}
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        wrong = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
        if wrong:
            raise UserError(
                f"{path} is the checkpoint of another model: {wrong[0]} is {there.get(wrong[0], 'missing')} there and "
                f"{wanted.get(wrong[0], 'missing')} here; {mend}"
            )
