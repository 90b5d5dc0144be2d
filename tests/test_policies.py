"""Policies: what they sample, what they say of it, and what inference runs, compared with enumeration and
integration."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates, Decision
from pyrskip.errors import UserError
from pyrskip.policies import Policy
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.quadtree import QuadtreePolicy
from pyrskip.policies.sampling import gumbel_sigmoid, gumbel_softmax, multilinear
from pyrskip.policies.topk import TopKPolicy
from pyrskip.policies.utility import UtilityPolicy
from pyrskip.pyramid import Pyramid
from tests.decisions import different, of_every_action, repeated, same

TILES = 4
ACTIONS = ActionSet.by_level(Pyramid(64, TILES, 8))
WHOLE = BudgetRule()
# the second row has a tile of padding: actions that differ there alone are the same decision
CAPACITY = torch.tensor([[64, 16, 4, 1], [40, 0, 4, 2]])
TILED = ("bernoulli", "topk", "quadtree")
KINDS = (*TILED, "categorical")


def policy_of(kind: str, logit: Tensor, capacity: Tensor = CAPACITY, budget: BudgetRule = WHOLE) -> Policy:
    """logit [B, S] for categorical, else [B, T], the glance's for the budget of topk. Levels are nested as
    one tile in one."""
    if kind == "bernoulli":
        return BernoulliPolicy(logit, capacity, ACTIONS, budget)
    if kind == "topk":
        return TopKPolicy(logit, logit[:, -1], capacity, ACTIONS, budget)
    if kind == "quadtree":
        return QuadtreePolicy(logit, (1,) * TILES, capacity, ACTIONS, budget)
    return CategoricalPolicy(logit, Candidates(ACTIONS.tokens(capacity, budget)), ACTIONS)


def random_logit(kind: str, rows: int = 2, seed: int = 0) -> Tensor:
    width = TILES if kind in TILED else len(ACTIONS)
    return 1.5 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def decisions(capacity: Tensor) -> list[Decision]:
    """The different decisions of a row's capacity [T]."""
    return different(of_every_action(ACTIONS, capacity[None]))


def within_four_standard_errors(samples: Tensor, expected: Tensor) -> bool:
    """samples [N, ...], whose mean is compared with expected [...]."""
    error = samples.double().std(0) / len(samples) ** 0.5
    return bool(((samples.double().mean(0) - expected).abs() <= 4 * error + 1e-9).all())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_the_keep_rate_of_gumbel_is_the_sigmoid_whatever_the_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    logit = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0])
    keep = gumbel_sigmoid(logit.expand(40_000, -1), temperature)
    assert within_four_standard_errors(keep, logit.double().sigmoid())
    assert ((keep == 0) | (keep == 1)).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_the_choice_of_gumbel_is_the_softmax_whatever_the_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    logit = torch.tensor([-2.0, 0.0, 1.0, 2.5])
    weight = gumbel_softmax(logit.expand(40_000, -1), temperature)
    assert within_four_standard_errors(weight, logit.double().softmax(-1))
    assert ((weight == 0) | (weight == 1)).all() and weight.sum(-1).eq(1).all()


@pytest.mark.parametrize("relaxed", [False, True], ids=["sample", "rsample"])
@pytest.mark.parametrize("kind", KINDS)
def test_decisions_are_sampled_as_often_as_log_prob_says(kind: str, relaxed: bool) -> None:
    torch.manual_seed(1)
    for row, capacity in enumerate(CAPACITY):
        logit = random_logit(kind)[row].expand(20_000, -1)
        policy = policy_of(kind, logit, capacity.expand(len(logit), -1))
        keep = policy.rsample(0.7).keep > 0.5 if relaxed else policy.sample().selection
        for decision in decisions(capacity):
            taken = ((keep & (capacity > 0)) == decision.selection).all(-1)
            probability = policy.log_prob(repeated(decision, len(logit)))[0].double().exp()
            assert within_four_standard_errors(taken, probability)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_decision_of_the_action_that_it_names(kind: str) -> None:
    torch.manual_seed(3)
    capacity = CAPACITY.repeat(50, 1)
    sample = policy_of(kind, random_logit(kind).repeat(50, 1), capacity).sample()
    assert sample.action is not None and len(sample.action.unique()) > 3
    assert same(sample, Candidates(ACTIONS.tokens(capacity, WHOLE)).take(sample.action))


@pytest.mark.parametrize("kind", KINDS)
def test_a_relaxed_sample_holds_the_glance_no_padding_and_the_weight_of_its_own_action(kind: str) -> None:
    torch.manual_seed(2)
    logit = random_logit(kind).repeat(50, 1)
    relaxed = policy_of(kind, logit, CAPACITY.repeat(50, 1)).rsample(1.0)
    assert relaxed.weight is not None
    assert relaxed.keep[:, -1].eq(1).all() and ((relaxed.keep == 0) | (relaxed.keep == 1)).all()
    assert relaxed.weight.sum(-1).eq(1).all()
    assert ACTIONS.selection[relaxed.weight.argmax(-1)].float().equal(relaxed.keep)
    if kind in TILED:
        assert relaxed.keep[1::2, 1].eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_probabilities_of_all_decisions_sum_to_one(kind: str) -> None:
    for row, capacity in enumerate(CAPACITY):
        policy = policy_of(kind, random_logit(kind)[[row]], capacity[None])
        every = decisions(capacity)
        assert len(every) == (8, 4)[row]
        total = sum(float(policy.log_prob(d).exp()) for d in every)
        assert total == pytest.approx(1, abs=1e-5)
        assert policy.probs is not None and float(policy.probs.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_marginals_are_those_of_the_enumerated_decisions(kind: str) -> None:
    policy = policy_of(kind, random_logit(kind))
    for row, capacity in enumerate(CAPACITY):
        alone = policy_of(kind, random_logit(kind)[[row]], capacity[None])
        every = decisions(capacity)
        expected = sum(alone.log_prob(d).exp()[0] * d.selection[0] for d in every)
        assert isinstance(expected, Tensor)
        assert torch.allclose(policy.marginals()[row], expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "row"), list(product(KINDS, (0, 1))))
def test_the_entropy_is_that_of_the_enumerated_decisions(kind: str, row: int) -> None:
    policy = policy_of(kind, random_logit(kind)[[row]], CAPACITY[[row]])
    log_probs = torch.cat([policy.log_prob(d) for d in decisions(CAPACITY[row])]).clamp(min=-1e3)
    assert float(policy.entropy()) == pytest.approx(-float((log_probs.exp() * log_probs).sum()), abs=1e-5)


@given(keep=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
def test_multilinear_weights_are_the_probabilities_of_independent_tiles(keep: list[float]) -> None:
    weight = multilinear(torch.tensor([[*keep, 1.0]]), ACTIONS.selection)[0]
    assert float(weight.sum()) == pytest.approx(1, abs=1e-5)
    for probability, selection in zip(weight.tolist(), ACTIONS.selection.tolist(), strict=True):
        expected = 1.0
        for k, on in zip(keep, selection[:-1], strict=True):
            expected *= k if on else 1 - k
        assert probability == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", TILED)
def test_listed_probabilities_are_those_of_the_selections(kind: str) -> None:
    policy = policy_of(kind, random_logit(kind)[:1], CAPACITY[:1])
    log_probs = torch.cat([policy.log_prob(d) for d in of_every_action(ACTIONS, CAPACITY[:1])])
    assert policy.probs is not None and torch.allclose(policy.probs[0].log(), log_probs, atol=1e-5)


def test_a_bernoulli_policy_over_more_tiles_than_levels_lists_no_probabilities() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    capacity = pyramid.capacity(torch.tensor([[64, 40]]))
    logit = torch.zeros(1, pyramid.tiles)
    policy = BernoulliPolicy(logit, capacity, ActionSet.by_level(pyramid), WHOLE)
    assert policy.probs is None and policy.rsample(1.0).weight is None
    assert policy.sample().action is None and policy.mode().action is None


def test_the_mode_is_the_likeliest_decision() -> None:
    for kind, seed in product(KINDS, range(10)):
        logit = random_logit(kind, seed=seed)[:1]
        if kind == "topk":  # of a whole number of tiles: of two numbers the mode is the likelier's
            logit[:, -1] = torch.tensor((seed % 2 + 1) / 3).logit()
        policy = policy_of(kind, logit, CAPACITY[:1])
        every = decisions(CAPACITY[0])
        log_probs = torch.cat([policy.log_prob(d) for d in every])
        assert same(policy.mode(), every[int(log_probs.argmax())])


def test_the_mode_of_a_bernoulli_policy_keeps_the_positive_logits_and_the_glance() -> None:
    logit = torch.tensor([[0.1, -0.1, 3.0, -9.0], [-1.0, 5.0, -1.0, -1.0]])
    assert policy_of("bernoulli", logit).mode().tokens.tolist() == [[64, 0, 4, 1], [0, 0, 0, 2]]


BUDGETS = (
    WHOLE,
    BudgetRule(cap=3),
    BudgetRule(total=12, floor=1),
    BudgetRule(total=4, floor=1),
    BudgetRule(total=1, floor=1),
)


@pytest.mark.parametrize("kind", KINDS)
@given(
    capacity=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    glance=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    max_tokens=st.integers(1, 20),
    budget=st.sampled_from(BUDGETS),
)
def test_a_mode_under_a_limit_never_exceeds_it_and_keeps_the_glance(
    kind: str, capacity: list[int], glance: int, seed: int, max_tokens: int, budget: BudgetRule
) -> None:
    has = torch.tensor([[*capacity, glance]])
    policy = policy_of(kind, random_logit(kind, 1, seed), has, budget)
    free, limited = policy.mode().tokens, policy.mode(max_tokens).tokens
    assert limited.sum() <= max_tokens
    assert (limited >= 0).all() and (limited <= has).all() and limited[0, -1] >= 1
    if free.sum() <= max_tokens:
        assert limited.equal(free)


@given(logit=st.lists(st.floats(-3, 3), min_size=4, max_size=4, unique=True), max_tokens=st.integers(1, 90))
def test_a_bernoulli_mode_under_a_limit_drops_the_least_likely_tiles(
    logit: list[float], max_tokens: int
) -> None:
    policy = policy_of("bernoulli", torch.tensor([logit], dtype=torch.float64), CAPACITY[:1])
    wanted, kept = (policy.mode(most).selection[0, :-1] for most in (None, max_tokens))
    assert not (kept & ~wanted).any()
    values = torch.tensor(logit[:-1])
    if kept.any() and (wanted & ~kept).any():
        assert values[wanted & ~kept].max() <= values[kept].min()


def test_a_categorical_mode_under_a_limit_is_the_best_action_that_fits() -> None:
    logit = torch.zeros(2, len(ACTIONS))
    logit[:, ACTIONS.full], logit[:, ACTIONS.index("1,2")] = 3.0, 2.0
    logit[:, ACTIONS.index("2")] = 1.0
    policy = policy_of("categorical", logit)
    assert policy.mode(21).tokens[0].tolist() == [0, 16, 4, 1]
    assert policy.mode(20).tokens[0].tolist() == [0, 0, 4, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_decision_fits_the_limit_the_glance_is_pooled_to_it(kind: str) -> None:
    # under a total every action asks for the same 4 tokens
    logit = random_logit(kind, 1).abs()
    logit[:, -1] += 9
    policy = policy_of(kind, logit, torch.tensor([[64, 16, 9, 4]]), BudgetRule(total=4, floor=1))
    assert policy.mode().tokens.tolist() == [[1, 1, 1, 1]]
    assert policy.mode(2).tokens.tolist() == [[0, 0, 0, 2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [0, -3])
def test_a_limit_without_room_for_the_glance_is_refused(kind: str, max_tokens: int) -> None:
    with pytest.raises(UserError, match=f"max_tokens={max_tokens}: at least 1"):
        policy_of(kind, random_logit(kind)).mode(max_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_give_finite_values_and_gradients(kind: str) -> None:
    logit = random_logit(kind).sign().mul(200).requires_grad_()
    policy = policy_of(kind, logit)
    relaxed = policy.rsample(0.1)
    (relaxed.keep.sum() + policy.entropy().sum() + policy.log_prob(policy.mode()).sum()).backward()
    assert policy.entropy().isfinite().all() and logit.grad is not None and logit.grad.isfinite().all()


def relaxed_bernoulli(logit: Tensor, temperature: float) -> Tensor:
    u = torch.rand_like(logit)
    return torch.sigmoid((logit + torch.log(u / (1 - u))) / temperature)


def relaxed_categorical(logit: Tensor, temperature: float) -> Tensor:
    return ((logit - torch.empty_like(logit).exponential_().log()) / temperature).softmax(-1)


@pytest.mark.parametrize(
    ("hard", "soft"),
    [(gumbel_sigmoid, relaxed_bernoulli), (gumbel_softmax, relaxed_categorical)],
    ids=("tile", "choice"),
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_a_straight_through_gradient_is_that_of_the_relaxation_at_the_same_noise(
    hard: Callable[[Tensor, float], Tensor], soft: Callable[[Tensor, float], Tensor], temperature: float
) -> None:
    logit = torch.randn(200, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    up = torch.randn(200, 5, generator=torch.Generator().manual_seed(4))
    gradients = []
    for sample in (hard, soft):
        torch.manual_seed(5)
        gradients.append(torch.autograd.grad((sample(logit, temperature) * up).sum(), logit)[0])
    assert gradients[0].abs().max() > 0.01
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_straight_through_gradient_of_a_table_is_its_integrated_expectation(
    temperature: float, levels: int
) -> None:
    """And its bias against the true gradient, which is printed, is not what is compared."""
    torch.manual_seed(6)
    actions, finer = ActionSet.by_level(Pyramid(64, levels, 8)), levels - 1
    table = torch.tensor([0.1, 0.9, 0.4, 0.2], dtype=torch.float64)[: 2**finer]
    logit = torch.tensor([0.8, -0.5], dtype=torch.float64)[:finer]
    chance = logit.sigmoid()

    # the midpoint rule over the noise: d soft / d logit = soft (1 - soft) / temperature
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    soft = ((logit[:, None] + (u / (1 - u)).log()) / temperature).sigmoid()
    slope = (soft * (1 - soft) / temperature).mean(-1)
    # the table is linear in each tile, so the other tile's hard sample counts by its mean
    keep = torch.cat([chance, torch.ones(1, dtype=torch.float64)]).requires_grad_()
    mean = multilinear(keep[None], actions.selection)[0] @ table
    toward = torch.autograd.grad(mean, keep)[0][:finer]
    expected, true = toward * slope, toward * chance * (1 - chance)

    rows = torch.cat([logit, torch.zeros(1)]).float().expand(100_000, -1).clone().requires_grad_()
    capacity = torch.tensor([64, 16, 4])[:levels].expand(100_000, -1)
    sample = BernoulliPolicy(rows, capacity, actions, WHOLE).rsample(temperature)
    assert sample.weight is not None
    gradient = torch.autograd.grad((sample.weight * table.float()).sum(), rows)[0][:, :finer]
    print(
        f"straight-through at temperature {temperature}: bias {(expected - true).tolist()} of {true.tolist()}"
    )
    assert within_four_standard_errors(gradient, expected)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_straight_through_gradient_of_a_choice_is_its_integrated_expectation(
    temperature: float, levels: int
) -> None:
    torch.manual_seed(9)
    actions = ActionSet.by_level(Pyramid(64, levels, 8))
    table = torch.tensor([0.1, 0.9, 0.4, 0.2], dtype=torch.float64)[: len(actions)]
    logit = torch.tensor([0.8, -0.5, 0.1, -1.0], dtype=torch.float64)[: len(actions)]

    # over Gumbel noise, by a low-discrepancy sequence: d soft_i / d logit_j = soft_i ([i = j] - soft_j) /
    # temperature
    u = (
        torch.quasirandom.SobolEngine(len(actions), scramble=True, seed=0)
        .draw(2**16, dtype=torch.float64)
        .clamp(1e-9, 1 - 1e-9)
    )
    soft = ((logit - (-u.log()).log()) / temperature).softmax(-1)
    expected = (soft * (table - (soft @ table)[:, None]) / temperature).mean(0)
    chance = logit.softmax(-1)
    true = chance * (table - chance @ table)

    rows = logit.float().expand(100_000, -1).clone().requires_grad_()
    asked = actions.tokens(torch.tensor([[64, 16, 4]])[:, :levels], WHOLE).expand(100_000, -1, -1)
    sample = CategoricalPolicy(rows, Candidates(asked), actions).rsample(temperature)
    assert sample.weight is not None
    gradient = torch.autograd.grad((sample.weight * table.float()).sum(), rows)[0]
    print(
        f"straight-through choice at temperature {temperature}: bias {(expected - true).tolist()} of "
        f"{true.tolist()}"
    )
    assert within_four_standard_errors(gradient, expected)
    assert not within_four_standard_errors(-gradient, expected)


def test_a_score_function_gradient_is_that_of_the_expectation() -> None:
    torch.manual_seed(7)
    for kind in KINDS:
        table = torch.rand(len(ACTIONS), generator=torch.Generator().manual_seed(8))
        logit = random_logit(kind)[:1].requires_grad_()
        probs = policy_of(kind, logit, CAPACITY[:1]).probs
        assert probs is not None
        exact = torch.autograd.grad((probs[0] * table).sum(), logit)[0][0].double()
        rows = logit.detach().expand(40_000, -1).clone().requires_grad_()
        policy = policy_of(kind, rows, CAPACITY[:1].expand(40_000, -1))
        sample = policy.sample()
        assert sample.action is not None
        found = torch.autograd.grad((policy.log_prob(sample) * table[sample.action]).sum(), rows)[0]
        assert within_four_standard_errors(found, exact)


def test_a_one_hot_choice_is_straight_through() -> None:
    weight = gumbel_softmax(torch.zeros(4, 3, requires_grad=True), 1.0)
    assert F.one_hot(weight.argmax(-1), 3).float().equal(weight) and weight.requires_grad


def test_the_mode_is_the_likeliest_decision_and_not_the_likeliest_action() -> None:
    # of the second row's padding, actions 0 and 2 make one decision: .322 twice against .356 of another
    chance = torch.tensor([[0.322, 0.356, 0.322, 0, 0, 0, 0, 0]]).expand(2, -1)
    policy = policy_of("categorical", chance.log().clamp(min=-100))
    for limit in (None, 100):
        mode = policy.mode(limit)
        assert mode.action is not None and mode.action.tolist() == [1, 0]
        expected = torch.tensor([0.356 / 0.322, 0.644 / 0.356]).log()
        torch.testing.assert_close(policy.margin(mode, limit), expected)
    candidates = Candidates(ACTIONS.tokens(CAPACITY, WHOLE))
    utility = UtilityPolicy(chance / 0.05, candidates, ACTIONS, 0.05).mode()
    assert utility.action is not None and utility.action.tolist() == [1, 1]


def test_a_decision_that_cannot_happen_has_no_probability() -> None:
    policy = policy_of("bernoulli", torch.zeros(2, TILES))
    without_glance = Decision(torch.tensor([[64, 16, 4, 0], [40, 0, 4, 0]]))
    assert policy.log_prob(without_glance).tolist() == [float("-inf")] * 2
    assert policy.log_prob(policy.mode()).isfinite().all()
