"""A learning rule that imitates the best action of each question."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.training.gate import RULES, GateModule, RuleConfig


@dataclass(frozen=True)
class ImitationConfig(RuleConfig):
    """smoothing: share of the target that goes to all actions alike."""

    name: str = "toy_rule"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise UserError(f"rule.smoothing={self.smoothing}: allowed: at least 0 and below 1")


@RULES.register("toy_rule")
class ImitationModule(GateModule):
    config_class = ImitationConfig
    default_policy = "categorical"

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        assert policy.probs is not None
        log_probs = policy.probs.clamp(min=1e-8).log()
        best = (self.scores(rows) - price[:, None] * seen.cost).argmax(-1)
        hit = log_probs.gather(1, best[:, None]).squeeze(1)
        share = self.config.smoothing
        loss = -((1 - share) * hit + share * log_probs.mean(-1)).mean()
        self.record(rows, seen, policy, loss, batch_idx)
        return loss
