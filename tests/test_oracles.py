"""Oracles: the best listed action by type and by sample, the cheaper one in a tie."""

from dataclasses import replace

import torch

from pyrskip.rollouts.oracles import by_sample, by_type
from tests.tables import synthetic_table


def test_by_type_takes_the_level_that_each_type_needs() -> None:
    table = synthetic_table(images=200)
    best = by_type(table, 0.1, table.mean_full_flops)
    assert {kind: table.actions.names[a] for kind, a in best.items()} == {"color": "glance", "shape": "1", "count": "0"}


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
