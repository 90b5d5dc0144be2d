"""Paired bootstrap over images: questions on one image stand or fall together, so images are resampled, not
questions.

Axes: N questions, M images, R resamples. Intervals are percentile intervals of 95 %. The same resamples serve
every call, so differences and ratios of two methods are paired.
"""

import torch
from torch import Tensor

LEVELS = (0.025, 0.975)

Interval = tuple[float, float]


class Bootstrap:
    """image_of [N] int64: the image of each question; resamples: R; the same seed draws the same
    resamples."""

    def __init__(self, image_of: Tensor, resamples: int = 1000, seed: int = 0) -> None:
        images, self.image_of = torch.unique(image_of, return_inverse=True)
        self.images = len(images)
        generator = torch.Generator().manual_seed(seed)
        draws = (torch.randint(self.images, (self.images,), generator=generator) for _ in range(resamples))
        self.weight = torch.stack([torch.bincount(draw, minlength=self.images) for draw in draws]).double()
        self._count = self._sums(torch.ones(len(image_of)))

    def interval(self, values: Tensor) -> Interval:
        """Of the mean of values [N]."""
        return _percentiles(self._sums(values) / self._count)

    def interval_of_ratio(self, numerator: Tensor, denominator: Tensor) -> Interval:
        """Of sum(numerator) / sum(denominator), [N] each; resamples whose denominator is 0 are left out."""
        below = self._sums(denominator)
        return _percentiles((self._sums(numerator) / below).masked_fill(below == 0, float("nan")))

    def interval_of_difference(self, a: Tensor, b: Tensor) -> Interval:
        """Of mean(a) - mean(b), [N] each, question by question."""
        return self.interval(a.double() - b.double())

    def chance_of_none(self, values: Tensor) -> float:
        """One-sided p-value of the mean of values [N] being at most 0: how often it would come out as large
        if it were 0."""
        mean = values.double().mean()
        noise = self._sums(values) / self._count - mean
        # rounding must not make a difference of nothing look like one
        return float((1 + (noise >= mean - 1e-12).sum()) / (1 + len(noise)))

    def _sums(self, values: Tensor) -> Tensor:
        """Sum of values [N] in every resample, [R]."""
        per_image = torch.zeros(self.images, dtype=torch.float64).index_add(0, self.image_of, values.double())
        return self.weight @ per_image


def _percentiles(statistic: Tensor) -> Interval:
    low, high = torch.nanquantile(statistic, torch.tensor(LEVELS, dtype=statistic.dtype)).tolist()
    return low, high
