"""Oracles: what a gate is measured against, read off a rollout table.

Axes: N questions, S listed actions. Values are score - price x relative cost, where the relative cost is
FLOPs / unit.
"""

import torch
from torch import Tensor

from pyrskip.errors import UserError
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


def cross(table: RolloutTable, other: RolloutTable, price: float, unit: float) -> Tensor:
    """The listed action that is best for each question in `other`, to be played in `table`, [N].

    other: the same questions rolled out with another flex seed; unit: its own FLOPs of relative cost 1. Luck
    of one model's answers does not carry over to another's, so this is an upper bound that can be reached,
    which `by_sample` is not. Raises UserError where the two tables do not list the same questions and
    actions.
    """
    if other.actions.names != table.actions.names:
        raise UserError(
            "oracle:cross needs one action set: the other rollouts list "
            f"{', '.join(other.actions.names[:8])}, these {', '.join(table.actions.names[:8])}"
        )
    where = {key: row for row, key in enumerate(other.keys)}
    missing = [key for key in table.keys if key not in where]
    if missing:
        raise UserError(
            f"oracle:cross needs the same questions: the other {other.split} rollouts lack {missing[0]!r}"
        )
    return by_sample(other, price, unit)[torch.tensor([where[key] for key in table.keys])]


def _best(score: Tensor, cost: Tensor, price: float) -> Tensor:
    """score and cost [N, S] float64 -> [N]."""
    value = score - price * cost
    # float noise must not hide a tie
    ties = value >= value.amax(-1, keepdim=True) - 1e-9
    return cost.masked_fill(~ties, float("inf")).argmin(-1)
