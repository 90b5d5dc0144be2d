"""Paired bootstrap over images: questions on one image stand or fall together, so images are resampled, not
questions.

Axes: N questions, M images, R resamples, V statistics that are computed together. Intervals are percentile
intervals of 95 %. The same resamples serve every call, so differences and ratios of two methods are paired.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

LEVELS = (0.025, 0.975)
BLOCK = 1 << 24
"""Weights of images in resamples that are held at a time (128 MiB), or one resample's where that is more."""

Interval = tuple[float, float]


class Bootstrap:
    """image_of [N] int64: the image of each question; resamples: R; the same seed draws the same resamples.

    Holds at most max(BLOCK, M) weights, however many resamples there are: more than a block are drawn again
    at each pass over them, so statistics that are computed together cost one pass.
    """

    def __init__(self, image_of: Tensor, resamples: int = 1000, seed: int = 0) -> None:
        images, self.image_of = torch.unique(image_of, return_inverse=True)
        self.images, self.resamples, self.seed = len(images), resamples, seed
        self._rows = max(1, BLOCK // max(self.images, 1))
        self._kept = next(self._drawn()) if resamples <= self._rows else None
        self._count = self._sums(torch.ones(1, len(image_of)))

    def interval(self, values: Tensor) -> Interval:
        """Of the mean of values [N]."""
        return self.intervals(values[None])[0]

    def intervals(self, values: Tensor) -> list[Interval]:
        """Of the mean of each of values [V, N]."""
        return _percentiles(self._sums(values) / self._count)

    def interval_of_ratio(self, numerator: Tensor, denominator: Tensor) -> Interval:
        """Of sum(numerator) / sum(denominator), [N] each; resamples whose denominator is 0 are left out."""
        return self.intervals_of_ratios(numerator[None], denominator[None])[0]

    def intervals_of_ratios(self, numerator: Tensor, denominator: Tensor) -> list[Interval]:
        """Of sum(numerator) / sum(denominator) of each pair of rows, [V, N] each; as `interval_of_ratio`."""
        above, below = self._sums(torch.cat([numerator.double(), denominator.double()])).chunk(2)
        return _percentiles((above / below).masked_fill(below == 0, float("nan")))

    def interval_of_difference(self, a: Tensor, b: Tensor) -> Interval:
        """Of mean(a) - mean(b), [N] each, question by question."""
        return self.interval(a.double() - b.double())

    def chances_of_none(self, values: Tensor) -> list[float]:
        """One-sided p-value of the mean of each of values [V, N] being at most 0: how often it would come out
        as large if it were 0."""
        mean = values.double().mean(-1, keepdim=True)
        noise = self._sums(values) / self._count - mean
        # rounding must not make a difference of nothing look like one
        as_large: list[int] = (noise >= mean - 1e-12).sum(-1).tolist()
        return [(1 + count) / (1 + self.resamples) for count in as_large]

    def _sums(self, values: Tensor) -> Tensor:
        """Sum of each of values [V, N] in every resample, [V, R] float64."""
        per_image = torch.zeros(self.images, len(values), dtype=torch.float64)
        per_image.index_add_(0, self.image_of, values.T.double())
        blocks = self._drawn() if self._kept is None else (self._kept,)
        return torch.cat([weight @ per_image for weight in blocks]).T

    def _drawn(self) -> Iterator[Tensor]:
        """How often each image is in each resample, [at most `_rows`, M] float64 a block, R rows in all."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.resamples, self._rows):
            weight = torch.empty(min(self._rows, self.resamples - start), self.images, dtype=torch.float64)
            for row in weight:
                draw = torch.randint(self.images, (self.images,), generator=generator)
                row.copy_(torch.bincount(draw, minlength=self.images))
            yield weight


def _percentiles(statistics: Tensor) -> list[Interval]:
    """Of each of statistics [V, R]."""
    levels = torch.tensor(LEVELS, dtype=statistics.dtype)
    bounds: list[list[float]] = torch.nanquantile(statistics, levels, dim=-1).T.tolist()
    return [(low, high) for low, high in bounds]
