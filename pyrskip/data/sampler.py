"""In which order samples are seen: a pure function of the seed and the step, so that there is no state but the step."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from pyrskip.errors import UserError


class StepSampler(Sampler[list[int]]):
    """Batches of the steps `start` to `steps` of a training run, for one rank.

    The samples of a run are one endless sequence: a permutation of all n for each epoch, drawn from (seed, epoch). Step k
    takes its k-th slice of batch * world samples, of which rank r takes the r-th `batch`. A batch may span two epochs.

    n: samples of the dataset. batch: samples a rank and step. seed: at least 0. Raises UserError where n, batch or seed is
    too small.
    """

    def __init__(self, n: int, batch: int, steps: int, start: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        _check(n, batch, rank, world)
        if seed < 0:
            raise UserError(f"seed={seed} is negative; allowed: at least 0")
        self._n, self._batch, self._steps, self._start, self._seed = n, batch, steps, start, seed
        self._rank, self._world = rank, world
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._steps):
            low = (step * self._world + self._rank) * self._batch
            yield self._slice(low, low + self._batch)

    def __len__(self) -> int:
        return len(range(self._start, self._steps))

    def _slice(self, low: int, high: int) -> list[int]:
        """Elements low to high of the endless sequence."""
        indices: list[int] = []
        while low < high:
            epoch, offset = divmod(low, self._n)
            if epoch != self._epoch:
                self._epoch = epoch
                self._permutation = np.random.default_rng((self._seed, epoch)).permutation(self._n)
            indices += self._permutation[offset : offset + high - low].tolist()
            low = min(high, (epoch + 1) * self._n)
        return indices


class EvalSampler(Sampler[list[int]]):
    """All n samples once, in order: each rank takes a run of them, sizes differing by at most 1, in batches of `batch`.

    Raises UserError where n or batch is less than 1.
    """

    def __init__(self, n: int, batch: int, rank: int = 0, world: int = 1) -> None:
        _check(n, batch, rank, world)
        self._indices = range(n * rank // world, n * (rank + 1) // world)
        self._batch = batch

    def __iter__(self) -> Iterator[list[int]]:
        for low in range(0, len(self._indices), self._batch):
            yield list(self._indices[low : low + self._batch])

    def __len__(self) -> int:
        return len(range(0, len(self._indices), self._batch))


def _check(n: int, batch: int, rank: int, world: int) -> None:
    assert 0 <= rank < world
    if n < 1:
        raise UserError("the dataset holds no sample that can be read; allowed: at least 1")
    if batch < 1:
        raise UserError(f"batch_images={batch} is too small; allowed: at least 1")
