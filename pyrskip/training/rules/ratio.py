"""Rule ratio: keep a tile where the answer's loss without it is high against what it was of late.

Axes: B batch, S actions, T tiles.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.policies import Policy
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.reward import RewardConfig
from pyrskip.rollouts import labels
from pyrskip.training.gate import RULES, GateModule, RuleConfig


@dataclass(frozen=True)
class RatioConfig(RuleConfig):
    """rate: share of questions that keep a tile; memory: of the running percentile, a step's weight is 1 less
    that. Losses are all that is learned from, so target is the probability."""

    name: str = "ratio"
    rate: float = 0.5
    memory: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1 or not 0 <= self.memory < 1:
            raise UserError(
                f"rule.rate={self.rate}, memory={self.memory}: allowed: above 0 and below 1, and at least 0 "
                "and below 1"
            )


@RULES.register("ratio")
class RatioModule(GateModule):
    """The router of InternVL3.5-Flash (arXiv:2508.18265), for tiles: no answer is judged, and a tile is kept
    at a fixed rate, where its loss ratio is above the percentile of those of earlier steps. A question's
    label depends on no other of its batch. The rate is the dial; the labels know no price.
    """

    config_class = RatioConfig
    default_policy = "bernoulli"
    forms = ("linear",)
    priced = False
    threshold: Tensor

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        layout = self.environment.layout
        steps = 1 - torch.eye(layout.tiles - 1, dtype=torch.int64)  # every tile but one
        without = layout.actions.number(steps)
        if without is None:
            raise UserError(
                "rule.name='ratio' needs every tile's absence listed; allowed: actions without a sample"
            )
        self.without = without.tolist()
        # a ratio of 1, in logs: at first a tile is kept where it is of any use
        self.register_buffer("threshold", torch.zeros(layout.tiles - 1))

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        # one that says keep or skip of each tile alone, and no score
        return issubclass(policy, BernoulliPolicy) and policy.dial and policy.independent

    @classmethod
    def check(cls, config: RuleConfig, gate: GateConfig, reward: RewardConfig) -> None:
        super().check(config, gate, reward)
        if config.target != "probability":
            raise UserError(
                f"rule.target={config.target} has no loss, which rule.name='ratio' compares; allowed: "
                "probability"
            )

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        seen = self.environment.observe(rows, self.price.sample(len(rows)))
        policy = self.gate.policy(seen)
        assert isinstance(policy, BernoulliPolicy)
        chance = self.scores(rows)
        ratio = labels.log_ratio(chance[:, self.environment.layout.actions.full], chance[:, self.without])
        keep = torch.cat([ratio > self.threshold, torch.ones_like(ratio[:, :1], dtype=torch.bool)], dim=1)
        loss = -policy.log_prob(policy.decide(keep)).mean() / len(self.threshold)
        self.record(rows, seen, policy, loss, batch_idx)
        # only now, so that no label depends on its own step's questions
        every = ratio
        if self.ranks > 1:
            every = torch.tensor(self.of_ranks({"ratio": ratio.tolist()})["ratio"], device=ratio.device)
        self.threshold.lerp_(every.quantile(1 - self.config.rate, dim=0), 1 - self.config.memory)
        return loss
