"""What every rule's LightningModule shares: randomness that is a function of the step, and the optimizer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pyrskip.errors import UserError, unknown_name
from pyrskip.training.muon import Muon

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up over `warmup` steps, then a cosine to 0 at `steps`.

    name: 'adamw', or 'muon': the weights of linear layers move by orthogonalised momentum (Jordan et al.
    2024), as far a step as AdamW would move them at the same rate (Liu et al., arXiv:2502.16982); embeddings
    and vectors stay with AdamW.
    """

    name: str = "adamw"
    steps: int = 1000
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50
    beta2: float = 0.98

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise unknown_name("optimizer.name", self.name, OPTIMIZERS)
        if (
            self.steps < 1
            or self.lr <= 0
            or min(self.warmup, self.weight_decay) < 0
            or not 0 < self.beta2 < 1
        ):
            raise UserError(
                f"optimizer.steps={self.steps}, lr={self.lr}, warmup={self.warmup}, "
                f"weight_decay={self.weight_decay}, beta2={self.beta2}: allowed: steps at least 1, lr above "
                "0, beta2 in (0, 1), the others at least 0"
            )


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """A seed for torch, a pure function of its arguments. stream 0 is the same on every rank."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class StepModule(pl.LightningModule):
    """Seeds every step from (seed, step, rank), so that a resumed run draws what the uninterrupted one would
    have drawn; and learns from all ranks' rows alike, however many each has.

    share: this rank's rows of the step over the mean of all ranks': weighed with it, the mean over ranks is
    that over rows. log_every: steps between logged metrics, the last step's beside; 0 for none.
    """

    def __init__(self, optimizer: OptimizerConfig, seed: int) -> None:
        super().__init__()
        self.optimizer_config, self.seed = optimizer, seed
        self.share = 1.0
        self.log_every = 1

    @property
    def ranks(self) -> int:
        """Without a Trainer there is one."""
        return 1 if self._trainer is None else self.trainer.world_size

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed = step_seed(self.seed, batch_idx, 1 + self.global_rank)
        # torch.manual_seed seeds every kind of device that torch knows, which takes milliseconds
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        if self.ranks > 1:
            rows = torch.tensor(float(len(batch)), device=self.device)
            self.share = len(batch) / float(self.trainer.strategy.reduce(rows, reduce_op="mean"))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # DDP's gradients are the mean over ranks
        super().backward(loss * self.share, *args, **kwargs)

    def on_fit_start(self) -> None:
        self.log_every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def logs(self, batch_idx: int) -> bool:
        """Whether this step's metrics are logged."""
        done = batch_idx + 1
        return self.log_every > 0 and (done % self.log_every == 0 or done == self.optimizer_config.steps)

    def over_ranks(self, mean: Tensor) -> Tensor:
        """What is a mean over this rank's rows, [...] -> over all ranks', without gradient."""
        if self.ranks == 1:
            return mean.detach()
        reduced: Tensor = self.trainer.strategy.reduce(mean.detach() * self.share, reduce_op="mean")
        return reduced

    def of_ranks(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Lists of as many rows each -> with those of all ranks. Every rank must ask."""
        if self.ranks == 1:
            return rows
        parts: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(parts, rows)
        return {name: [row for part in parts for row in part[name]] for name in rows}

    def build_optimizer(self) -> Optimizer:
        c, rates = self.optimizer_config, (0.9, self.optimizer_config.beta2)
        trained = [p for p in self.parameters() if p.requires_grad]
        linear = (
            {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)} if c.name == "muon" else set()
        )
        groups = [
            {"params": [p for p in trained if id(p) in linear], "weight_decay": c.weight_decay},
            {
                "params": [p for p in trained if id(p) not in linear and p.ndim > 1],
                "weight_decay": c.weight_decay,
            },
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if c.name == "adamw":
            return AdamW(groups[1:], lr=c.lr, betas=rates)
        optimizer: Optimizer = Muon(
            [groups[0], *({**g, "use_fallback": True} for g in groups[1:])], lr=c.lr, betas=rates
        )
        return optimizer

    def configure_optimizers(self) -> Any:
        c, optimizer = self.optimizer_config, self.build_optimizer()
        # `steps` are batches, as the data counts them; the schedule moves when the weights do
        accumulated = self.trainer.accumulate_grad_batches if self._trainer is not None else 1
        steps = max(1, c.steps // accumulated)
        warmup = min(c.warmup // accumulated, steps - 1)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
