"""Rule evidence: predict of each tile whether it shows what the answer needs, from selections of tiles that
were tried, and whether their answers were right.

Axes: B batch, K selections of a row that were tried, T tiles.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.policies import Policy
from pyrskip.policies.evidence import EvidencePolicy, missed
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.training import estimators
from pyrskip.training.gate import RULES, GateModule, RuleConfig


@dataclass(frozen=True)
class EvidenceConfig(RuleConfig):
    """No option of its own."""

    name: str = "evidence"


@RULES.register("evidence")
class EvidenceModule(GateModule):
    """Cross-entropy of the noisy-or of the kept tiles: nobody says which tile it was, only what came of
    keeping some. The price is in the policy's arithmetic, as that of `supervised`."""

    config_class = EvidenceConfig
    default_policy = "evidence"
    forms = ("linear",)

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        return issubclass(policy, EvidencePolicy) and not online

    @classmethod
    def check(cls, config: RuleConfig, gate: GateConfig, reward: RewardConfig) -> None:
        if config.online:
            raise UserError(
                "rule.online=true with rule.name='evidence', which learns from the selections that rollouts "
                "have tried; allowed: false"
            )
        super().check(config, gate, reward)

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        price = self.price.sample(len(rows))
        seen = self.environment.observe(rows, price)
        assert isinstance(self.environment, TableEnvironment)
        selection, right = self.environment.tried(rows, soft=self.config.target == "probability")
        outputs = self.gate(seen)
        loss = estimators.missed_cross_entropy(missed(outputs, selection), right).mean()
        self.record(rows, seen, self.gate.policy(seen, outputs), loss, batch_idx)
        return loss
