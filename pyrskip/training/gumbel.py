"""Rule gumbel: a straight-through Gumbel sample of the selection, differentiated through score - price x cost.

Offline the score is the rollout table's multilinear extension, online the answer's probability with every tile's tokens
weighed by its gate. Source: arXiv:1611.01144; the straight-through gradient is biased.
"""

from typing import Any

from torch import Tensor

from pyrskip.reward import linear
from pyrskip.training.gate import GateModule


class GumbelModule(GateModule):
    policies = ("bernoulli", "categorical")

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        score, cost = self.environment.relaxed(rows, policy.rsample(self.config.temperature))
        reward = linear(score, cost, price * self.cost_weight(batch_idx))
        # dearer samples would drown the others in a batch of all prices: weigh by the range of the reward, 1 + price
        loss = -(reward / (1 + price)).mean() - self.config.entropy * policy.entropy().mean()
        self.record(rows, seen, policy, loss)
        return loss
