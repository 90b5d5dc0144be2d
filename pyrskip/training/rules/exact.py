"""Rule exact: the expected reward over every listed action, differentiated. No sampling, no variance.

Axes: B batch, S actions.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.training import estimators
from pyrskip.training.gate import RULES, RewardConfigured, RewardModule


@dataclass(frozen=True)
class ExactConfig(RewardConfigured):
    """No option of its own."""

    name: str = "exact"


@RULES.register("exact")
class ExactModule(RewardModule):
    config_class = ExactConfig
    default_policy = "categorical"

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        probs = policy.probs
        if probs is None:
            raise UserError(
                "rule.name='exact' needs every decision's probability, and "
                f"gate.policy={self.gate.config.policy} does not list them for "
                f"{len(self.environment.layout.actions)} actions; allowed: rule=reinforce, another policy"
            )
        reward = self.reward(price, batch_idx)(self.scores(rows), seen.cost)
        entropy = policy.entropy().mean()
        expected = estimators.expectation(probs, reward)
        policy_loss = -(self.weight(rows, price, batch_idx) * expected).mean()
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss
