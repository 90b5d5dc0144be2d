"""Keeps the weights with which a gate decides the validation rollouts best, and ends a training that no
longer gets better: taught scores of 0 and 1, a gate comes to know its own questions by heart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.files import write_json
from pyrskip.policies.policy import listed
from pyrskip.rollouts.environments import TableEnvironment

KEPT = "kept.json"
PRICES, SHARE, LEAST, CHUNK = 5, 8, 1024, 512
"""Prices that questions are decided at, evenly among those that are drawn. A validation asks the gate as
many as an eighth of what it learns from between two, for less than a twentieth of the time, but so many at
least; how many at once."""


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
        self.order = torch.randperm(questions, generator=torch.Generator().manual_seed(0))

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.environment.to(pl_module.device)
        self.order = self.order.to(pl_module.device)
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
        gate, of, training = module.gate, module.price.config, module.gate.training
        gate.eval()
        device, questions = self.order.device, len(self.order)
        prices = module.price.at((torch.arange(PRICES, device=device) + 0.5) / PRICES).unique()
        learnt = module.config.batch * module.optimizer_config.steps // max(1, self.validations)
        # a gate that is given the price is asked about each question at one of them, then at the next
        rounds = len(prices) if gate.dial else 1
        validated = torch.arange(min(max(LEAST, learnt // SHARE), rounds * questions), device=device)
        if of.mode == "target":
            module.calibrate(self.environment, self.order[: len(validated)])
        rewards = []
        for some in validated.split(CHUNK):
            place, turn = some % questions, some // questions
            rows = self.order[place]
            price = prices[(place + turn) % len(prices)]
            seen = self.environment.observe(rows, price)
            asks, outputs = [seen], gate(seen)
            if not gate.dial:  # what it predicts, and between what it decides, is alike at every price
                seen = replace(seen, candidates=listed(seen, gate.layout))
                asks = [replace(seen, price=each.expand_as(price)) for each in prices]
            for ask in asks:
                mode = self.environment.decide(rows, gate.policy(ask, outputs))
                score, cost = module.score(rows, mode, self.environment), self.environment.cost(rows, mode)
                reward = of.reward(score, cost, ask.price) / (1 + ask.price)
                rewards.append(score if of.mode == "target" else reward)
        gate.tilt.zero_()
        gate.train(training)
        return float(torch.cat(rewards).mean())
