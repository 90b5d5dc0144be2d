"""Policy `bernoulli`: each tile is kept with a probability of its own; the glance always, padding never.

Axes: B batch, T tiles.
"""

from copy import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.policies.policy import POLICIES, Deciding, Limit, Policy, PolicyConfig, Relaxed, clip, limit_of
from pyrskip.policies.sampling import gumbel_sigmoid, multilinear
from pyrskip.transfer import sent


class TilePolicy(Policy):
    """Of tiles that are kept or skipped, in selections that nobody has to list. capacity [B, T] int64; forced
    [B, T] bool: the glance; free: every other tile that is no padding."""

    by_tile = True
    per_tile = True

    def __init__(self, capacity: Tensor, actions: ActionSet, budget: BudgetRule) -> None:
        self.capacity, self.actions, self.budget = capacity, actions, budget
        glance = torch.arange(capacity.shape[-1], device=capacity.device) == capacity.shape[-1] - 1
        self.forced = glance & (capacity > 0)
        self.free = ~glance & (capacity > 0)

    def never(self, selection: Tensor) -> Tensor:
        """Which selections [B, K, T] bool keep padding, or not the glance, [B, K] bool."""
        return (~self.free[:, None] & (selection != self.forced[:, None])).any(-1)

    def fitting(self, wanted: Tensor, rank: Tensor, kept: Tensor, limit: Tensor) -> Tensor:
        """Of the tiles that are wanted [B, T] bool, without the glance, those that are left when what matters
        least has gone, one tile after the other, until the row has no more than limit [B] tokens with those
        that are kept already [B, T] bool. rank [B, T]: the lowest goes first."""
        tiles = torch.arange(wanted.shape[-1], device=wanted.device)
        place = (later(rank) & wanted[:, None]).sum(-1)
        keep = wanted[:, None] & (place[:, None] >= tiles[:, None])  # [B, tiles that have gone, T]
        tokens = self.budget.tokens(keep | kept[:, None], self.capacity[:, None])
        fits = (tokens.sum(-1) <= limit[:, None]) | (tiles == tiles[-1])
        gone = fits.long().argmax(-1)
        found: Tensor = keep[torch.arange(gone.shape[0], device=gone.device), gone]
        return found

    def decide(self, keep: Tensor) -> Decision:
        """To keep these tiles [B, T] bool, and the glance; a tile that is padding is never kept."""
        keep = (keep & self.free) | self.forced
        action = self.actions.number(keep[:, :-1].long()) if self._enumerable else None
        return Decision(self.budget.tokens(keep, self.capacity), action)

    @property
    def _enumerable(self) -> bool:
        return self.actions.complete and not self.actions.ladder


@POLICIES.register("bernoulli")
class BernoulliPolicy(TilePolicy):
    """logit [B, T] float, the last tile's, the glance's, ignored. independent: what it decides on a tile says
    nothing about another."""

    options: ClassVar[tuple[str, ...]] = ("open_bias",)
    independent: ClassVar[bool] = True

    def __init__(self, logit: Tensor, capacity: Tensor, actions: ActionSet, budget: BudgetRule) -> None:
        super().__init__(capacity, actions, budget)
        self.logit = logit.float()
        self.rank = self.logit  # what is lowest goes first under a limit

    @classmethod
    def check(
        cls,
        config: PolicyConfig,
        actions: ActionConfig,
        budget: BudgetRule,
        grid: tuple[int, ...],
        listless: bool = False,
    ) -> None:
        super().check(config, actions, budget, grid, listless)
        if budget.rungs is not None:
            raise UserError(
                f"gate.policy={config.policy} with budget.rungs={list(budget.rungs)} knows no rung "
                "between all and nothing; allowed: gate.policy=rungs, categorical, autoregressive or "
                "sequential"
            )

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.full((layout.tiles,), config.open_bias)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> TilePolicy:
        share = seen.capacity / seen.capacity.sum(-1, keepdim=True)
        return cls(outputs - gate.tilt * share, seen.capacity, gate.layout.actions, gate.layout.budget)

    def sample(self) -> Decision:
        return self.decide(torch.rand_like(self.logit) < self.logit.sigmoid())

    def rsample(self, temperature: float) -> Relaxed:
        keep = gumbel_sigmoid(self.logit, temperature)
        keep = keep * self.free + self.forced.float()
        return Relaxed(keep, multilinear(keep, self.actions.selection) if self._enumerable else None)

    def log_prob(self, decision: Decision) -> Tensor:
        return self.log_probs(decision.selection[:, None]).squeeze(1)

    def log_probs(self, selection: Tensor) -> Tensor:
        """Log-probabilities of selections, [B, K, T] bool -> [B, K]."""
        logit = self.logit[:, None].expand(selection.shape)
        log_prob = -F.binary_cross_entropy_with_logits(logit, selection.float(), reduction="none")
        found = (self.free[:, None] * log_prob).sum(-1)
        return found.masked_fill(self.never(selection), float("-inf"))

    def entropy(self) -> Tensor:
        p = self.logit.sigmoid()
        return (self.free * F.binary_cross_entropy_with_logits(self.logit, p, reduction="none")).sum(-1)

    def marginals(self) -> Tensor:
        return self.logit.sigmoid() * self.free + self.forced.float()

    @property
    def probs(self) -> Tensor | None:
        return multilinear(self.marginals(), self.actions.selection) if self._enumerable else None

    def worth(self, selection: Tensor) -> Tensor:
        """How much each of some selections is to be preferred, [B, K, T] bool -> [B, K]: log-probability, but
        for what all selections of a row share."""
        return (self.logit[:, None] * (selection & self.free[:, None])).sum(-1)

    @property
    def wanted(self) -> Tensor:
        """What the mode keeps beside the glance without a limit, [B, T] bool."""
        return (self.logit > 0) & self.free

    def mode(self, max_tokens: Limit = None) -> Decision:
        wanted = self.wanted
        if max_tokens is None:
            return self.decide(wanted)
        limit = limit_of(max_tokens, self.logit)
        return clip(self.decide(self.fitting(wanted, self.rank, self.forced, limit)), limit)

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """How far the nearest logit is from 0; under a limit also how close the closest two tiles are of
        which one was dropped first."""
        nearest = self.nearest()
        if max_tokens is None:
            return nearest
        gone = self.wanted & ~decision.selection
        pairs = gone[:, :, None] & self.wanted[:, None] & self.exchangeable()
        apart = (self.rank[:, :, None] - self.rank[:, None]).abs().masked_fill(~pairs, float("inf"))
        return torch.minimum(nearest, apart.amin((-1, -2)))

    def nearest(self) -> Tensor:
        """The nearest logit to 0, where a tile would change sides, [B]."""
        return self.logit.abs().masked_fill(~self.free, float("inf")).amin(-1)

    def exchangeable(self) -> Tensor:
        """Pairs of tiles of which either may be dropped first, [T, T] bool."""
        return ~torch.eye(self.rank.shape[-1], dtype=torch.bool, device=self.rank.device)

    def counting(self, tokens: Tensor) -> "BernoulliPolicy":
        """The same distribution where tiles give other numbers of tokens [B, T], 0 where they are padding."""
        other = copy(self)
        other.capacity = tokens
        return other


class DependentPolicy(BernoulliPolicy):
    """Tiles depend on each other: a selection's probability is no product."""

    independent = False

    @property
    def probs(self) -> Tensor | None:
        if not self._enumerable:
            return None
        selection = sent(self.actions.selection, self.logit.device)
        return self.log_probs(selection.expand(len(self.logit), -1, -1)).exp()


def later(rank: Tensor) -> Tensor:
    """Whether of two tiles the first goes later than the second, rank [B, T] -> [B, T, T] bool: the lower
    rank goes first, and of two that are alike the finer."""
    tiles = torch.arange(rank.shape[-1], device=rank.device)
    alike = (rank[:, None] == rank[:, :, None]) & (tiles < tiles[:, None])
    return (rank[:, None] < rank[:, :, None]) | alike
