"""Rule reinforce: the score function with a baseline. Any policy, any environment, any reward.

Axes: B batch, K samples of a row, T tiles.
"""

from typing import Any

import torch
from torch import Tensor

from pyrskip.training import estimators
from pyrskip.training.gate import GateModule

MOMENTUM = 0.95


class ReinforceModule(GateModule):
    policies = ("bernoulli", "rungs", "categorical", "autoregressive", "sequential")
    soft = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        asked = [policy.sample() for _ in range(self.config.samples)]
        reward = torch.stack([self.reward(rows, a, price, batch_idx) for a in asked], dim=1)
        log_prob = torch.stack([policy.log_prob(a) for a in asked], dim=1)
        advantage = self.advantage(reward, lambda: self.reward(rows, policy.mode(), price, batch_idx))
        entropy = policy.entropy().mean()
        policy_loss = estimators.score_function(log_prob, advantage)
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss

    @torch.no_grad()
    def reward(self, rows: Any, asked: Tensor, price: Tensor, batch_idx: int) -> Tensor:
        """Weighed as the step weighs its rows, [B]."""
        worth = self.worth(price, batch_idx)(self.score(rows, asked), self.environment.cost(rows, asked))
        return self.weight(rows, price, batch_idx) * worth

    def advantage(self, reward: Tensor, greedy: Any) -> Tensor:
        """[B, K] -> [B, K] by the configured baseline; greedy() gives the mode's reward [B]."""
        kind = self.config.baseline
        if kind == "self_critical":
            return estimators.self_critical(reward, greedy())
        if kind == "leave_one_out":
            return estimators.leave_one_out(reward)
        if kind.startswith("group"):
            return estimators.group(reward, deviation=kind == "group_deviation")
        if kind == "running_mean":
            result = estimators.constant(reward, self.mean)
            # only later steps may know of these rewards
            self.mean.lerp_(self.over_ranks(reward.mean()), 1 - MOMENTUM)
            return result
        return reward
