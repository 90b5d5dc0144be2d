"""Policy `utility`: the action of the best predicted score - price x cost. The price is arithmetic here and
no input of the gate, so one gate serves every price by design.

Axes: B batch, S actions.
"""

from torch import Tensor

from pyrskip.decision import ActionSet, Candidates, Decision
from pyrskip.observation import Observation
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import POLICIES, Deciding, Limit, listed


@POLICIES.register("utility")
class UtilityPolicy(CategoricalPolicy):
    """Outputs are logits of the score of every action, [B, S]; it samples at a temperature, in score."""

    options = ("temperature",)
    dial = False

    def __init__(self, logit: Tensor, candidates: Candidates, actions: ActionSet, temperature: float) -> None:
        super().__init__(logit, candidates, actions)
        self.temperature = temperature

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "UtilityPolicy":
        temperature = gate.config.temperature
        logit = (outputs.sigmoid() - (seen.price[:, None] + gate.tilt) * seen.cost) / temperature
        return cls(logit, listed(seen, gate.layout), gate.layout.actions, temperature)

    @property
    def merged(self) -> Tensor:
        """What a decision is worth is no more for being listed twice."""
        return self.logit

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """In score."""
        return super().margin(decision, max_tokens) * self.temperature
