"""Policy `categorical`: one of the listed actions.

Axes: B batch, T tiles, S actions.
"""

import torch
from torch import Tensor

from pyrskip.decision import ActionSet, Candidates, Decision
from pyrskip.observation import Layout, Observation
from pyrskip.policies.policy import (
    POLICIES,
    Deciding,
    Policy,
    PolicyConfig,
    Relaxed,
    check_max_tokens,
    clip,
    listed,
)
from pyrskip.policies.sampling import gumbel_softmax


@POLICIES.register("categorical")
class CategoricalPolicy(Policy):
    """logit [B, S] float; candidates: the decisions of the actions."""

    def __init__(self, logit: Tensor, candidates: Candidates, actions: ActionSet) -> None:
        self.logit, self.candidates, self.actions = logit.float(), candidates, actions

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.zeros(len(layout.actions))

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "CategoricalPolicy":
        return cls(outputs - gate.tilt * seen.cost, listed(seen, gate.layout), gate.layout.actions)

    def sample(self) -> Decision:
        return self.candidates.take(torch.distributions.Categorical(logits=self.logit).sample())

    def rsample(self, temperature: float) -> Relaxed:
        weight = gumbel_softmax(self.logit, temperature)
        return Relaxed((weight[..., None] * self.actions.selection.to(weight)).sum(1), weight)

    def log_prob(self, decision: Decision) -> Tensor:
        assert decision.action is not None, "a decision of the list is asked about"
        first = self.candidates.first
        same = first == first.gather(1, decision.action[:, None])
        return self.logit.log_softmax(-1).masked_fill(~same, float("-inf")).logsumexp(-1)

    def entropy(self) -> Tensor:
        # of decisions, not of actions: those that are the same count as one
        probs = torch.zeros_like(self.probs).scatter_add(-1, self.candidates.first, self.probs)
        return -(probs * probs.clamp(min=1e-30).log()).sum(-1)

    def marginals(self) -> Tensor:
        return (self.probs[..., None] * (self.candidates.tokens > 0)).sum(1)

    @property
    def probs(self) -> Tensor:
        return self.logit.softmax(-1)

    def mode(self, max_tokens: int | None = None) -> Decision:
        if max_tokens is None:
            return self.candidates.take(self.logit.argmax(-1))
        check_max_tokens(max_tokens)
        tokens = self.candidates.tokens
        beside = tokens[..., :-1].sum(-1)
        fits = tokens.sum(-1) <= max_tokens
        fits |= ~fits.any(-1, keepdim=True) & (beside == beside.amin(-1, keepdim=True))
        return clip(self.candidates.take(self.logit.masked_fill(~fits, float("-inf")).argmax(-1)), max_tokens)
