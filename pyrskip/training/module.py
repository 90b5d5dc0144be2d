"""What every rule's LightningModule shares: randomness that is a function of the step, and the optimizer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from pyrskip.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up over `warmup` steps, then a cosine to 0 at `steps`."""

    steps: int = 1000
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.warmup < 0 or self.weight_decay < 0:
            raise UserError(
                f"optimizer.steps={self.steps}, lr={self.lr}, warmup={self.warmup}, weight_decay={self.weight_decay}: "
                "allowed: steps at least 1, lr above 0, the others at least 0"
            )


class StepModule(pl.LightningModule):
    """Seeds every step from (seed, step, rank), so that a resumed run draws what the uninterrupted one would have drawn."""

    def __init__(self, optimizer: OptimizerConfig, seed: int) -> None:
        super().__init__()
        self.optimizer_config, self.seed = optimizer, seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        state = np.random.SeedSequence([self.seed, batch_idx, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))

    def configure_optimizers(self) -> Any:
        c = self.optimizer_config
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": c.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=c.lr)
        warmup = min(c.warmup, c.steps - 1)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, c.steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
