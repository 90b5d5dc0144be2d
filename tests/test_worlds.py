"""Claims about learning, in worlds whose best decisions are known: what rules and policies come to.

The bound is a share of the gap between the best constant decision and the best of each question.
"""

import pytest

from benchmarks.worlds import WORLDS, train
from pyrskip.training.rules import RULES, valid_pairs

BOUND = 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [pair for pair in valid_pairs(online=False) if pair[1] != "rungs" and RULES[pair[0]].priced],
    ids="-".join,
)
def test_every_rule_finds_what_the_question_decides_with_every_policy(pair: tuple[str, str]) -> None:
    assert train(WORLDS["question"], pair, "probability", 300, 0)[0] < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("exact", "categorical"), ("gumbel", "bernoulli")], ids="-".join)
def test_a_gate_finds_what_the_glance_decides(pair: tuple[str, str]) -> None:
    assert train(WORLDS["glance"], pair, "probability", 500, 0)[0] < BOUND


@pytest.mark.slow
def test_a_sequential_policy_knows_its_tiles_apart() -> None:
    assert train(WORLDS["both"], ("reinforce", "sequential"), "probability", 1500, 0)[0] < BOUND
