"""How checkpoints reach the disk."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH

from pyrskip.data.shards import whole_file
from pyrskip.errors import UserError


class PatientIO(TorchCheckpointIO):
    """Writes whole files or none: beside where they belong, then renamed. (Lightning's writes to /tmp and moves, which on
    another disk is a copy, and a kill in its middle leaves neither the new checkpoint nor the one before.) One that cannot be
    written (a full disk) is said once, the one before stays, and the training goes on to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.told = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        content = BytesIO()
        torch.save(checkpoint, content)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(Path(path)) as file:
                file.write(content.getbuffer())
        except (OSError, UserError) as error:
            if not self.told:
                print(f"{error}; training goes on, and tries again", file=sys.stderr, flush=True)
            self.told = True
        else:
            self.told = False
