"""Rule awares: GRPO with AwaRes's cost of asking for crops, which depends on whether any was needed.

Axes: B batch, T tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrskip.decision import Decision
from pyrskip.errors import UserError
from pyrskip.observation import Observation
from pyrskip.policies import Policy
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import listed
from pyrskip.rollouts import labels
from pyrskip.training.gate import RULES
from pyrskip.training.rules.reinforce import ReinforceConfig, ReinforceModule


@dataclass(frozen=True)
class AwaresConfig(ReinforceConfig):
    """margin: by how much the full pyramid's score may be better and the glance still do. Costs, in score:
    missed, of asking for nothing where the glance does not do; request, of asking; area, of asking for all,
    and in proportion for less. The paper's by default (arXiv:2603.16932), but for the margin: there a judge
    says what is right or tied, here the metric. It writes 0.01 x area, which is read in per cent: as a share,
    the full picture would cost 0.0075 more than a quadrant, and no reward would tell crops apart."""

    name: str = "awares"
    samples: int = 8
    baseline: str = "group_deviation"
    entropy: float = 0.5
    margin: float = 0.1
    missed: float = 2.0
    request: float = 0.25
    area: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin <= 1 or min(self.missed, self.request, self.area) < 0:
            raise UserError(
                f"rule.margin={self.margin}, missed={self.missed}, request={self.request}, area={self.area}: "
                "allowed: margin 0 to 1, costs at least 0"
            )


@RULES.register("awares")
class AwaresModule(ReinforceModule):
    """The score less these costs instead of price x cost: a gate takes the same decisions at all prices, or
    with reward.target those that a tilt of its logits makes as dear as that. The paper's cosine with the true
    answer is the score, and its penalty for leaving the fine-tuned model the bonus of entropy."""

    config_class = AwaresConfig
    default_policy = "categorical"
    forms = ("linear",)
    priced = False
    listless = False
    looks = False
    config: AwaresConfig

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        # one choice of a list, as the paper's; tile by tile the cost of missing keeps whatever helps at first
        return policy.dial and not policy.by_tile and issubclass(policy, CategoricalPolicy)

    def earned(self, rows: Any, seen: Observation, batch_idx: int) -> Callable[[Decision], Tensor]:
        c, actions = self.config, self.environment.layout.actions
        every, price = listed(seen, self.environment.layout), torch.zeros_like(seen.price)
        low, full = (
            self.environment.score(rows, every.take(torch.full_like(seen.capacity[:, 0], action)))
            for action in (actions.index("glance"), actions.full)
        )
        needed, whole = labels.awares(low, full, c.margin), seen.capacity[:, :-1].sum(-1)
        weight, counts = self.weight(rows, price, batch_idx), self.cost_weight(batch_idx)

        def earns(decision: Decision) -> Tensor:
            area = decision.tokens[:, :-1].sum(-1) / whole
            spent = cost(area, needed, c.missed, c.request, c.area)
            return weight * (self.score(rows, decision) - counts * spent)

        return earns


def cost(area: Tensor, needed: Tensor, missed: float, request: float, whole: float) -> Tensor:
    """What a decision costs, in score, [B]. area [B]: the share that is asked for of what there is beside the
    glance, 0 to 1; needed [B] bool: whether the glance does not do."""
    return torch.where(area > 0, request + whole * area, missed * needed)
