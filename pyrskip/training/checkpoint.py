"""How checkpoints reach the disk."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import ModelCheckpoint

from pyrskip.errors import UserError
from pyrskip.files import whole_file


class BetweenSteps(ModelCheckpoint):
    """Lightning's own, but never within an accumulated step, where it would save after it was resumed: the
    gradients so far are in no checkpoint, and a baseline or a multiplier has moved by their batches
    already."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class PatientIO(TorchCheckpointIO):
    """Writes whole files or none: beside where they belong, then renamed. (Lightning's writes to /tmp and
    moves, which on another disk is a copy, and a kill in its middle leaves neither the new checkpoint nor the
    one before.) One that cannot be written (a full disk) is said once, the one before stays, and the training
    goes on to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.reported = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        content = BytesIO()
        torch.save(checkpoint, content)
        try:
            with whole_file(Path(path)) as file:
                file.write(content.getbuffer())
        except UserError as error:
            if not self.reported:
                print(f"{error}; training goes on, and tries again", file=sys.stderr, flush=True)
            self.reported = True
        else:
            self.reported = False
