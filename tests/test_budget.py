"""Budgets: exact sums, bounds, the optimum that shares are rounded from, and draws that are pure
functions."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrskip.budget import BudgetRule, StochasticBudget, allocate, scale
from pyrskip.errors import UserError

examples = settings(max_examples=60)


@dataclass(frozen=True)
class Problem:
    """A feasible allocation. weights, keep [B, T]; total [B]; floor and cap: one number, [T] or [B, T]."""

    weights: Tensor
    total: Tensor
    floor: int | Tensor
    cap: int | Tensor
    keep: Tensor

    def bounds(self) -> tuple[Tensor, Tensor]:
        high = self.cap * self.keep
        return torch.minimum(torch.as_tensor(self.floor), high), high

    def part(self, rows: slice = slice(None), tiles: Any = slice(None)) -> "Problem":
        floor, cap = (
            b if isinstance(b, int) else b[tiles] if b.ndim == 1 else b[rows][:, tiles]
            for b in (self.floor, self.cap)
        )
        return Problem(self.weights[rows][:, tiles], self.total[rows], floor, cap, self.keep[rows][:, tiles])

    def solve(self) -> Tensor:
        return allocate(self.weights, self.total, floor=self.floor, cap=self.cap, keep=self.keep)


@st.composite
def problems(draw: st.DrawFn, positive: bool = False) -> Problem:
    rows, tiles = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    weight = (
        st.floats(1e-3, 1e3)
        if positive
        else st.just(0.0) | st.floats(0, 1e300) | st.integers(0, 3).map(float)
    )

    def table(element: st.SearchStrategy, dtype: torch.dtype) -> Tensor:  # type: ignore[type-arg]
        row = st.lists(element, min_size=tiles, max_size=tiles)
        return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=dtype)

    weights = table(weight, torch.float64)

    def bound(element: st.SearchStrategy[int]) -> int | Tensor:
        whole = table(element, torch.int64)
        return draw(st.sampled_from([int(whole[0, 0]), whole[0], whole]))

    keep, floor, cap = table(st.booleans(), torch.bool), bound(st.integers(0, 80)), bound(st.integers(0, 400))
    low, high = Problem(weights, weights, floor, cap, keep).bounds()
    ranges = zip(low.sum(-1).tolist(), high.sum(-1).tolist(), strict=True)
    total = torch.tensor([draw(st.integers(least, most)) for least, most in ranges])
    return Problem(weights, total, floor, cap, keep)


def reference_shares(weights: list[float], total: int, low: list[int], high: list[int]) -> list[float]:
    """One row by plain bisection on log lambda; all weights positive."""

    def shares(log_lambda: float) -> list[float]:
        return [min(max(math.exp(log_lambda) * w, a), b) for w, a, b in zip(weights, low, high, strict=True)]

    least, most = -40.0, 40.0
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (middle, most) if sum(shares(middle)) < total else (least, middle)
    return shares(most)


@examples
@given(problems())
def test_budgets_sum_to_the_total_within_floor_and_cap(problem: Problem) -> None:
    tokens = problem.solve()
    low, high = problem.bounds()
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens.sum(-1), problem.total)
    assert bool(((low <= tokens) & (tokens <= high)).all())


@examples
@given(problems(positive=True))
def test_budgets_round_the_shares_that_bisection_finds(problem: Problem) -> None:
    low, high = problem.bounds()
    for row, tokens in enumerate(problem.solve()):
        args = problem.weights[row].tolist(), int(problem.total[row]), low[row].tolist(), high[row].tolist()
        share = torch.tensor(reference_shares(*args), dtype=torch.float64)
        assert bool(((tokens - share).abs() < 1 + 1e-5).all())
        remainder = share - (share + 1e-5).floor()
        raised, lowered = tokens > share + 1e-5, tokens < share - 1e-5
        if raised.any() and lowered.any():
            assert remainder[raised].min() >= remainder[lowered].max() - 1e-5


@examples
@given(problems())
def test_a_row_does_not_depend_on_its_batch_mates(problem: Problem) -> None:
    tokens = problem.solve()
    for row in range(len(tokens)):
        assert torch.equal(problem.part(rows=slice(row, row + 1)).solve()[0], tokens[row])


@examples
@given(problems(positive=True), st.randoms(use_true_random=False))
def test_permuted_tiles_get_permuted_budgets_up_to_ties(problem: Problem, random) -> None:  # type: ignore[no-untyped-def]
    tiles = problem.weights.shape[1]
    order = random.sample(range(tiles), tiles)
    difference = problem.part(tiles=order).solve() - problem.solve()[:, order]
    assert int(difference.abs().max()) <= 1
    low, high = problem.bounds()
    for row in difference.any(-1).nonzero()[:, 0].tolist():
        args = problem.weights[row].tolist(), int(problem.total[row]), low[row].tolist(), high[row].tolist()
        share = torch.tensor(reference_shares(*args), dtype=torch.float64)[order][difference[row] != 0]
        assert float((share % 1).max() - (share % 1).min()) < 1e-5


@examples
@given(problems())
def test_no_tile_loses_more_than_its_rounding_when_the_total_grows(problem: Problem) -> None:
    more = torch.minimum(problem.total + 1, problem.bounds()[1].sum(-1))
    grown = Problem(problem.weights, more, problem.floor, problem.cap, problem.keep).solve()
    assert bool((grown >= problem.solve() - 1).all())


@examples
@given(problems(positive=True), st.floats(1e-6, 1e6))
def test_the_unit_of_the_weights_does_not_matter_up_to_ties(problem: Problem, unit: float) -> None:
    scaled = Problem(problem.weights * unit, problem.total, problem.floor, problem.cap, problem.keep)
    assert int((scaled.solve() - problem.solve()).abs().max()) <= 1


def one_row(
    weights: list[float],
    total: int,
    floor: int | Tensor = 0,
    cap: int | Tensor = 400,
    keep: list[bool] | None = None,
) -> list[int]:
    kept = torch.tensor([keep or [True] * len(weights)])
    return allocate(torch.tensor([weights], dtype=torch.float64), total, floor=floor, cap=cap, keep=kept)[
        0
    ].tolist()


@pytest.mark.parametrize(
    ("weights", "total", "floor", "cap", "tokens"),
    [
        ([0.5, 0.3, 0.1, 0.05, 0.05], 1000, 64, 400, [400, 354, 118, 64, 64]),
        ([0.5, 0.3, 0.1, 0.05, 0.05], 1000, 0, 1000, [500, 300, 100, 50, 50]),
        ([0.0, 0.0, 0.0], 7, 0, 400, [3, 2, 2]),
        ([1.0, 1.0, 1.0], 8, 0, 400, [3, 3, 2]),
        ([0.1, 0.3], 2, 0, 400, [1, 1]),
        ([0.3, 0.1], 2, 0, 400, [2, 0]),
        ([1.0, 0.0, 0.0], 500, 10, 400, [400, 50, 50]),
        ([1.0, 1e-30, 0.0], 600, 0, 400, [400, 200, 0]),
        ([1.0, 1e-310], 500, 10, 400, [400, 100]),
        ([1.0, 3.0], 10, 400, 5, [5, 5]),
    ],
)
def test_golden_allocations(
    weights: list[float], total: int, floor: int, cap: int, tokens: list[int]
) -> None:
    assert one_row(weights, total, floor, cap) == tokens


def test_skipped_tiles_get_no_floor_and_their_weights_do_not_count() -> None:
    assert one_row([1e300, 1.0, 3.0], 100, floor=10, keep=[False, True, True]) == [0, 25, 75]


def test_lower_tiles_win_ties_however_many_tie() -> None:
    assert one_row([0.7] * 100, 250) == [3] * 50 + [2] * 50


def test_a_floor_is_lowered_to_a_smaller_cap() -> None:
    assert one_row([1.0, 1.0], 70, floor=64, cap=torch.tensor([4, 100])) == [4, 66]


def test_every_tile_may_have_a_floor_of_its_own() -> None:
    assert one_row([1.0, 1.0, 0.0], 70, floor=torch.tensor([0, 50, 8])) == [12, 50, 8]


def test_an_empty_selection_holds_nothing_and_only_nothing() -> None:
    assert one_row([1.0, 2.0], 0, floor=9, keep=[False, False]) == [0, 0]
    with pytest.raises(ValueError, match="total of 1 tokens; allowed with its kept tiles: 0 to 0"):
        one_row([1.0, 2.0], 1, keep=[False, False])


@pytest.mark.parametrize("total", [127, 801])
def test_an_impossible_total_names_the_row_and_the_feasible_range(total: int) -> None:
    keep = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(UserError, match=f"row 1 cannot spend a total of {total} tokens; .*: 128 to 800$"):
        allocate(torch.ones(2, 3), torch.tensor([300, total]), floor=64, cap=400, keep=keep)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_weights_that_are_not_weights_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="finite and at least 0"):
        one_row([1.0, bad], 10)


@pytest.mark.parametrize("total", [10.5, torch.tensor([10.0]), torch.tensor(10.5)])
def test_a_total_is_a_whole_number_of_tokens(total: object) -> None:
    with pytest.raises(UserError, match="tokens is no whole number; allowed: int, or an int tensor"):
        one_row([1.0, 2.0], total)  # type: ignore[arg-type]


def test_weights_are_a_row_a_decision() -> None:
    with pytest.raises(UserError, match=r"of shape \[3\]; allowed: \[B, T\]"):
        allocate(torch.ones(3), 10, cap=9, keep=torch.ones(3, dtype=torch.bool))


def test_negative_bounds_are_refused() -> None:
    for floor, cap in ((-1, 4), (0, -4), (torch.tensor([-1]), 4)):
        with pytest.raises(UserError, match="floor and cap must be at least 0"):
            one_row([1.0], 0, floor, cap)


def test_a_rule_without_a_total_gives_every_kept_tile_what_it_can_hold() -> None:
    selection = torch.tensor([[True, False, True], [True, True, True]])
    tokens = BudgetRule(cap=100).tokens(selection, torch.tensor([256, 64, 0]))
    assert tokens.tolist() == [[100, 0, 0], [100, 64, 0]]


def test_a_rule_divides_its_total_in_proportion_to_capacity_by_default() -> None:
    assert BudgetRule(total=85, floor=1).tokens(
        torch.ones(3, dtype=torch.bool), torch.tensor([256, 64, 20])
    ).tolist() == [64, 16, 5]


def test_a_rule_follows_its_weights() -> None:
    rule = BudgetRule(total=100, floor=1, weights=(1.0, 3.0))
    assert rule.tokens(torch.ones(2, dtype=torch.bool), torch.tensor([256, 256])).tolist() == [25, 75]


@examples
@given(problems())
def test_a_rules_total_is_clamped_to_what_the_kept_tiles_can_meet(problem: Problem) -> None:
    _, high = problem.bounds()
    low = high.clamp(max=7)
    tokens = BudgetRule(total=300, floor=7).tokens(problem.keep, high)
    expected = torch.full_like(problem.total, 300).clamp(low.sum(-1), high.sum(-1))
    assert torch.equal(tokens.sum(-1), expected)
    assert bool(((low <= tokens) & (tokens <= high)).all())


def test_a_rule_broadcasts_actions_against_samples() -> None:
    selection = torch.tensor([[True, True], [False, True]])
    capacity = torch.tensor([[16, 4], [64, 16], [256, 64]])
    tokens = BudgetRule(total=20, floor=1).tokens(selection, capacity[:, None])
    assert tokens.shape == (3, 2, 2)
    assert tokens.tolist() == [[[16, 4], [0, 4]], [[16, 4], [0, 16]], [[16, 4], [0, 20]]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"total": -1}, "budget.total=-1"),
        ({"floor": -2}, "budget.floor=-2"),
        ({"cap": 0}, "budget.cap=0"),
        ({"weights": (1.0, -1.0)}, "budget.weights"),
    ],
)
def test_a_wrong_rule_is_refused_by_key(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BudgetRule(**fields)  # type: ignore[arg-type]


def test_a_rule_with_weights_for_other_tiles_is_refused() -> None:
    with pytest.raises(UserError, match="has 2 numbers; allowed: one for each of 3 tiles"):
        BudgetRule(total=9, floor=1, weights=(1.0, 1.0)).tokens(
            torch.ones(3, dtype=torch.bool), torch.full((3,), 9)
        )


@pytest.mark.parametrize("kind", ["tokenflex", "uniform", "sandwich", "fixed"])
def test_stochastic_fractions_depend_on_seed_step_and_rank_alone(kind: str) -> None:
    torch.manual_seed(0)
    first = [StochasticBudget(kind, seed=3).fractions(step, rank) for step in range(20) for rank in range(2)]
    torch.manual_seed(1)
    budget = StochasticBudget(kind, seed=3)
    again = [budget.fractions(step, rank) for step in reversed(range(20)) for rank in (1, 0)][::-1]
    assert first == again
    assert all(0 < fraction <= 1 for fractions in first for fraction in fractions)
    if kind != "fixed":
        assert first[::2] != first[1::2], "ranks draw alike"
        assert first != [
            StochasticBudget(kind, seed=4).fractions(step, rank) for step in range(20) for rank in range(2)
        ]


def test_tokenflex_draws_its_three_counts_at_their_published_rates() -> None:
    budget, draws = StochasticBudget("tokenflex", seed=0), 4000
    counts = [round(256 * budget.fractions(step)[0]) for step in range(draws)]
    for tokens, p in ((64, 0.2), (144, 0.3), (256, 0.5)):
        assert abs(counts.count(tokens) / draws - p) < 4 * math.sqrt(p * (1 - p) / draws)


def test_uniform_fractions_fill_their_range() -> None:
    budget = StochasticBudget("uniform", seed=0, smallest=0.4)
    drawn = [budget.fractions(step)[0] for step in range(1000)]
    assert 0.4 <= min(drawn) < 0.41 and 0.99 < max(drawn) <= 1.0
    assert abs(sum(drawn) / 1000 - 0.7) < 4 * 0.6 / math.sqrt(12 * 1000)


def test_the_sandwich_holds_largest_smallest_and_one_between() -> None:
    largest, smallest, between = StochasticBudget("sandwich", seed=0, smallest=0.1).fractions(5)
    assert (largest, smallest) == (1.0, 0.1)
    assert 0.1 < between < 1.0


def test_a_wrong_stochastic_budget_is_refused() -> None:
    with pytest.raises(UserError, match="allowed: fixed, sandwich, tokenflex, uniform"):
        StochasticBudget("gaussian", seed=0)
    with pytest.raises(UserError, match=r"smallest=0.0 must be in \(0, 1\]"):
        StochasticBudget("uniform", seed=0, smallest=0.0)
    with pytest.raises(UserError, match="seed=-1"):
        StochasticBudget("uniform", seed=-1)


@examples
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8), st.integers(1, 100))
def test_scaled_capacity_is_the_exact_ceiling(capacity: list[int], percent: int) -> None:
    scaled = scale(torch.tensor(capacity), percent / 100).tolist()
    assert scaled == [-(-c * percent // 100) for c in capacity]


def test_a_tile_with_any_capacity_keeps_a_token_however_small_the_fraction() -> None:
    assert scale(torch.tensor([[0, 1], [3, 400]]), 1e-9).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(UserError, match="fraction=0"):
        scale(torch.tensor([4]), 0.0)


def test_a_total_needs_a_floor_so_that_a_kept_tile_is_never_skipped() -> None:
    with pytest.raises(UserError, match="budget.floor=0 with a total .* at least 1"):
        BudgetRule(total=9)


@pytest.mark.parametrize(
    "rule",
    [{"rungs": (64, 256)}, {"rungs": (0,)}, {"rungs": (0, 9, 9)}, {"rungs": (0, 9), "total": 5, "floor": 1}],
    ids=str,
)
def test_rungs_that_do_not_rise_from_zero_or_stand_beside_another_rule_are_refused(
    rule: dict[str, Any],
) -> None:
    with pytest.raises(UserError, match=r"budget\.rungs=.*allowed: rungs that rise from 0"):
        BudgetRule(**rule)
