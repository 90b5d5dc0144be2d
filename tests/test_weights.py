"""Budget weights that are learned from rollouts of rungs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.gates.heuristics import SHARES, spread, whole
from pyrskip.rollouts.table import RolloutTable
from pyrskip.rollouts.weights import between, learned_weights
from tests.tables import synthetic_pyramid, synthetic_table

LADDER = (0, 64, 144, 256)
PYRAMID = synthetic_pyramid(4)
ACTIONS = ActionSet.rungs(PYRAMID, LADDER)


def table_of(worth: Tensor) -> RolloutTable:
    """A table whose questions all score the same. worth [T]: of each level, times the root of its share of
    tokens."""
    table = synthetic_table(levels=4, rungs=LADDER)
    share = ACTIONS.tokens(whole(PYRAMID)[None], BudgetRule(rungs=LADDER))[0] / whole(PYRAMID)
    score = share.sqrt() @ worth
    return replace(table, score=torch.cat([score, torch.zeros(2)]).expand(len(table), -1))


def answered(table: RolloutTable, weights: Tensor) -> float:
    tokens = spread(weights, SHARES, ActionSet.by_level(PYRAMID).selection, PYRAMID)
    score = table.score[:, : len(ACTIONS)].double().mean(0)
    return float(between(score, ACTIONS, tokens / whole(PYRAMID)).mean())


def test_at_the_rungs_the_score_is_the_tables_and_between_two_it_is_between_theirs() -> None:
    score = torch.rand(len(ACTIONS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = torch.tensor([step / 256 for step in LADDER], dtype=torch.float64)[ACTIONS.steps]
    assert torch.allclose(between(score, ACTIONS, share), score)
    middle = torch.tensor([[0.125, 0.25, 1.0, 1.0], [0.125, 0.40625, 1.0, 1.0]], dtype=torch.float64)
    names = [["1:64,2", "0:64,1:64,2"], ["1:64,2", "0:64,1:64,2", "1:144,2", "0:64,1:144,2"]]
    expected = [float(score[[ACTIONS.index(name) for name in corners]].mean()) for corners in names]
    assert between(score, ACTIONS, middle).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_that_improves_accuracy_gets_a_higher_weight(level: int) -> None:
    worth = torch.full((4,), 0.02)
    worth[level] = 0.5
    table = table_of(worth)
    weights = learned_weights(table, PYRAMID)
    factor = weights / whole(PYRAMID)
    assert all(factor[level] > 1.5 * factor[other] for other in range(3) if other != level)
    assert answered(table, weights) > answered(table, whole(PYRAMID).double()) + 0.004


def test_where_tokens_change_nothing_weights_are_the_capacities() -> None:
    table = table_of(torch.zeros(4))
    assert learned_weights(table, PYRAMID).equal(whole(PYRAMID).double())


def test_learned_weights_are_a_budget_rules() -> None:
    weights = learned_weights(synthetic_table(levels=4, rungs=LADDER), PYRAMID)
    rule = BudgetRule(total=40, floor=1, weights=tuple(weights.tolist()))
    assert int(rule.tokens(torch.ones(4, dtype=torch.bool), whole(PYRAMID)).sum()) == 40
