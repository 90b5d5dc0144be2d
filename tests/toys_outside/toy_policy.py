"""A policy over the listed actions that can be no surer than a bound."""

from torch import Tensor

from pyrskip.observation import Observation
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import POLICIES, Deciding, listed

BOUND = 5.0


@POLICIES.register("toy_policy")
class BoundedPolicy(CategoricalPolicy):
    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "BoundedPolicy":
        logit = BOUND * (outputs / BOUND).tanh() - gate.tilt * seen.cost
        return cls(logit, listed(seen, gate.layout), gate.layout.actions)
