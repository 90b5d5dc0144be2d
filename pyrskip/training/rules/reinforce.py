"""Rule reinforce: the score function with a baseline. Any policy, any environment, any reward.

Axes: B batch, K samples of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrskip.decision import Decision
from pyrskip.errors import UserError
from pyrskip.observation import Observation
from pyrskip.training import estimators
from pyrskip.training.estimators import BASELINES, Sampled
from pyrskip.training.gate import RULES, RewardConfigured, RewardModule

MOMENTUM = 0.95


@dataclass(frozen=True)
class ReinforceConfig(RewardConfigured):
    """samples: decisions of a question and step. baseline: a registered one (`estimators.BASELINES`)."""

    name: str = "reinforce"
    samples: int = 4
    baseline: str = "leave_one_out"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = BASELINES[self.baseline].samples
        if self.samples < least:
            raise UserError(
                f"rule.samples={self.samples} with rule.baseline={self.baseline}: allowed: at least {least}"
            )


@RULES.register("reinforce")
class ReinforceModule(RewardModule):
    config_class = ReinforceConfig
    default_policy = "bernoulli"
    listless = True
    looks = True
    config: ReinforceConfig

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy, earned = self.gate.policy(seen), self.earned(rows, seen, batch_idx)
        samples = [policy.sample() for _ in range(self.config.samples)]
        reward = torch.stack([earned(s) for s in samples], dim=1)
        log_prob = torch.stack([policy.log_prob(s) for s in samples], dim=1)
        advantage = self.advantage(reward, lambda: earned(policy.mode()))
        entropy = policy.entropy().mean()
        policy_loss = estimators.score_function(log_prob, advantage)
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss

    def earned(self, rows: Any, seen: Observation, batch_idx: int) -> Callable[[Decision], Tensor]:
        """The step's reward: a decision -> what it earns, weighed as the step weighs its rows, [B]."""
        of, weight = self.reward(seen.price, batch_idx), self.weight(rows, seen.price, batch_idx)
        return lambda d: weight * of(self.score(rows, d), self.environment.cost(rows, d))

    def advantage(self, reward: Tensor, greedy: Any) -> Tensor:
        """[B, K] -> [B, K] by the configured baseline; greedy() gives the mode's reward [B]."""
        baseline = BASELINES[self.config.baseline]
        advantage = baseline.advantage(Sampled(reward, greedy, self.mean))
        if baseline.mean:  # only later steps may know of these rewards
            self.mean.lerp_(self.over_ranks(reward.mean()), 1 - MOMENTUM)
        return advantage
