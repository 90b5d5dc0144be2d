"""Policy `utility`: the action of the best predicted score - price x cost. The price is arithmetic here and
no input of the gate, so one gate serves every price by design.

Axes: B batch, S actions.
"""

from torch import Tensor

from pyrskip.observation import Observation
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import POLICIES, Deciding, listed


@POLICIES.register("utility")
class UtilityPolicy(CategoricalPolicy):
    """Outputs are logits of the score of every action, [B, S]; it samples at a temperature, in score."""

    options = ("temperature",)
    dial = False

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "UtilityPolicy":
        logit = (outputs.sigmoid() - (seen.price[:, None] + gate.tilt) * seen.cost) / gate.config.temperature
        return cls(logit, listed(seen, gate.layout), gate.layout.actions)
