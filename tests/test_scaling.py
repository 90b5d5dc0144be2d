"""Claims about what docs/scaling.md counts with."""

import numpy as np
import pytest

from benchmarks.scaling import BANDWIDTH, LATENCY, ring, stragglers


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_a_step_with_draws_of_its_own_takes_as_long_as_its_slowest_rank(ranks: int) -> None:
    seconds, chance = np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(0).choice(3, size=(20_000, ranks), p=chance)
    own, shared = stragglers(seconds, drawn)
    up_to = chance.cumsum() ** ranks  # the chance that no rank draws a slower one
    expected = seconds @ np.diff(up_to, prepend=0.0)
    assert own == pytest.approx(expected, rel=0.02)
    assert shared == pytest.approx(seconds @ chance, rel=0.02)


def test_a_ring_sends_everything_twice_but_for_a_ranks_own_share() -> None:
    assert ring(1e9, 2) == pytest.approx(1e9 / BANDWIDTH + 2 * LATENCY)
    assert ring(1e9, 512) == pytest.approx(2 * 511 / 512 * 1e9 / BANDWIDTH + 2 * 511 * LATENCY)
