"""Rule exact: the expected reward over every listed action, differentiated. No sampling, no variance.

Axes: B batch, S actions.
"""

from typing import Any

from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.training import estimators
from pyrskip.training.gate import GateModule


class ExactModule(GateModule):
    policies = ("categorical", "bernoulli", "rungs", "autoregressive", "sequential")

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        probs = policy.probs
        if probs is None:
            raise UserError(
                "rule.name='exact' needs every decision's probability, and "
                f"gate.policy={self.gate.config.policy} does not "
                f"list them for {len(self.environment.layout.actions)} actions; allowed: rule=reinforce, "
                "another policy"
            )
        reward = self.worth(price, batch_idx)(self.scores(rows), seen.cost)
        entropy = policy.entropy().mean()
        expected = estimators.expectation(probs, reward)
        policy_loss = -(self.weight(rows, price, batch_idx) * expected).mean()
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss
