"""Policies: distributions over decisions, on one interface.

Axes: B batch, T tiles, S actions. Everything here is float32, under autocast too: Gumbel noise does not
survive bfloat16.

Inference runs `mode` of the distribution that was trained. `rsample` gives gates with a straight-through
gradient, hard (0 or 1) in value: the value does not depend on the temperature, only the gradient does
(arXiv:1611.01144, arXiv:1308.3432).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError

# odd, so that its powers stay different in 64 bits: decisions are told apart by a sum of tokens times powers
# of it
_HASH = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Relaxed:
    """A straight-through sample. keep [B, T]: gate of each tile; weight [B, S]: of each listed action, None
    where the actions do not list every selection."""

    keep: Tensor
    weight: Tensor | None


class Policy(Protocol):
    def sample(self) -> Tensor:
        """A random decision, [B, T] int64."""
        ...

    def rsample(self, temperature: float) -> Relaxed:
        """A random selection with a straight-through gradient."""
        ...

    def log_prob(self, asked: Tensor) -> Tensor:
        """Log-probability of a decision [B, T] -> [B]; -inf for one that it never takes."""
        ...

    def entropy(self) -> Tensor:
        """[B], nats."""
        ...

    def marginals(self) -> Tensor:
        """Probability that each tile is kept, [B, T]."""
        ...

    @property
    def probs(self) -> Tensor | None:
        """Probability of each listed action, [B, S], where the actions list every selection."""
        ...

    def mode(self, max_tokens: int | None = None) -> Tensor:
        """The decision that inference runs, [B, T] int64, of at most max_tokens tokens a row where that is
        given."""
        ...


class BernoulliPolicy:
    """Each tile is kept with probability sigmoid(logit), on its own; forced tiles (the glance) always,
    padding never.

    logit [B, T] float, capacity [B, T] int64, forced [T] bool.
    """

    def __init__(
        self, logit: Tensor, capacity: Tensor, actions: ActionSet, budget: BudgetRule, forced: Tensor
    ) -> None:
        self.logit, self.capacity, self.actions, self.budget = logit.float(), capacity, actions, budget
        self.forced = forced.to(logit.device) & (capacity > 0)
        self.free = ~forced.to(logit.device) & (capacity > 0)

    def _asked(self, keep: Tensor) -> Tensor:
        return self.budget.tokens((keep & self.free) | self.forced, self.capacity)

    def sample(self) -> Tensor:
        return self._asked(torch.rand_like(self.logit) < self.logit.sigmoid())

    def rsample(self, temperature: float) -> Relaxed:
        keep = gumbel_sigmoid(self.logit, temperature)
        keep = keep * self.free + self.forced.float()
        return Relaxed(keep, multilinear(keep, self.actions.selection) if self._enumerable else None)

    def log_prob(self, asked: Tensor) -> Tensor:
        keep = (asked > 0).float()
        return (self.free * -F.binary_cross_entropy_with_logits(self.logit, keep, reduction="none")).sum(-1)

    def entropy(self) -> Tensor:
        p = self.logit.sigmoid()
        return (self.free * F.binary_cross_entropy_with_logits(self.logit, p, reduction="none")).sum(-1)

    def marginals(self) -> Tensor:
        return self.logit.sigmoid() * self.free + self.forced.float()

    @property
    def probs(self) -> Tensor | None:
        return multilinear(self.marginals(), self.actions.selection) if self._enumerable else None

    @property
    def _enumerable(self) -> bool:
        return len(self.actions) == 1 << (self.logit.shape[-1] - 1)

    def mode(self, max_tokens: int | None = None) -> Tensor:
        keep = (self.logit > 0) & self.free
        asked = self._asked(keep)
        if max_tokens is None:
            return asked
        check_max_tokens(max_tokens)
        for _ in range(keep.shape[-1]):
            # what matters least goes first, one tile a round, until the row fits
            over = asked.sum(-1) > max_tokens
            least = self.logit.masked_fill(~keep, float("inf")).argmin(-1, keepdim=True)
            keep = keep & ~(over[:, None] & torch.zeros_like(keep).scatter(1, least, True))
            asked = self._asked(keep)
        return clip(asked, max_tokens)


class CategoricalPolicy:
    """One of the listed actions. logit [B, S] float, asked [B, S, T] int64: the decision of each action."""

    def __init__(self, logit: Tensor, asked: Tensor, actions: ActionSet) -> None:
        self.logit, self.asked, self.actions = logit.float(), asked, actions

    def _pick(self, action: Tensor) -> Tensor:
        return self.asked[torch.arange(len(action), device=action.device), action]

    def sample(self) -> Tensor:
        return self._pick(torch.distributions.Categorical(logits=self.logit).sample())

    def rsample(self, temperature: float) -> Relaxed:
        weight = gumbel_softmax(self.logit, temperature)
        return Relaxed((weight[..., None] * self.actions.selection.to(weight)).sum(1), weight)

    def log_prob(self, asked: Tensor) -> Tensor:
        # actions that differ in padding alone are one and the same decision
        same = (asked[:, None] == self.asked).all(-1)
        return self.logit.log_softmax(-1).masked_fill(~same, float("-inf")).logsumexp(-1)

    def entropy(self) -> Tensor:
        # of decisions, not of actions: those that are the same are sorted beside each other and counted as
        # one
        factors = torch.tensor(
            [_signed(_HASH**tile) for tile in range(self.asked.shape[-1])], device=self.asked.device
        )
        code, order = (self.asked * factors).sum(-1).sort(-1)
        decision = F.pad(code.diff(dim=-1) != 0, (1, 0)).long().cumsum(-1)
        probs = self.probs.gather(-1, order)
        probs = torch.zeros_like(probs).scatter_add(-1, decision, probs)
        return -(probs * probs.clamp(min=1e-30).log()).sum(-1)

    def marginals(self) -> Tensor:
        return (self.probs[..., None] * (self.asked > 0)).sum(1)

    @property
    def probs(self) -> Tensor:
        return self.logit.softmax(-1)

    def mode(self, max_tokens: int | None = None) -> Tensor:
        if max_tokens is None:
            return self._pick(self.logit.argmax(-1))
        check_max_tokens(max_tokens)
        beside = self.asked[..., :-1].sum(-1)
        fits = self.asked.sum(-1) <= max_tokens
        fits |= ~fits.any(-1, keepdim=True) & (beside == beside.amin(-1, keepdim=True))
        return clip(self._pick(self.logit.masked_fill(~fits, float("-inf")).argmax(-1)), max_tokens)


class RungsPolicy(CategoricalPolicy):
    """Every tile takes one of its choices on its own; the action set lists every combination
    (`ActionSet.complete`).

    choice [B, T - 1, R] float: logits of what is asked of each tile but the glance; bias [B, S]: added to the
    actions' logits.
    """

    def __init__(self, choice: Tensor, asked: Tensor, actions: ActionSet, bias: Tensor | float = 0.0) -> None:
        self.choice = choice.float()
        super().__init__(independent(self.choice, actions) + bias, asked, actions)

    def rsample(self, temperature: float) -> Relaxed:
        picked = gumbel_softmax(self.choice, temperature)
        weight = picked[:, 0]
        for tile in range(1, picked.shape[1]):
            weight = (weight[:, :, None] * picked[:, None, tile]).flatten(1)
        return Relaxed(F.pad(1 - picked[..., 0], (0, 1), value=1.0), weight)


def independent(choice: Tensor, actions: ActionSet) -> Tensor:
    """Log-probability of each action where tiles choose on their own. choice [B, T - 1, R] logits -> [B,
    S]."""
    one_hot = F.one_hot(actions.steps[:, :-1], choice.shape[-1]).to(choice)
    return choice.log_softmax(-1).flatten(1) @ one_hot.flatten(1).T


def chained(choice: Tensor, coupling: Tensor, actions: ActionSet) -> Tensor:
    """Log-probability of each action where tiles choose in turn, the coarsest first, each knowing what was
    chosen before.

    choice [B, F, R]: logits of the F = T - 1 tiles beside the glance; coupling [B, F, R, F, R]: what choice
    [u, q] of a coarser tile u adds to logit [t, r] of a finer one, t < u (entries with t >= u do not count).
    Fully visible sigmoid belief net (Neal 1992), of R choices. -> [B, S].
    """
    chosen = F.one_hot(actions.steps[:, :-1], choice.shape[-1]).to(choice)
    tiles = torch.arange(choice.shape[1], device=choice.device)
    before = chosen[:, None] * (tiles[:, None] < tiles)[None, :, :, None].to(
        choice
    )  # [S, t, u, q]: u chose before t
    logit = choice[:, None] + torch.einsum("btruq,stuq->bstr", coupling, before)
    return (logit.log_softmax(-1) * chosen).sum((-1, -2))


def gumbel_sigmoid(logit: Tensor, temperature: float) -> Tensor:
    """A Bernoulli(sigmoid(logit)) sample with the gradient of its concrete relaxation. Any shape -> same
    shape, 0 or 1."""
    u = torch.rand_like(logit).clamp(1e-7, 1 - 1e-7)
    soft = ((logit + u.log() - (-u).log1p()) / temperature).sigmoid()
    hard = (soft > 0.5).float()
    return hard + (soft - soft.detach())


def gumbel_softmax(logit: Tensor, temperature: float) -> Tensor:
    """A one-hot Categorical(logit) sample [..., S] with the gradient of its concrete relaxation."""
    noise = -torch.empty_like(logit).exponential_().clamp(min=1e-20).log()
    soft = ((logit + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), logit.shape[-1]).float()
    return hard + (soft - soft.detach())


def multilinear(keep: Tensor, selection: Tensor) -> Tensor:
    """Weight of each selection under independent tiles: prod_t keep_t if kept else 1 - keep_t.

    keep [B, T] in [0, 1], selection [S, T] bool -> [B, S]; sums to 1 over all 2^T selections.
    """
    on = selection.to(keep.device)[None]
    return torch.where(on, keep[:, None], 1 - keep[:, None]).prod(-1)


def _signed(number: int) -> int:
    """What is left of a number in 64 bits with a sign."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens}: at least 1 is needed, for the glance")


def clip(asked: Tensor, max_tokens: int) -> Tensor:
    """Take from the end of the row, the glance, what is still over: it is then pooled further."""
    over = (asked.sum(-1) - max_tokens).clamp(min=0)
    return torch.cat([asked[:, :-1], asked[:, -1:] - over[:, None]], dim=1)


POLICIES = ("bernoulli", "categorical", "utility", "rungs", "autoregressive", "sequential")
PRODUCTS = ("rungs", "autoregressive", "sequential")
"""Kinds of policies, and those among them that need a complete action set: a choice a tile, all combinations
listed."""
