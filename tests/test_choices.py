"""Policies that choose how much of each tile: rungs, autoregressive and sequential, the one that looks
included.

Every claim is held against an enumeration of all decisions. B rows, T = 3 tiles, S = 9 actions of three rungs
each.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates
from pyrskip.errors import UserError
from pyrskip.policies import Policy
from pyrskip.policies.autoregressive import AutoregressivePolicy, chained
from pyrskip.policies.rungs import RungsPolicy
from pyrskip.policies.sequential import SequentialPolicy, StepHead
from pyrskip.pyramid import Pyramid
from tests.decisions import of_every_action, same

PYRAMID = Pyramid(64, 3, 8)
LADDER = (0, 64, 256)
ACTIONS = ActionSet.rungs(PYRAMID, LADDER)
CAPACITY = PYRAMID.capacity(torch.tensor([[64, 64]]))
TOKENS = ACTIONS.tokens(CAPACITY, BudgetRule(rungs=LADDER))
DECISIONS = of_every_action(ACTIONS, CAPACITY, BudgetRule(rungs=LADDER))
COST = TOKENS.sum(-1).float() / 84
CHANNELS = 5
KINDS = ("rungs", "autoregressive", "sequential", "looks")
LISTED = KINDS[:-1]


def policy_of(kind: str, rows: int = 1, seed: int = 0) -> Policy:
    """Random, the same in every row."""
    generator = torch.Generator().manual_seed(seed)
    candidates, cost = Candidates(TOKENS.expand(rows, -1, -1)), COST.expand(rows, -1)
    choice = 1.5 * torch.randn(1, 2, 3, generator=generator).expand(rows, -1, -1)
    if kind == "rungs":
        return RungsPolicy(choice, candidates, ACTIONS)
    if kind == "autoregressive":
        coupling = 2.0 * torch.randn(1, 2, 3, 2, 3, generator=generator).expand(rows, -1, -1, -1, -1)
        return AutoregressivePolicy(chained(choice, coupling, ACTIONS), candidates, ACTIONS)
    torch.manual_seed(seed)
    head = StepHead(16, 3, 3, 1.0, CHANNELS if kind == "looks" else None)
    torch.nn.init.normal_(head.out.weight)
    context = torch.randn(1, 16, generator=generator).expand(rows, -1)
    features = 3 * torch.randn(3, CHANNELS, generator=generator)

    def reveal(tile: int, keep: Tensor) -> Tensor:
        return features[tile] * keep[:, None]

    return SequentialPolicy(
        head, context, cost, candidates, ACTIONS, torch.tensor(0.0), reveal if kind == "looks" else None
    )


def probabilities(kind: str, seed: int = 0) -> Tensor:
    """Of every listed decision, [S]."""
    policy = policy_of(kind, seed=seed)
    return torch.cat([policy.log_prob(decision) for decision in DECISIONS]).exp().detach().double()


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_the_probabilities_of_all_decisions_sum_to_one_and_differ(kind: str) -> None:
    assert float(probabilities(kind).sum()) == pytest.approx(1, abs=1e-5) and probabilities(kind).std() > 0.01


@kinds
def test_decisions_are_sampled_as_often_as_they_are_likely(kind: str) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        samples = policy_of(kind, 20_000).sample()
    assert samples.action is not None and samples.tokens.equal(TOKENS[0, samples.action])
    for action, chance in enumerate(probabilities(kind).tolist()):
        share = float((samples.action == action).double().mean())
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 20_000) ** 0.5 + 1e-9


@pytest.mark.parametrize("kind", LISTED)
def test_listed_probabilities_entropy_and_marginals_are_those_of_the_enumeration(kind: str) -> None:
    policy, chance = policy_of(kind), probabilities(kind)
    assert policy.probs is not None and torch.allclose(policy.probs[0].double(), chance, atol=1e-6)
    assert policy.entropy().item() == pytest.approx(float(-(chance * chance.log()).sum()), abs=1e-5)
    assert torch.allclose(policy.marginals()[0].double(), chance @ (TOKENS[0] > 0).double(), atol=1e-6)


def test_the_entropy_of_a_gate_that_looks_is_right_on_average_over_its_episodes() -> None:
    policy, chance = policy_of("looks"), probabilities("looks")
    assert isinstance(policy, SequentialPolicy)
    along = torch.stack([policy.steps(d).entropy.sum() for d in DECISIONS]).detach().double()
    assert float((chance * along).sum()) == pytest.approx(float(-(chance * chance.log()).sum()), abs=1e-5)
    assert along.std() > 1e-3


def test_what_is_seen_of_a_kept_tile_changes_what_follows() -> None:
    policy = policy_of("looks")
    assert isinstance(policy, SequentialPolicy)
    blind = SequentialPolicy(
        policy.head,
        policy.context,
        COST,
        policy.candidates,
        ACTIONS,
        torch.tensor(0.0),
        lambda tile, keep: torch.zeros(1, 5),
    )
    # the step on the finest tile comes behind the look at the one before it, which 'glance' never takes
    for name, alike in (("glance", True), ("0", True), ("1", False), ("0,1", False)):
        decision = DECISIONS[ACTIONS.index(name)]
        assert torch.allclose(policy.log_prob(decision), blind.log_prob(decision), atol=1e-6) is alike


def test_tiles_of_rungs_are_independent_and_those_of_a_chain_depend_on_coarser_ones() -> None:
    for kind, independent in (("rungs", True), ("autoregressive", False)):
        table = probabilities(kind).view(3, 3)
        outer = table.sum(1, keepdim=True) * table.sum(0, keepdim=True)
        assert torch.allclose(table, outer, atol=1e-6) is independent


def test_a_chain_is_the_coarse_tiles_softmax_times_the_fine_tiles_moved_by_its_choice() -> None:
    generator = torch.Generator().manual_seed(3)
    choice, coupling = (
        torch.randn(1, 2, 3, generator=generator),
        torch.randn(1, 2, 3, 2, 3, generator=generator),
    )
    found = chained(choice, coupling, ACTIONS)[0].view(3, 3)
    for fine, coarse in product(range(3), repeat=2):
        moved = (choice[0, 0] + coupling[0, 0, :, 1, coarse]).log_softmax(-1)[fine]
        assert float(found[fine, coarse]) == pytest.approx(
            float(choice[0, 1].log_softmax(-1)[coarse] + moved), abs=1e-5
        )


@pytest.mark.parametrize("kind", ["sequential", "looks"])
def test_the_steps_of_an_episode_lead_to_its_decision_and_its_cost(kind: str) -> None:
    policy = policy_of(kind)
    assert isinstance(policy, SequentialPolicy)
    for action, decision in enumerate(DECISIONS):
        steps = policy.steps(decision)
        assert float(steps.log_prob.sum()) == pytest.approx(float(policy.log_prob(decision)), abs=1e-5)
        assert steps.action[0, 0] == 0 and steps.action[0, -1] == action
        assert steps.cost[0].equal(COST[0, steps.action[0]])
        # the coarser tile first, what is left of it kept
        before, half, whole = policy.prefixes(steps)
        assert half.tokens[0].tolist() == [0, *decision.tokens[0, 1:].tolist()]
        assert same(before, DECISIONS[0]) and same(whole, decision)


@kinds
def test_without_a_limit_the_mode_is_the_likeliest_decision_or_choice_by_choice(kind: str) -> None:
    for seed in range(20):
        mode = policy_of(kind, seed=seed).mode()
        table = probabilities(kind, seed).view(3, 3)
        coarse = int(table.sum(0).argmax())
        greedy = 3 * int(table[:, coarse].argmax()) + coarse
        assert same(mode, DECISIONS[greedy if kind == "looks" else int(table.argmax())])


@kinds
@pytest.mark.parametrize("max_tokens", [1, 3, 4, 7, 8, 20, 21, 36, 40, 83, 84, 500])
def test_a_mode_under_a_limit_never_exceeds_it_and_keeps_the_glance(kind: str, max_tokens: int) -> None:
    for seed in range(20):
        policy = policy_of(kind, seed=seed)
        free, limited = policy.mode().tokens, policy.mode(max_tokens).tokens
        assert int(limited.sum()) <= max_tokens and int(limited[0, -1]) >= 1
        if int(free.sum()) <= max_tokens:
            assert limited.equal(free)
        assert (limited[0, :-1] == TOKENS[0, :, :-1]).all(-1).any()


@kinds
def test_a_limit_without_room_for_the_glance_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="max_tokens=0: at least 1"):
        policy_of(kind).mode(0)


def test_a_relaxed_choice_of_rungs_is_one_decision_as_likely_as_it_is() -> None:
    torch.manual_seed(2)
    sample = policy_of("rungs", 20_000).rsample(0.7)
    assert (
        sample.weight is not None
        and sample.weight.sum(-1).eq(1).all()
        and ((sample.weight == 0) | (sample.weight == 1)).all()
    )
    chance = probabilities("rungs")
    error = (chance * (1 - chance) / 20_000).sqrt()
    assert ((sample.weight.double().mean(0) - chance).abs() < 4 * error).all()
    assert (TOKENS[0, sample.weight.argmax(-1)] > 0).float().equal(sample.keep)


def test_a_gate_that_looks_cannot_be_relaxed() -> None:
    with pytest.raises(UserError, match=r"gate\.looks=true cannot be relaxed"):
        policy_of("looks").rsample(1.0)
