"""How checkpoints reach the disk."""

import sys
from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH


class PatientIO(TorchCheckpointIO):
    """Lightning's own, which writes whole files or none. One that cannot be written (a full disk) is said once, the one before
    stays, and the training goes on to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.told = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            if not self.told:
                reason = error.strerror or error
                print(f"{path} cannot be written: {reason}; training goes on, and tries again", file=sys.stderr, flush=True)
            self.told = True
        else:
            self.told = False
