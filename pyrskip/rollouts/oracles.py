"""Oracles: what a gate is measured against, read off a rollout table.

Axes: N questions, S listed actions. Values are score - price x relative cost, where the relative cost is FLOPs / unit.
"""

import torch
from torch import Tensor

from pyrskip.rollouts.table import RolloutTable


def by_type(table: RolloutTable, price: float, unit: float) -> dict[str, int]:
    """The listed action of the best mean value for each question type; the cheaper one in a tie.

    Fitted on the gate's training rollouts and played elsewhere: the yardstick for a gate's regret.
    """
    actions = len(table.actions)
    score, cost = table.score[:, :actions].double(), table.cost.flops[:, :actions].double() / unit
    best = {}
    for kind in sorted(set(table.types)):
        rows = torch.tensor([t == kind for t in table.types])
        best[kind] = int(_best(score[rows].mean(0)[None], cost[rows].mean(0)[None], price))
    return best


def by_sample(table: RolloutTable, price: float, unit: float) -> Tensor:
    """The listed action of the best value for each question, [N]; the cheaper one in a tie.

    It peeks at the answers: an upper bound, lucky by construction, never a target.
    """
    actions = len(table.actions)
    return _best(table.score[:, :actions].double(), table.cost.flops[:, :actions].double() / unit, price)


def _best(score: Tensor, cost: Tensor, price: float) -> Tensor:
    """score and cost [N, S] float64 -> [N]."""
    value = score - price * cost
    # float noise must not hide a tie
    ties = value >= value.amax(-1, keepdim=True) - 1e-9
    return cost.masked_fill(~ties, float("inf")).argmin(-1)
