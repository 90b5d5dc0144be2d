"""Rule cares: a classifier of the cheapest action that is good enough, as CARES trains one.

Axes: B batch, S actions.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.policies import Policy
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.rollouts import labels
from pyrskip.training.gate import RULES, GateModule, RuleConfig


@dataclass(frozen=True)
class CaresConfig(RuleConfig):
    """enough: score of an action that may be the label; margin: by how much a dearer one may be better;
    smoothing: share of the label that goes to all actions alike. The paper's by default (arXiv:2510.19496,
    where the score is ANLS: rule.target=score)."""

    name: str = "cares"
    enough: float = 0.85
    margin: float = 0.1
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.enough <= 1 and 0 <= self.margin <= 1 and 0 <= self.smoothing < 1):
            raise UserError(
                f"rule.enough={self.enough}, margin={self.margin}, smoothing={self.smoothing}: allowed: 0 to "
                "1, 0 to 1, and at least 0 and below 1"
            )


@RULES.register("cares")
class CaresModule(GateModule):
    """Its labels know no price: a gate takes the same decisions at all of them, or with reward.target those
    that a tilt of its logits makes as dear as that."""

    config_class = CaresConfig
    default_policy = "categorical"
    forms = ("linear",)
    priced = False

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        return policy.dial and not policy.by_tile and issubclass(policy, CategoricalPolicy)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        seen = self.environment.observe(rows, self.price.sample(len(rows)))
        policy = self.gate.policy(seen)
        assert isinstance(policy, CategoricalPolicy)
        label = labels.cares(self.scores(rows), seen.cost, self.config.enough, self.config.margin)
        loss = F.cross_entropy(policy.logit, label, label_smoothing=self.config.smoothing)
        self.record(rows, seen, policy, loss, batch_idx)
        return loss
