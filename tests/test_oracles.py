"""Oracles: the best listed action by type and by sample, the cheaper one in a tie."""

from dataclasses import replace

import pytest
import torch

from pyrskip.errors import UserError
from pyrskip.rollouts.oracles import by_sample, by_type, cross
from tests.tables import synthetic_table


def test_by_type_takes_the_level_that_each_type_needs() -> None:
    table = synthetic_table(images=200)
    best = by_type(table, 0.1, table.mean_full_flops)
    assert {kind: table.actions.names[a] for kind, a in best.items()} == {
        "color": "glance",
        "shape": "1",
        "count": "0",
    }


def test_a_tie_goes_to_the_cheaper_action() -> None:
    table = synthetic_table()
    level = replace(table, score=torch.ones_like(table.score))
    unit = table.mean_full_flops
    assert set(by_type(level, 0.0, unit).values()) == {table.actions.index("glance")}
    assert by_sample(level, 0.0, unit).eq(table.actions.index("glance")).all()


def test_a_price_beyond_any_score_buys_the_glance() -> None:
    table = synthetic_table()
    assert set(by_type(table, 1e6, table.mean_full_flops).values()) == {table.actions.index("glance")}
    assert by_sample(table, 1e6, table.mean_full_flops).eq(table.actions.index("glance")).all()


def test_by_sample_is_the_best_value_that_any_listed_action_gives() -> None:
    table, price = synthetic_table(varied_cost=True), 0.2
    unit = table.mean_full_flops
    value = table.score[:, : len(table.actions)] - price * table.cost.flops[:, : len(table.actions)] / unit
    picked = by_sample(table, price, unit)
    assert torch.allclose(value.gather(1, picked[:, None])[:, 0], value.amax(-1))


def test_cross_plays_what_was_best_on_the_others_table_question_by_question() -> None:
    table, other = synthetic_table(seed=0), synthetic_table(seed=1)
    unit = other.mean_full_flops
    picked = cross(table, other, 0.05, unit)
    assert picked.equal(by_sample(other, 0.05, unit)) and not picked.equal(by_sample(table, 0.05, unit))
    # the other run has its questions in another order
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))
    score, keys, cost = other.score[order], tuple(other.keys[i] for i in order.tolist()), other.cost
    dealt = replace(other, score=score, keys=keys, cost=replace(cost, flops=cost.flops[order]))
    assert cross(table, dealt, 0.05, unit).equal(picked)


def test_luck_does_not_cross_over() -> None:
    """Answers that are chance alone: picking by them gains nothing elsewhere, and much on the same table."""
    generator = torch.Generator().manual_seed(0)
    table, other = (
        replace(t, score=torch.rand(t.score.shape, generator=generator).gt(0.5).float())
        for t in (synthetic_table(images=400), synthetic_table(images=400))
    )
    rows = torch.arange(len(table))
    own = table.score[rows, by_sample(table, 0.0, table.mean_full_flops)].mean()
    crossed = table.score[rows, cross(table, other, 0.0, other.mean_full_flops)].mean()
    assert own > 0.9 and abs(float(crossed) - 0.5) < 0.06


def test_cross_needs_the_same_questions_and_actions() -> None:
    table = synthetic_table()
    with pytest.raises(UserError, match="needs the same questions: the other test rollouts lack 'test-0/0'"):
        cross(table, replace(table, keys=tuple(f"x{k}" for k in table.keys)), 0.1, 1.0)
    with pytest.raises(UserError, match="needs one action set: the other rollouts list glance, 2"):
        cross(table, synthetic_table(levels=4), 0.1, 1.0)
