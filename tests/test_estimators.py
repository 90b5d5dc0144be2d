"""Estimators: their enumerated expectation against the exact gradient, and what breaks when one is broken.

Axes: B rows, K samples, F tiles beside the glance, S = 2^F actions. The gradients are of the logits of F
tiles, by every K-tuple of actions weighed with its probability, in float64: no sampling error.
"""

from collections.abc import Callable
from itertools import product
from math import exp, prod
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from pyrskip.training import estimators
from pyrskip.training.estimators import BASELINES

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
FREE = (1, 2)
free = pytest.mark.parametrize("tiles", FREE, ids=["T=2", "T=3"])


def by(baseline: str) -> Loss:
    """The score function with a registered baseline; its running mean is .37."""

    def loss(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
        sampled = estimators.Sampled(reward, lambda: greedy, torch.tensor(0.37, dtype=reward.dtype))
        return estimators.score_function(log_prob, BASELINES[baseline].advantage(sampled))

    return loss


def clipped(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    # the policy that sampled was somewhat surer of everything
    return estimators.clipped(log_prob, log_prob.detach() + 0.15, reward - 0.4, clip=0.1)


BIASED: dict[str, Loss] = {"clip": clipped, "group": by("group"), "group_deviation": by("group_deviation")}
UNBIASED: dict[str, Loss] = {name: by(name) for name in BASELINES if name not in BIASED}


def log_probs(logit: Tensor) -> Tensor:
    """[..., F] -> [..., S], the last tile fastest."""
    total = torch.zeros_like(logit[..., :1])
    for tile in range(logit.shape[-1]):
        both = torch.stack([-logit[..., tile], torch.zeros_like(logit[..., tile])], dim=-1)
        choice = both.log_softmax(-1)
        total = (total[..., None] + choice[..., None, :]).flatten(-2)
    return total


def world(tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [F], reward of each action [S] (some above .5, some below .3), and that of the mode."""
    generator = torch.Generator().manual_seed(2 + tiles)
    logit = torch.randn(tiles, generator=generator, dtype=torch.float64)
    reward = torch.rand(2**tiles, generator=generator, dtype=torch.float64)
    return logit, reward, reward[log_probs(logit).argmax()]


def exact(tiles: int) -> Tensor:
    """The gradient of the expected reward, [F]."""
    logit, reward, _ = world(tiles)
    logit.requires_grad_()
    return torch.autograd.grad(estimators.expectation(log_probs(logit).exp(), reward), logit)[0]


def enumerated(loss: Loss, tiles: int, samples: int) -> tuple[Tensor, float]:
    """Mean [F] and summed variance of minus the loss's gradient over all K-tuples of actions."""
    logit, reward, greedy = world(tiles)
    logit.requires_grad_()
    log_prob = log_probs(logit)
    mean, square = torch.zeros(tiles, dtype=torch.float64), 0.0
    for picks in product(range(len(reward)), repeat=samples):
        picked = log_prob[list(picks)]
        value = loss(picked[None], reward[list(picks)][None], greedy[None])
        gradient = -torch.autograd.grad(value, logit, retain_graph=True, allow_unused=True)[0]
        weight = float(picked.sum().exp())
        mean, square = mean + weight * gradient, square + weight * float(gradient.square().sum())
    return mean, square - float(mean.square().sum())


def holds(loss: Loss, tiles: int, samples: int) -> bool:
    return torch.allclose(enumerated(loss, tiles, samples)[0], exact(tiles), atol=1e-9)


@free
@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("name", UNBIASED)
def test_an_unbiased_estimator_equals_the_exact_gradient(name: str, samples: int, tiles: int) -> None:
    assert exact(tiles).abs().min() > 1e-3
    assert holds(UNBIASED[name], tiles, samples)


def flipped(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    return -by("none")(log_prob, reward, greedy)


def with_itself(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    # leave-one-out that forgets to leave one out
    return estimators.score_function(log_prob, reward - reward.mean(-1, keepdim=True))


def off_by_one(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    # the mean of the others, divided by one too many, and the own reward by none
    total = reward.sum(-1, keepdim=True)
    return estimators.score_function(log_prob, reward - total / (reward.shape[-1] - 1))


def own(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    # a baseline that the sample itself moves
    return estimators.score_function(log_prob, reward - 0.5 * (reward + greedy[:, None]))


def moving(log_prob: Tensor, reward: Tensor, greedy: Tensor) -> Tensor:
    # a running mean that these samples are part of already
    return estimators.score_function(log_prob, reward - (0.9 * 0.37 + 0.1 * reward.mean()))


@free
@pytest.mark.parametrize("broken", [flipped, with_itself, off_by_one, own, moving], ids=lambda f: f.__name__)
def test_a_broken_estimator_does_not(broken: Loss, tiles: int) -> None:
    assert not holds(broken, tiles, 2)


@free
@pytest.mark.parametrize("name", [*UNBIASED, *BIASED])
def test_samples_give_what_the_enumeration_says(name: str, tiles: int) -> None:
    loss, samples, rows = (UNBIASED | BIASED)[name], 3, 30_000
    logit, reward, greedy = world(tiles)
    at = logit.expand(rows, -1).clone().requires_grad_()
    log_prob = log_probs(at)
    picks = torch.distributions.Categorical(logits=log_probs(logit)).expand((rows,)).sample((samples,)).T
    value = loss(log_prob.gather(1, picks), reward[picks], greedy.expand(rows))
    gradient = -rows * torch.autograd.grad(value, at)[0]
    expected, true = enumerated(loss, tiles, samples)[0], exact(tiles)
    print(f"{name}: bias {(expected - true).tolist()} of {true.tolist()}")
    error = gradient.std(0) / rows**0.5
    assert ((gradient.mean(0) - expected).abs() <= 4 * error).all()


@free
def test_the_group_mean_is_leave_one_out_on_a_smaller_scale(tiles: int) -> None:
    for samples in (2, 3):
        shrunk = enumerated(by("group"), tiles, samples)[0]
        assert torch.allclose(shrunk * samples / (samples - 1), exact(tiles), atol=1e-9)


def weighed(advantage: Callable[[list[float]], list[float]], tiles: int, samples: int) -> Tensor:
    """Mean over all K-tuples of actions of advantage x gradient of log-probability, written out with neither
    autograd nor the estimators, [F]: the gradient of log-probability is keep - sigmoid(logit)."""
    logit, reward, _ = world(tiles)
    chance = logit.sigmoid().tolist()
    total = torch.zeros(tiles, dtype=torch.float64)
    for picks in product(product((0, 1), repeat=tiles), repeat=samples):
        rewards = [float(reward[int("".join(map(str, keep)), 2)]) for keep in picks]
        weight = prod(p if on else 1 - p for keep in picks for on, p in zip(keep, chance, strict=True))
        for a, keep in zip(advantage(rewards), picks, strict=True):
            slope = torch.tensor([on - p for on, p in zip(keep, chance, strict=True)], dtype=torch.float64)
            total += weight * a * slope / samples
    return total


def by_deviation(rewards: list[float]) -> list[float]:
    return [(r - mean(rewards)) / (stdev(rewards) + 1e-4) for r in rewards]


def by_clip(rewards: list[float]) -> list[float]:
    # the ratio e^-.15 is below 1 - .1: what is good is still pulled up, what is bad is let go
    return [(r - 0.4) * exp(-0.15) if r > 0.4 else 0.0 for r in rewards]


WRITTEN_OUT = {
    "group": lambda rewards: [r - mean(rewards) for r in rewards],
    "group_deviation": by_deviation,
    "clip": by_clip,
}


@free
@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("name", BIASED)
def test_a_biased_estimator_equals_its_own_expectation_written_out(
    name: str, samples: int, tiles: int
) -> None:
    found, expected = enumerated(BIASED[name], tiles, samples)[0], weighed(WRITTEN_OUT[name], tiles, samples)
    assert expected.abs().max() > 1e-2
    assert torch.allclose(found, expected, atol=1e-9)
    print(f"{name}, {samples} samples: bias {(expected - exact(tiles)).tolist()} of {exact(tiles).tolist()}")


def test_leave_one_out_varies_less_than_no_baseline() -> None:
    """Two tiles, three samples, rewards in [0, 1]; the rest is reported."""
    variance = {name: enumerated(loss, 2, 3)[1] for name, loss in (UNBIASED | BIASED).items()}
    print({name: round(value, 4) for name, value in variance.items()})
    assert variance["leave_one_out"] < 0.5 * variance["none"]


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_generalised_advantages_are_their_direct_sum(trace: float, discount: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    after = torch.cat([value[:, 1:], torch.zeros(5, 1)], dim=1)
    surprise = reward + discount * after - value
    direct = torch.stack(
        [sum((discount * trace) ** k * surprise[:, t + k] for k in range(4 - t)) for t in range(4)],  # type: ignore[misc]
        dim=1,
    )
    assert torch.allclose(estimators.advantages(reward, value, discount, trace), direct, atol=1e-12)
    if trace == 1.0:
        outcome = torch.stack(
            [sum(discount**k * reward[:, t + k] for k in range(4 - t)) for t in range(4)], dim=1
        )  # type: ignore[misc]
        assert torch.allclose(
            estimators.advantages(reward, value, discount, trace), outcome - value, atol=1e-12
        )


def test_the_clipped_loss_is_the_score_function_until_the_policy_moves() -> None:
    logit = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
    found = torch.autograd.grad(estimators.clipped(logit, logit.detach(), advantage, 0.2), logit)[0]
    assert torch.allclose(found, torch.autograd.grad(estimators.score_function(logit, advantage), logit)[0])
    # beyond the clip nothing pulls further, in either direction
    moved = estimators.clipped(logit, logit.detach() - torch.tensor([0.5, -0.5] * 3), advantage, 0.2)
    assert torch.autograd.grad(moved, logit)[0].eq(0).all()


def test_how_far_a_policy_has_moved_is_zero_at_first_and_positive_after() -> None:
    log_prob = torch.randn(50, generator=torch.Generator().manual_seed(2))
    assert [float(v) for v in estimators.moved(log_prob, log_prob, 0.2)] == [0.0, 0.0]
    kl, share = estimators.moved(log_prob, log_prob + 0.5, 0.2)
    assert kl > 0 and share == 1


def test_explained_variance_is_one_for_a_prophet_and_zero_for_the_mean() -> None:
    outcome = torch.randn(100, generator=torch.Generator().manual_seed(3))
    assert estimators.explained_variance(outcome, outcome) == 1
    assert float(estimators.explained_variance(outcome.mean().expand(100), outcome)) == pytest.approx(
        0, abs=1e-6
    )


def test_the_steps_of_an_episode_earn_its_reward_and_shaping_moves_every_episode_alike() -> None:
    generator = torch.Generator().manual_seed(4)
    total, price = torch.rand(2, 6, generator=generator)
    cost = torch.rand(6, 4, generator=generator).cumsum(-1)
    steps = estimators.step_rewards(total, cost, price)
    assert torch.allclose(steps.sum(-1), total, atol=1e-6)
    assert torch.allclose(steps[:, 0], -price * cost[:, 1], atol=1e-6)
    potential = torch.rand(6, 4, generator=generator)
    shaped = estimators.step_rewards(total, cost, price, potential)
    assert torch.allclose(shaped.sum(-1), total - potential[:, 0], atol=1e-6)
    assert torch.allclose(shaped[:, 0] - steps[:, 0], potential[:, 1] - potential[:, 0], atol=1e-6)
