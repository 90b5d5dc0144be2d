"""Keeps the weights with which a gate decides the validation rollouts best, and ends a training that no
longer gets better: taught scores of 0 and 1, a gate comes to know its own questions by heart."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from pyrskip.files import write_json
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment

KEPT = "kept.json"
PRICES, DECISIONS, CHUNK = 5, 4096, 1024
"""Prices that each question is decided at, evenly among those that are drawn; decisions of a validation, at
most; how many at once."""


class Best(Callback):
    """environment: the validation rollouts. validations: of a training, in equal steps; it ends after
    `patience` of them in a row that were no better than the best, 0 for never. path: of a file that says
    which weights are kept: step, from 1; steps that were taken; reward.

    All that it knows is in checkpoints, and it draws no random numbers: a training that was killed ends at
    the same step, with the same weights.
    """

    def __init__(self, environment: TableEnvironment, validations: int, patience: int, path: Path) -> None:
        self.environment, self.validations, self.patience = environment, validations, patience
        self.path = path
        self.state: dict[str, Any] = {"reward": -float("inf"), "missed": 0, "weights": {}}
        questions = len(environment.table)
        order = torch.randperm(questions * PRICES, generator=torch.Generator().manual_seed(0))
        self.pairs = order[:DECISIONS].sort().values

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.environment.to(pl_module.device)
        self.pairs = self.pairs.to(pl_module.device)
        self._stop(trainer)  # the checkpoint may be of the last step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        moved = trainer.accumulate_grad_batches
        done, total = (batch_idx + 1) // moved, int(trainer.num_training_batches) // moved
        due = done * self.validations // total > (done - 1) * self.validations // total
        if (batch_idx + 1) % moved or not due or module.cost_weight(batch_idx) < 1:
            return
        # ranks must stop at the same step, and may compute differently in the last digit
        reward = self.reward(module) if trainer.is_global_zero else 0.0
        reward = trainer.strategy.broadcast(reward)
        for logger in trainer.loggers:
            logger.log_metrics({"val/mean_reward": reward}, max(trainer.global_step - 1, 0))
        self.state |= {"steps": batch_idx + 1, "missed": self.state["missed"] + 1}
        if reward > self.state["reward"]:
            weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
            self.state |= {"reward": reward, "step": batch_idx + 1, "missed": 0, "weights": weights}
        self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.state["weights"]:
            pl_module.load_state_dict(self.state["weights"])
            if trainer.is_global_zero:
                write_json(self.path, {name: self.state[name] for name in ("step", "steps", "reward")})

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.patience and self.state["missed"] >= self.patience:
            trainer.should_stop = True

    @torch.no_grad()
    def reward(self, module: Any) -> float:
        """Mean reward of a GateModule's mode, in the scale of a step's: over 1 + price. For a target cost, of
        which every price is right for its moment alone, the mean score of the mode that costs it."""
        training = module.gate.training
        module.gate.eval()
        if module.price.config.mode == "target":
            module.calibrate(self.environment, (self.pairs // PRICES).unique())
        found = float(torch.cat([self._rewards(module, pairs) for pairs in self.pairs.split(CHUNK)]).mean())
        module.gate.tilt.zero_()
        module.gate.train(training)
        return found

    def _rewards(self, module: Any, pairs: Tensor) -> Tensor:
        rows = pairs // PRICES
        price: Tensor = module.price.at((pairs % PRICES + 0.5) / PRICES)
        mode = module.gate.policy(self.environment.observe(rows, price)).mode()
        score: Tensor = module.score(rows, mode, self.environment)
        of: RewardConfig = module.price.config
        if of.mode == "target":
            return score
        return of.reward(score, self.environment.cost(rows, mode), price) / (1 + price)
