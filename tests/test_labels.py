"""Labels that others train gates on, against their definitions read word for word."""

from itertools import product
from math import log

import pytest
import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.reward import RewardConfig
from pyrskip.rollouts import labels
from pyrskip.training.rules import RULES, rule_config
from pyrskip.training.rules.ratio import RatioModule
from tests.toys import IMAGES, batches, toy_module


def told(scores: tuple[float, ...], costs: tuple[float, ...], enough: float, margin: float) -> int:
    by_cost = sorted(range(len(costs)), key=lambda action: costs[action])
    for place, action in enumerate(by_cost):
        finer = [scores[other] for other in by_cost[place + 1 :]]
        if scores[action] >= enough and all(better - scores[action] <= margin for better in finer):
            return action
    return by_cost[-1]


@pytest.mark.parametrize("costs", [(1.0, 2.0, 3.0), (3.0, 1.0, 2.0), (2.0, 3.0, 1.0)])
@pytest.mark.parametrize(("enough", "margin"), [(0.85, 0.1), (0.5, 0.0)])
def test_cares_chooses_the_cheapest_that_is_enough_and_no_dearer_one_betters(
    costs: tuple[float, ...], enough: float, margin: float
) -> None:
    every = list(product((0.0, 0.5, 0.84, 0.86, 0.9, 0.97, 1.0), repeat=3))
    label = labels.cares(torch.tensor(every), torch.tensor([costs] * len(every)), enough, margin)
    assert label.tolist() == [told(scores, costs, enough, margin) for scores in every]
    assert set(label.tolist()) == {0, 1, 2}


def test_awares_needs_more_where_the_full_answer_is_better_by_more_than_the_margin() -> None:
    low, full = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.85, 0.9, 0.6], [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.7]])
    wrong, unsure = [False, False, False, True], [True, False, False]
    assert labels.awares(low, full, 0.1).tolist() == wrong + unsure
    assert labels.awares(low, full, 0.0).tolist() == [*wrong, True, True, True]


def test_a_ratio_is_the_loss_without_a_tile_over_that_with_all() -> None:
    whole, without = torch.tensor([0.5, 0.9, 1.0]), torch.tensor([[0.25, 0.5], [0.9, 0.1], [1.0, 0.5]])
    ratio = labels.log_ratio(whole, without)
    assert ratio[0].tolist() == pytest.approx([log(2), 0], abs=1e-5)
    assert ratio[1].tolist() == pytest.approx([0, log(log(0.1) / log(0.9))], abs=1e-4)
    # an answer that is certain has no loss to divide by, and a floor instead
    assert ratio[2].tolist() == pytest.approx([0, log(log(2) / 1e-6)], abs=1e-4)


def run(module: RatioModule, chance: Tensor, steps: int) -> Tensor:
    """The tiles that the labels of the last step keep, of answers as likely as chance [N, S]."""
    module.environment.table.probability[:, : chance.shape[1]] = chance  # type: ignore[attr-defined]
    kept = torch.empty(0)
    for i, rows in enumerate(batches(module)[:steps]):
        whole = chance[rows][:, module.environment.layout.actions.full]
        kept = labels.log_ratio(whole, chance[rows][:, module.without]) > module.threshold
        module.training_step(rows, i)
    return kept


@pytest.mark.filterwarnings("ignore:.*self.log.*:UserWarning")
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_a_tile_is_kept_at_the_rate_that_is_asked_for(rate: float) -> None:
    module = toy_module("ratio", "bernoulli", RewardConfig(), steps=200, rate=rate)
    assert isinstance(module, RatioModule)
    chance = torch.rand(2 * IMAGES, 4, generator=torch.Generator().manual_seed(0)).clamp(0.05, 0.95)
    assert run(module, chance, 200).float().mean(0).tolist() == pytest.approx([rate, rate], abs=0.15)
    ratio = labels.log_ratio(chance[:, module.environment.layout.actions.full], chance[:, module.without])
    assert (ratio > module.threshold).float().mean(0).tolist() == pytest.approx([rate, rate], abs=0.05)


@pytest.mark.filterwarnings("ignore:.*self.log.*:UserWarning")
def test_a_questions_label_depends_on_no_other_of_its_batch() -> None:
    module = toy_module("ratio", "bernoulli", RewardConfig(), steps=4)
    losses = {}
    for mate in (0, 1):
        torch.nn.init.ones_(module.gate.head.bias)
        module.threshold.zero_()  # type: ignore[union-attr, operator]
        losses[mate] = [float(module.training_step(torch.tensor(rows), 0)) for rows in ([2, mate], [mate])]
        losses[mate][0] -= losses[mate][1] / 2
        module.threshold.zero_()  # type: ignore[union-attr, operator]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)


def test_ratios_are_of_losses_and_not_of_scores() -> None:
    with pytest.raises(UserError, match=r"rule\.target=score has no loss.*allowed: probability"):
        RULES["ratio"].check(
            rule_config("ratio")(target="score"), GateConfig(policy="bernoulli"), RewardConfig()
        )


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("cares", {"enough": 1.5}),
        ("cares", {"smoothing": 1.0}),
        ("ratio", {"rate": 0.0}),
        ("awares", {"margin": -0.1}),
        ("awares", {"missed": -1.0}),
    ],
)
def test_an_impossible_label_is_refused(rule: str, given: dict[str, float]) -> None:
    with pytest.raises(
        UserError, match=rf"rule\..*{next(iter(given))}={next(iter(given.values()))}.*allowed"
    ):
        rule_config(rule)(**given)
