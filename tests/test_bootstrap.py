"""The paired bootstrap: against analytic standard errors, on clusters, and paired."""

import pytest
import torch

from pyrskip.evaluation.bootstrap import Bootstrap


def test_the_interval_of_independent_data_is_the_analytic_one() -> None:
    values = torch.rand(2000, generator=torch.Generator().manual_seed(1))
    low, high = Bootstrap(torch.arange(2000), 2000).interval(values)
    error = 1.96 * float(values.std()) / 2000**0.5
    assert low == pytest.approx(float(values.mean()) - error, abs=0.15 * error)
    assert high == pytest.approx(float(values.mean()) + error, abs=0.15 * error)


def test_intervals_cover_the_truth_about_19_times_in_20() -> None:
    generator = torch.Generator().manual_seed(2)
    resample = Bootstrap(torch.arange(200), 400)
    covered = 0
    for _ in range(300):
        low, high = resample.interval((torch.rand(200, generator=generator) < 0.7).float())
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_questions_of_one_image_count_once() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(3))
    low, high = Bootstrap(torch.arange(300), 1000).interval(values)
    same = Bootstrap(torch.arange(300).repeat_interleave(10), 1000).interval(values.repeat_interleave(10))
    assert same == pytest.approx((low, high))


def test_a_constant_difference_has_no_spread() -> None:
    a = torch.rand(100)
    resample = Bootstrap(torch.arange(100) // 2)
    assert resample.interval_of_difference(a + 0.1, a) == pytest.approx((0.1, 0.1), abs=1e-6)
    assert resample.interval_of_ratio(3 * a, a) == pytest.approx((3.0, 3.0))


def test_resamples_without_a_denominator_are_left_out() -> None:
    values, one = torch.ones(3), torch.tensor([1.0, 0.0, 0.0])
    assert Bootstrap(torch.arange(3)).interval_of_ratio(values * one, one) == (1.0, 1.0)


def test_the_seed_decides_the_resamples() -> None:
    values = torch.rand(50)
    image_of = torch.arange(50)
    assert Bootstrap(image_of, seed=4).interval(values) == Bootstrap(image_of, seed=4).interval(values)
    assert Bootstrap(image_of, seed=4).interval(values) != Bootstrap(image_of, seed=5).interval(values)
