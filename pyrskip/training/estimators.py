"""Gradient estimators: samples and their rewards -> a loss whose gradient is minus the expected reward's.

Axes: B batch, K samples of a row, S listed actions, H steps of an episode. A sample's reward is a constant to
its gradient. The straight-through samples (`gumbel_sigmoid`, `gumbel_softmax`) and the multilinear extension
are part of the policies, in `pyrskip.policies.sampling`, since inference may need a policy without any
training code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrskip.registry import Registry

FLOOR = 1e-4
"""Smallest standard deviation that is divided by."""


def missed_cross_entropy(missed: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy of a chance of being right, given as the log of that of being wrong. missed <= 0, right
    in [0, 1], of one shape -> the same shape."""
    missed = missed.clamp(max=-1e-6)  # a certain answer that is wrong has a finite gradient
    return -(right * (-missed.expm1()).log() + (1 - right) * missed)


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-mean of advantage x log-probability, of one shape; its gradient is unbiased where the advantage is
    (REINFORCE, Williams 1992)."""
    return -(advantage.detach() * log_prob).mean()


@dataclass(frozen=True)
class Sampled:
    """reward [B, K] of a row's samples; greedy: gives the reward [B] of the row's mode; mean []: of the
    rewards of earlier steps."""

    reward: Tensor
    greedy: Callable[[], Tensor]
    mean: Tensor


@dataclass(frozen=True)
class Baseline:
    """advantage: a pure function, Sampled -> [B, K]; samples: the least K; mean: whether it reads the running
    mean."""

    advantage: Callable[[Sampled], Tensor]
    samples: int = 1
    mean: bool = False


BASELINES: Registry[Baseline] = Registry("rule.baseline")


def baseline(
    name: str, samples: int = 1, mean: bool = False
) -> Callable[[Callable[[Sampled], Tensor]], Callable[[Sampled], Tensor]]:
    """Register a function as a baseline."""

    def add(advantage: Callable[[Sampled], Tensor]) -> Callable[[Sampled], Tensor]:
        BASELINES.register(name, Baseline(advantage, samples, mean))
        return advantage

    return add


@baseline("none")
def no_baseline(sampled: Sampled) -> Tensor:
    """The reward itself."""
    return sampled.reward


@baseline("running_mean", mean=True)
def running_mean(sampled: Sampled) -> Tensor:
    """The reward less a number that these samples did not move."""
    return sampled.reward - sampled.mean


@baseline("self_critical")
def self_critical(sampled: Sampled) -> Tensor:
    """The reward less that of the row's mode (arXiv:1612.00563)."""
    return sampled.reward - sampled.greedy()[:, None]


@baseline("leave_one_out", samples=2)
def leave_one_out(sampled: Sampled) -> Tensor:
    """The reward less the mean of the row's other samples (Kool et al. 2019)."""
    reward = sampled.reward
    others = (reward.sum(-1, keepdim=True) - reward) / (reward.shape[-1] - 1)
    return reward - others


@baseline("group", samples=2)
def group(sampled: Sampled) -> Tensor:
    """The reward less the mean of all of the row's samples: (K - 1) / K of leave-one-out."""
    return sampled.reward - sampled.reward.mean(-1, keepdim=True)


@baseline("group_deviation", samples=2)
def group_deviation(sampled: Sampled) -> Tensor:
    """`group` divided by the samples' standard deviation as well (GRPO, arXiv:2402.03300), which is biased:
    rows whose samples nearly agree weigh as much as those where the decision matters."""
    return group(sampled) / (sampled.reward.std(-1, keepdim=True) + FLOOR)


def expectation(probs: Tensor, reward: Tensor) -> Tensor:
    """The expected reward itself, differentiable through the probabilities. [B, S], [B, S] -> [B]."""
    return (probs * reward).sum(-1)


def advantages(reward: Tensor, value: Tensor, discount: float = 1.0, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimates (arXiv:1506.02438). reward [B, H], value [B, H] of the state before
    each step -> [B, H].

    The value behind the last step is 0. discount in [0, 1], trace (lambda) in [0, 1]: 0 trusts the values, 1
    the rewards.
    """
    after = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    surprise = reward + discount * after - value
    result, running = torch.empty_like(reward), torch.zeros_like(reward[:, 0])
    for step in reversed(range(reward.shape[1])):
        running = surprise[:, step] + discount * trace * running
        result[:, step] = running
    return result


def clipped(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped loss (arXiv:1707.06347, equation 7), all of one shape. old: log-probabilities when it was
    sampled.

    Where they have not moved, its gradient is the score function's. Biased beyond that.
    """
    ratio, advantage = (log_prob - old.detach()).exp(), advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def moved(log_prob: Tensor, old: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """How far a policy is from the one that sampled: approximate KL, (r - 1) - log r >= 0, and the share
    clipped."""
    gap = (log_prob - old).detach()
    ratio = gap.exp()
    return (ratio - 1 - gap).mean(), ((ratio - 1).abs() > clip).float().mean()


def explained_variance(value: Tensor, outcome: Tensor) -> Tensor:
    """1 - Var[outcome - value] / Var[outcome]: 1 foresees all, 0 no more than the mean. NaN where nothing
    varies."""
    return 1 - (outcome - value).var() / outcome.var()


def step_rewards(total: Tensor, cost: Tensor, price: Tensor, potential: Tensor | None = None) -> Tensor:
    """What each step of an episode earns: -price x what it adds to the cost, and at the end what is left of
    `total`.

    total [B]: the decision's reward; cost [B, H + 1] relative, before the first step and after each; price
    [B] -> [B, H], which sums to total. What is spent before the first step, on the glance, is the first
    step's. potential [B, H + 1]: shaping by a potential that is 0 at the end (Ng et al. 1999): every
    episode's sum moves by the same -potential[:, 0], so no decision becomes better than another.
    """
    spent = torch.cat([cost[:, 1:2], cost[:, 2:] - cost[:, 1:-1]], dim=1)
    reward = -price[:, None] * spent
    reward[:, -1] += total + price * cost[:, -1]
    if potential is not None:
        after = torch.cat([potential[:, 1:-1], torch.zeros_like(potential[:, :1])], dim=1)
        reward = reward + after - potential[:, :-1]
    return reward
