"""Rule supervised: predict the score of every action; the policy then takes the best score - price x cost.

Axes: B batch, S actions.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyrskip.policies import Policy
from pyrskip.policies.utility import UtilityPolicy
from pyrskip.training.gate import RULES, GateModule, RuleConfig


@dataclass(frozen=True)
class SupervisedConfig(RuleConfig):
    """No option of its own."""

    name: str = "supervised"


@RULES.register("supervised")
class SupervisedModule(GateModule):
    """The price is in the policy's arithmetic, not in what is learned, so every price is served by one gate.

    Cross-entropy with a soft target is least where the prediction is the target's mean. The answer's
    probability, the default target, has the same mean as the score if the model is calibrated, and tells a
    near miss from a clear one.
    """

    config_class = SupervisedConfig
    default_policy = "utility"
    forms = ("linear",)

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        return issubclass(policy, UtilityPolicy)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        predicted = self.gate(seen)  # logits, [B, S]
        loss = F.binary_cross_entropy_with_logits(predicted, self.scores(rows))
        self.record(rows, seen, self.gate.policy(seen, predicted), loss, batch_idx)
        return loss
