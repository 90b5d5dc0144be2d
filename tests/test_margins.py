"""Claims about the mode under limits of each row's own, and about how nearly it was another decision."""

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import Candidates, Decision
from pyrskip.policies import Policy
from pyrskip.policies.utility import UtilityPolicy
from tests import test_choices, test_policies
from tests.decisions import same
from tests.test_policies import ACTIONS, CAPACITY, WHOLE, random_logit

ROWS = 200
CAPACITIES = CAPACITY.repeat(ROWS // 2, 1)
BUDGETS = (WHOLE, BudgetRule(total=30, floor=2))
LIMITS = (None, 1, 7, 20, 40)
kinds = pytest.mark.parametrize("kind", test_policies.KINDS)
budgets = pytest.mark.parametrize("budget", BUDGETS, ids=["whole", "shared"])


def policy_of(kind: str, logit: Tensor, budget: BudgetRule = WHOLE) -> Policy:
    return test_policies.policy_of(kind, logit, CAPACITIES, budget)


def differ(one: Decision, other: Decision) -> Tensor:
    """[B] bool."""
    return (one.tokens != other.tokens).any(-1)


@kinds
@budgets
def test_a_limit_of_each_row_is_that_of_the_row_alone(kind: str, budget: BudgetRule) -> None:
    policy = policy_of(kind, random_logit(kind, ROWS), budget)
    limit = torch.tensor([1, 7, 20, 40, 2**53]).repeat(ROWS // 5)
    mode, margin = policy.mode(limit), policy.margin(policy.mode(limit), limit)
    for most in limit.unique().tolist():
        alone, rows = policy.mode(most), limit == most
        assert mode.tokens[rows].equal(alone.tokens[rows])
        assert mode.action is not None and alone.action is not None
        assert mode.action[rows].equal(alone.action[rows])
        assert margin[rows].equal(policy.margin(alone, most)[rows])
    free = policy.mode()
    assert same(policy.mode(2**53), free)
    assert policy.margin(free, 2**53).equal(policy.margin(free))


@pytest.mark.parametrize("kind", test_choices.KINDS)
def test_a_limit_of_each_row_is_that_of_the_row_alone_choice_by_choice(kind: str) -> None:
    policy, limit = test_choices.policy_of(kind, 5), torch.tensor([1, 7, 20, 36, 2**53])
    mode = policy.mode(limit)
    for row, most in enumerate(limit.tolist()):
        assert mode.tokens[row].equal(policy.mode(most).tokens[row])


@budgets
@pytest.mark.parametrize("most", LIMITS[1:])
def test_a_bernoulli_mode_under_a_limit_drops_one_tile_after_the_other(budget: BudgetRule, most: int) -> None:
    logit = random_logit("bernoulli", ROWS)
    logit[::3, 0] = logit[::3, 1]  # of two that are alike the finer goes first
    mode = policy_of("bernoulli", logit, budget).mode(most)
    for row, capacity in enumerate(CAPACITIES):
        keep = (logit[row] > 0) & (capacity > 0)
        keep[-1] = True
        while budget.tokens(keep, capacity).sum() > most and keep[:-1].any():
            keep[logit[row, :-1].masked_fill(~keep[:-1], float("inf")).argmin()] = False
        assert mode.selection[row].equal(keep & (mode.tokens[row] > 0))
        assert mode.tokens[row, :-1].equal(budget.tokens(keep, capacity)[:-1])


@kinds
@budgets
@pytest.mark.parametrize("most", LIMITS)
def test_logits_that_move_by_less_than_the_margin_make_the_same_decision(
    kind: str, budget: BudgetRule, most: int | None
) -> None:
    logit = random_logit(kind, ROWS)
    mode = policy_of(kind, logit, budget).mode(most)
    margin = policy_of(kind, logit, budget).margin(mode, most)
    assert (margin >= 0).all() and (most == 1 or margin.isfinite().any())
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        # two logits of which each moves by half of it
        move = (torch.rand(logit.shape, generator=generator) - 0.5) * margin.clamp(max=3)[:, None] * 0.999
        assert not differ(policy_of(kind, logit + move, budget).mode(most), mode).any()


@pytest.mark.parametrize("most", LIMITS)
def test_a_winner_that_loses_its_margin_loses(most: int | None) -> None:
    logit = random_logit("categorical", ROWS)
    policy = policy_of("categorical", logit)
    mode = policy.mode(most)
    margin = policy.margin(mode, most)
    alike = policy.candidates.first == mode.action[:, None]
    lower = logit - alike * (margin.clamp(max=100) + 1e-4)[:, None]
    assert differ(policy_of("categorical", lower).mode(most), mode).equal(margin.isfinite())


def test_a_bernoulli_margin_is_the_nearest_tiles() -> None:
    logit = random_logit("bernoulli", ROWS)
    policy = policy_of("bernoulli", logit)
    nearest = logit.abs().masked_fill(~policy.free, float("inf"))
    assert policy.margin(policy.mode()).equal(nearest.amin(-1))
    tile = torch.nn.functional.one_hot(nearest.argmin(-1), logit.shape[1])
    turned = logit - tile * 1.001 * logit
    assert differ(policy_of("bernoulli", turned - tile * 1e-3 * logit.sign()).mode(), policy.mode()).all()


def test_a_utilitys_margin_is_in_score() -> None:
    logit, candidates = random_logit("categorical", ROWS), Candidates(ACTIONS.tokens(CAPACITIES, WHOLE))
    plain, scaled = (UtilityPolicy(logit / t, candidates, ACTIONS, t) for t in (1.0, 0.05))
    torch.testing.assert_close(scaled.margin(plain.mode()), plain.margin(plain.mode()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("most", [None, 4, 20, 36])
@pytest.mark.parametrize("kind", test_choices.KINDS)
def test_margins_are_of_the_best_two_decisions_or_of_the_closest_step(kind: str, most: int | None) -> None:
    for seed in range(10):
        policy = test_choices.policy_of(kind, seed=seed)
        mode = policy.mode(most)
        chances = torch.cat([policy.log_prob(d) for d in test_choices.DECISIONS]).detach()
        fits = test_choices.TOKENS[0].sum(-1) <= (most or 10**6)
        margin = policy.margin(mode, most).item()
        if kind != "looks":
            best = chances[fits].sort(descending=True).values
            wanted = float(best[0] - best[1]) if len(best) > 1 else float("inf")
            assert margin == pytest.approx(wanted, abs=1e-5)
            continue
        table = chances.view(3, 3).exp()  # of the fine tile's choice and the coarse tile's
        coarse = int(mode.action) % 3
        steps = []
        for choices, numbers in (
            (table.sum(0), torch.arange(3)),
            (table[:, coarse], 3 * torch.arange(3) + coarse),
        ):
            allowed = fits[numbers] | (torch.arange(3) == 0)
            two = choices[allowed].log().sort(descending=True).values
            steps.append(float(two[0] - two[1]) if len(two) > 1 else float("inf"))
        assert margin == pytest.approx(min(steps), abs=1e-4)
