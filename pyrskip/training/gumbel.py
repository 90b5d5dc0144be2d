"""Rule gumbel: straight-through Gumbel samples of the decision, differentiated through their mean reward.

Offline the reward is the rollout table's multilinear extension, online that of the answer's probability with
every tile's tokens weighed by its gate. Source: arXiv:1611.01144; the straight-through gradient is biased.
"""

from typing import Any

import torch
from torch import Tensor

from pyrskip.training.gate import GateModule


class GumbelModule(GateModule):
    policies = ("bernoulli", "rungs", "categorical")
    # online a tile's gate weighs its tokens: it has no gradient between one number of tokens and another
    offline_only = ("rungs",)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        worth, soft = self.worth(price, batch_idx), self.config.target == "probability"
        samples = (policy.rsample(self.config.temperature) for _ in range(self.config.samples))
        reward = torch.stack(
            [self.environment.relaxed(rows, sample, worth, soft) for sample in samples]
        ).mean(0)
        entropy = policy.entropy().mean()
        policy_loss = -(self.weight(rows, price, batch_idx) * reward).mean()
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss
