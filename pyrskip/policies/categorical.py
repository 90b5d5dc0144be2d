"""Policy `categorical`: one of the listed actions.

Axes: B batch, T tiles, S actions.
"""

from functools import cached_property

import torch
from torch import Tensor

from pyrskip.decision import ActionSet, Candidates, Decision
from pyrskip.observation import Layout, Observation
from pyrskip.policies.policy import (
    POLICIES,
    Deciding,
    Limit,
    Policy,
    PolicyConfig,
    Relaxed,
    clip,
    limit_of,
    listed,
)
from pyrskip.policies.sampling import draw, gumbel_softmax
from pyrskip.transfer import sent


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
        return self.candidates.take(draw(self.logit))

    def rsample(self, temperature: float) -> Relaxed:
        weight = gumbel_softmax(self.logit, temperature)
        return Relaxed((weight[..., None] * sent(self.actions.selection, weight.device)).sum(1), weight)

    def log_prob(self, decision: Decision) -> Tensor:
        return self.logit.log_softmax(-1).masked_fill(~self._same(decision), float("-inf")).logsumexp(-1)

    def entropy(self) -> Tensor:
        # of decisions, not of actions: those that are the same count as one
        probs = torch.zeros_like(self.probs).scatter_add(-1, self.candidates.first, self.probs)
        return -(probs * probs.clamp(min=1e-30).log()).sum(-1)

    def marginals(self) -> Tensor:
        return (self.probs[..., None] * (self.candidates.tokens > 0)).sum(1)

    @property
    def probs(self) -> Tensor:
        return self.logit.softmax(-1)

    @cached_property
    def merged(self) -> Tensor:
        """The logit of each action's decision [B, S]: actions that make the same decision share their
        probability."""
        weight, first = (self.logit - self.logit.amax(-1, keepdim=True)).exp(), self.candidates.first
        total = torch.zeros_like(weight).scatter_add(-1, first, weight).gather(-1, first)
        others = (total - weight) / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        return self.logit + others.log1p()

    def mode(self, max_tokens: Limit = None) -> Decision:
        if max_tokens is None:
            return self.candidates.take(self.merged.argmax(-1))
        limit = limit_of(max_tokens, self.logit)
        return clip(self.candidates.take(self._fitting(limit).argmax(-1)), limit)

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        logit = self.merged if max_tokens is None else self._fitting(limit_of(max_tokens, self.logit))
        same = self._same(decision)
        return logit.masked_fill(~same, float("-inf")).amax(-1) - logit.masked_fill(same, float("-inf")).amax(
            -1
        )

    def _fitting(self, limit: Tensor) -> Tensor:
        """The merged logits [B, S], -inf for what asks for more tokens than limit [B]; where all do, for what
        asks for more than the least beside the glance."""
        tokens = self.candidates.tokens
        beside = tokens[..., :-1].sum(-1)
        fits = tokens.sum(-1) <= limit[:, None]
        fits = fits | (~fits.any(-1, keepdim=True) & (beside == beside.amin(-1, keepdim=True)))
        return self.merged.masked_fill(~fits, float("-inf"))

    def _same(self, decision: Decision) -> Tensor:
        """Which actions make the decision, [B, S] bool."""
        assert decision.action is not None, "a decision of the list is asked about"
        first = self.candidates.first
        return first == first.gather(1, decision.action[:, None])
