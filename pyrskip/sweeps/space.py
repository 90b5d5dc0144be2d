"""What a sweep's overrides mean to a sampler."""

from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def distribution(override: Override) -> BaseDistribution:
    """key=interval(a,b) is sampled between its ends, on a log scale with tag(log,...); range(a,b) is whole
    numbers below b; all else is a choice."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        log = "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log)
        return FloatDistribution(float(low), float(high), log)
    if (
        isinstance(value, RangeSweep)
        and isinstance(value.start, int)
        and isinstance(value.stop, int)
        and value.step == 1
    ):
        return IntDistribution(value.start, value.stop - 1)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def as_override(key: str, value: Any) -> str:
    """Four digits: a directory's name is made of them."""
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
