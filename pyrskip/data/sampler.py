"""In which order samples are seen: a pure function of the seed and the step, so that there is no state but the step."""

from collections.abc import Container, Iterator

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


class ChunkSampler(Sampler[list[int]]):
    """All n samples once, in order, in batches that no chunk of `chunk` samples shares with the next.

    chunks: (start, stop) of every chunk, the same whatever the number of ranks. Rank r takes every world-th chunk from the
    r-th on, but for those that are `done`. ends: number of the batch with which a chunk ends -> that chunk.
    Raises UserError where n, batch or chunk is less than 1.
    """

    def __init__(
        self, n: int, batch: int, chunk: int, done: Container[tuple[int, int]] = (), rank: int = 0, world: int = 1
    ) -> None:
        _check(n, batch, rank, world)
        if chunk < 1:
            raise UserError(f"chunk_images={chunk} is too small; allowed: at least 1")
        self.chunks = [(start, min(start + chunk, n)) for start in range(0, n, chunk)]
        self.ends: dict[int, tuple[int, int]] = {}
        self._batches: list[list[int]] = []
        for start, stop in self.chunks[rank::world]:
            if (start, stop) not in done:
                self._batches += [list(range(low, min(low + batch, stop))) for low in range(start, stop, batch)]
                self.ends[len(self._batches) - 1] = (start, stop)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _check(n: int, batch: int, rank: int, world: int) -> None:
    assert 0 <= rank < world
    if n < 1:
        raise UserError("the dataset holds no sample that can be read; allowed: at least 1")
    if batch < 1:
        raise UserError(f"batch_images={batch} is too small; allowed: at least 1")
