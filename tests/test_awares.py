"""The rule awares, in worlds where what a question needs is known: what a decision earns, which gradient that
is, and what a gate comes to."""

from itertools import product
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.training.rules import awares
from pyrskip.training.rules.awares import AwaresModule
from tests.test_rules import train
from tests.toys import random_gate, toy_environment, toy_module

PYRAMID = Pyramid(64, 2, 8, (4,))
CROPS = ActionSet.of(PYRAMID, BudgetRule(), ActionConfig("crop"))
NEEDED = {"easy": "glance", "corner": "0.top-left", "side": "0.right", "middle": "0.centre", "whole": "0"}
"""The crop that a kind of question needs."""
# 0.25 for asking and the share of the picture, as the paper has it
COST = {"easy": 0.0, "corner": 0.25 + 0.25, "side": 0.25 + 0.5, "middle": 0.25 + 0.25, "whole": 0.25 + 1.0}


def of_crops() -> TableEnvironment:
    kinds = {kind: CROPS.selection[CROPS.index(name)] for kind, name in NEEDED.items()}
    return toy_environment(PYRAMID, actions=CROPS, kinds=kinds)


def module_of(environment: TableEnvironment, **config: object) -> AwaresModule:
    module = toy_module("awares", "categorical", RewardConfig(0.3), environment=environment, **config)
    assert isinstance(module, AwaresModule)
    module.log_every = 0
    return module


def earned(module: AwaresModule, batch_idx: int = 0) -> dict[str, dict[str, float]]:
    """What each action earns on a question of each kind."""
    table = module.environment.table  # type: ignore[attr-defined]
    rows = torch.arange(len(table.texts))
    seen = module.environment.observe(rows, torch.full((len(rows),), 0.3))
    of = module.earned(rows, seen, batch_idx)
    policy = module.gate.policy(seen)
    assert isinstance(policy, CategoricalPolicy)
    found = [of(policy.candidates.take(torch.full((len(rows),), a))) for a in range(len(table.actions))]
    by_kind = zip(table.types, torch.stack(found, dim=1).tolist(), strict=False)
    return {kind: dict(zip(table.actions.names, values, strict=True)) for kind, values in by_kind}


def test_a_decision_costs_what_the_paper_says() -> None:
    area = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for needed, none in ((True, 2.0), (False, 0.0)):
        found = awares.cost(area, torch.full((4,), needed), 2.0, 0.25, 1.0)
        assert found.tolist() == [none, 0.5, 0.75, 1.25]


def test_a_crop_earns_the_answers_score_less_the_cost_of_asking_for_it() -> None:
    found = earned(module_of(of_crops()))
    for kind, crop in NEEDED.items():
        assert found[kind][crop] == pytest.approx(1 - COST[kind])
        assert found[kind]["0"] == pytest.approx(1 - 1.25)
        # the glance does for easy questions alone, and a crop is no better where it shows something else
        assert found[kind]["glance"] == (1.0 if kind == "easy" else -2.0)
        other = "0.bottom-left"
        assert found[kind][other] == pytest.approx((kind == "easy") - 0.5)
        assert max(found[kind], key=lambda name: found[kind][name]) == crop


def test_a_crop_of_padding_alone_asks_for_nothing() -> None:
    table = of_crops().table
    table.size[:] = torch.tensor([64, 32])
    found = earned(module_of(TableEnvironment(table, PYRAMID, BudgetRule(), table.mean_full_flops)))
    assert found["corner"]["0.right"] == -2.0 and found["easy"]["0.right"] == 1.0
    # the picture is the left half of its canvas: a corner is half of it
    assert found["corner"]["0.top-left"] == pytest.approx(1 - 0.75)


def test_costs_count_when_the_warm_up_is_over_and_a_price_never() -> None:
    module = module_of(toy_environment(), steps=10, warmup=0.5)
    # of the finer levels' 80 tokens level 1 has 16
    costs = {"glance": 2.0, "1": 0.25 + 0.2, "0": 0.25 + 0.8, "0,1": 0.25 + 1.0}
    for step, counts in ((0, 0), (5, 1)):
        hard = earned(module, step)["hard"]
        wanted = {name: (name == "0,1") - counts * cost for name, cost in costs.items()}
        assert hard == pytest.approx(wanted, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*self.log.*:UserWarning")
@pytest.mark.parametrize("baseline", ["group_deviation", "none"])
def test_a_step_has_the_gradient_of_its_own_expectation(
    baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of a question's samples are dealt every pair of actions, weighed with the pair's probability, and
    held against advantage x gradient of log-probability, written out by hand: onehot - probability."""
    module = module_of(toy_environment(), samples=2, baseline=baseline, entropy=0.0, entropy_end=None)
    random_gate(module)
    for row, kind in ((0, "easy"), (1, "hard")):
        rows = torch.tensor([row])
        policy = module.gate.policy(module.environment.observe(rows, torch.tensor([0.3])))
        assert isinstance(policy, CategoricalPolicy)
        chance = policy.probs[0].tolist()
        # level 1, 0 or both: .45, 1.05, 1.25
        reward = [1.0, 0.55, -0.05, -0.25] if kind == "easy" else [-2.0, -0.45, -1.05, -0.25]
        found, wanted = torch.zeros(4), torch.zeros(4)
        for pair in product(range(4), repeat=2):
            dealt = iter(pair)
            monkeypatch.setattr(
                CategoricalPolicy, "sample", lambda p, d=dealt: p.candidates.take(torch.tensor([next(d)]))
            )
            module.zero_grad()
            module.training_step(rows, 0).backward()
            weight = chance[pair[0]] * chance[pair[1]]
            bias = module.gate.head.bias.grad
            assert isinstance(bias, Tensor)
            found -= weight * bias
            earns = [reward[action] for action in pair]
            if baseline == "group_deviation":
                earns = [(r - mean(earns)) / (stdev(earns) + 1e-4) for r in earns]
            for action, advantage in zip(pair, earns, strict=True):
                slope = torch.tensor([float(a == action) - chance[a] for a in range(4)])
                wanted += weight * advantage * slope / 2
        assert wanted.abs().max() > 0.02
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        if baseline == "none":  # which is unbiased
            expected = sum(p * r for p, r in zip(chance, reward, strict=True))
            exact = torch.tensor([p * (r - expected) for p, r in zip(chance, reward, strict=True)])
            torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_gate_asks_for_the_crop_that_a_question_needs_and_for_none_where_none_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = of_crops()
    train(module := module_of(environment, steps=400), monkeypatch)
    rows = torch.arange(5)
    for price in (0.01, 1.0):  # which the labels do not know
        policy = module.gate.eval().policy(environment.observe(rows, torch.full((5,), price)))
        chosen = [CROPS.names[a] for a in environment.action(policy.mode()).tolist()]
        assert dict(zip(NEEDED, chosen, strict=True)) == NEEDED
