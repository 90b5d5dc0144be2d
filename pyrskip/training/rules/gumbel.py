"""Rule gumbel: straight-through Gumbel samples of the decision, differentiated through their mean reward.

Offline the reward is the rollout table's multilinear extension, online that of the answer's probability with
every tile's tokens weighed by its gate. Source: arXiv:1611.01144; the straight-through gradient is biased.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.policies import Policy
from pyrskip.training.gate import RULES, RewardConfigured, RewardModule


@dataclass(frozen=True)
class GumbelConfig(RewardConfigured):
    """temperature: of the relaxation. samples: of a question and step."""

    name: str = "gumbel"
    temperature: float = 0.5
    samples: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.samples < 1:
            raise UserError(
                f"rule.temperature={self.temperature}, samples={self.samples}: allowed: above 0, at least 1"
            )


@RULES.register("gumbel")
class GumbelModule(RewardModule):
    config_class = GumbelConfig
    default_policy = "bernoulli"
    listless = True
    config: GumbelConfig

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        return policy.dial and policy.relaxed and (policy.relaxed_online or not online)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        of, soft = self.reward(price, batch_idx), self.config.target == "probability"
        samples = (policy.rsample(self.config.temperature) for _ in range(self.config.samples))
        reward = torch.stack([self.environment.relaxed(rows, sample, of, soft) for sample in samples]).mean(0)
        entropy = policy.entropy().mean()
        policy_loss = -(self.weight(rows, price, batch_idx) * reward).mean()
        loss = policy_loss - self.entropy_weight(batch_idx) * entropy
        self.record(rows, seen, policy, loss, batch_idx, policy_loss=policy_loss, entropy=entropy)
        return loss
