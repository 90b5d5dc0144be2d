"""Rule supervised: regress the score of every action; the policy then takes the best score - price x cost.

Axes: B batch, S actions.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyrskip.training.gate import GateModule


class SupervisedModule(GateModule):
    """The price is in the policy's arithmetic, not in what is learned, so every price is served by one gate."""

    policies = ("utility",)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        predicted = self.gate(seen)  # [B, S]
        loss = F.mse_loss(predicted, self.environment.scores(rows))
        self.record(rows, seen, self.gate.policy(seen, predicted), loss)
        return loss
