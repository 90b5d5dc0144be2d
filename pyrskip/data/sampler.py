"""In which order samples are seen: a pure function of the seed and the step, so that there is no state but
the step.

Two orders. `samples`: one sequence for all ranks, which take turns; any rank may read any shard. `shards`:
every rank and worker has shards of its own, a few at a time, so that each is read by one process alone.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from pyrskip.errors import UserError

ORDERS = ("samples", "shards")
EARLY = 1
"""Sets the order of early samples apart from that of the others."""
BLOCK = 1000
"""Samples in which every part of a mixture comes as often as its weight says."""
MIX = 4
"""Shards that order=shards reads, and shuffles, together."""


@dataclass(frozen=True)
class Parts:
    """What samples there are. shards: samples in each shard of each part of a mixture, parts in the order of
    the dataset's indices; weights: how often each part is drawn from, of any sum."""

    shards: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def samples(self) -> int:
        return sum(map(sum, self.shards))


class Sequence(Protocol):
    """An endless sequence of indices."""

    def slice(self, low: int, high: int) -> NDArray[np.int64]:
        """Elements low to high."""
        ...


class Shuffled:
    """A permutation of 0 to n - 1 for each epoch, drawn from (seed, epoch)."""

    def __init__(self, n: int, seed: tuple[int, ...]) -> None:
        self._n, self._seed = n, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def slice(self, low: int, high: int) -> NDArray[np.int64]:
        pieces = []
        while low < high:
            epoch, offset = divmod(low, self._n)
            if epoch != self._epoch:
                first, *stream = self._seed
                self._epoch = epoch
                self._permutation = np.random.default_rng((first, epoch, *stream)).permutation(self._n)
            pieces.append(self._permutation[offset : offset + high - low])
            low = min(high, (epoch + 1) * self._n)
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


_NONE_YET: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, dtype=np.int64))


class Dealt:
    """What one of `slots` readers sees: of each epoch's permutation of shards every slots-th from `slot` on,
    MIX shards at a time, their samples shuffled together. All slots' epochs together hold every sample
    once."""

    def __init__(self, sizes: tuple[int, ...], slot: int, slots: int, seed: tuple[int, ...]) -> None:
        self._slot, self._slots, self._seed = slot, slots, seed
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._shards = np.flatnonzero(sizes)
        self._epoch, self._low, self._order = _NONE_YET

    def slice(self, low: int, high: int) -> NDArray[np.int64]:
        if low < self._low:
            self._epoch, self._low, self._order = _NONE_YET
        pieces = []
        while low < high:
            while low >= self._low + len(self._order):
                self._low += len(self._order)
                self._epoch += 1
                self._order = self._of_epoch(self._epoch)
            piece = self._order[low - self._low : high - self._low]
            pieces.append(piece)
            low += len(piece)
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    def _of_epoch(self, epoch: int) -> NDArray[np.int64]:
        first, *stream = self._seed
        random = np.random.default_rng((first, epoch, *stream))
        mine = random.permutation(self._shards)[self._slot :: self._slots]
        random = np.random.default_rng((first, epoch, *stream, self._slot))
        windows = [mine[i : i + MIX] for i in range(0, len(mine), MIX)]
        return np.concatenate(
            [random.permutation(np.concatenate([self._shard(s) for s in window])) for window in windows]
        )

    def _shard(self, shard: int) -> NDArray[np.int64]:
        return np.arange(self._starts[shard], self._ends[shard])


class Mixed:
    """Several sequences in turn: of every BLOCK elements each gives its share, at places drawn from (seed,
    block)."""

    def __init__(
        self, sequences: list[Sequence], starts: list[int], weights: tuple[float, ...], seed: int
    ) -> None:
        self._sequences, self._starts, self._seed = sequences, starts, seed
        shares = np.asarray(weights) / sum(weights) * BLOCK
        self._counts = np.floor(shares).astype(int)
        # the largest remainders, the first of equal ones
        left = np.argsort(-(shares - self._counts), kind="stable")[: BLOCK - self._counts.sum()]
        self._counts[left] += 1
        if not self._counts.all():
            raise UserError(
                f"data.shards.weights={list(weights)}: allowed: at least a thousandth of their sum each"
            )

    def slice(self, low: int, high: int) -> NDArray[np.int64]:
        pieces = []
        while low < high:
            block, offset = divmod(low, BLOCK)
            turns = np.repeat(np.arange(len(self._counts)), self._counts)
            turns = np.random.default_rng((self._seed, block, BLOCK)).permutation(turns)
            stop = min(BLOCK, offset + high - low)
            piece = np.empty(stop - offset, dtype=np.int64)
            for part, sequence in enumerate(self._sequences):
                first = block * self._counts[part] + int((turns[:offset] == part).sum())
                here = turns[offset:stop] == part
                piece[here] = sequence.slice(first, first + int(here.sum())) + self._starts[part]
            pieces.append(piece)
            low += stop - offset
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


class StepSampler(Sampler[list[int]]):
    """Batches of the steps `start` to `steps` of a training run, for one rank.

    order=samples: the samples of a run are one endless sequence. Step k takes its k-th slice of batch * world
    samples, of which rank r takes the r-th `batch`. order=shards: step k takes the next `batch` samples of
    the sequence that belongs to the rank and its k-th worker in turn. A batch may span two epochs.

    early: (steps, samples): the first so many steps draw from so many samples, which come before all others
    in the dataset. data: the other samples of the dataset, or their parts. batch: samples a rank and step.
    seed: at least 0. origin: a step, and the sample of the one sequence that it begins at (order=samples
    alone). Raises UserError where one is too small, or where there are too few shards.
    """

    def __init__(
        self,
        data: int | Parts,
        batch: int,
        steps: int,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        order: str = "samples",
        workers: int = 0,
        early: tuple[int, int] = (0, 0),
    ) -> None:
        parts = Parts(((data,),)) if isinstance(data, int) else data
        _check(parts.samples, batch, rank, world)
        if seed < 0:
            raise UserError(f"seed={seed} is negative; allowed: at least 0")
        self.origin = (0, 0)
        self._batch, self._steps, self._start = batch, steps, start
        self._rank, self._world, self._order = rank, world, order
        workers = max(1, workers)
        if order == "shards":
            check_shards(parts, world, workers)
            slots = [rank * workers + worker for worker in range(workers)]
            self._sequences = [_sequence(parts, seed, slot, world * workers) for slot in slots]
        else:
            self._sequences = [_sequence(parts, seed)]
        self._early_steps, self._early_samples = early
        self._early = Shuffled(self._early_samples, (seed, EARLY))

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._steps):
            if step < self._early_steps:
                low = self.sample(step) + self._rank * self._batch
                yield self._early.slice(low, low + self._batch).tolist()
                continue
            turn, worker = divmod(step, len(self._sequences))
            low = (
                turn * self._batch
                if self._order == "shards"
                else self.sample(step) + self._rank * self._batch
            )
            yield (self._sequences[worker].slice(low, low + self._batch) + self._early_samples).tolist()

    def __len__(self) -> int:
        return len(range(self._start, self._steps))

    def sample(self, step: int) -> int:
        """The element of the one sequence that a step begins at."""
        origin, first = self.origin
        return first + (step - origin) * self._world * self._batch

    def replan(self, samples: int) -> None:
        """Begin at the sample that a run of as many samples a step has come to at `start`."""
        origin, first = self.origin
        self.origin = (self._start, first + (self._start - origin) * samples)


class ChunkSampler(Sampler[list[int]]):
    """All n samples once, in order, in batches that no chunk of `chunk` samples shares with the next.

    chunks: (start, stop) of every chunk, the same whatever the number of ranks. Rank r takes every world-th
    chunk from the r-th on, but for those that are `done`. ends: number of the batch with which a chunk ends
    -> that chunk. Raises UserError where n, batch or chunk is less than 1.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        chunk: int,
        done: Container[tuple[int, int]] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check(n, batch, rank, world)
        if chunk < 1:
            raise UserError(f"chunk_images={chunk} is too small; allowed: at least 1")
        self.chunks = [(start, min(start + chunk, n)) for start in range(0, n, chunk)]
        self.ends: dict[int, tuple[int, int]] = {}
        self._batches: list[list[int]] = []
        for start, stop in self.chunks[rank::world]:
            if (start, stop) not in done:
                self._batches += [
                    list(range(low, min(low + batch, stop))) for low in range(start, stop, batch)
                ]
                self.ends[len(self._batches) - 1] = (start, stop)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def check_shards(parts: Parts, world: int, workers: int, directory: str = "<data directory>") -> None:
    """Raises UserError where order=shards has fewer shards than readers: some would have nothing to read."""
    slots, workers = world * max(1, workers), max(1, workers)
    for shards in parts.shards:
        if sum(size > 0 for size in shards) < slots:
            fit = max(1, sum(shards) // (slots * MIX))
            raise UserError(
                f"loader.order=shards gives each of {world} ranks x {workers} workers shards of its own, and "
                f"there are {len(shards)}; allowed: loader.order=samples, fewer workers, or more shards: "
                f"pyrskip data reshard {directory} <new directory> samples_per_shard={fit}"
            )


def _sequence(parts: Parts, seed: int, slot: int = 0, slots: int = 0) -> Sequence:
    """The one sequence of all samples, or with slots that of a slot's own shards."""
    streams = [(seed,)] if len(parts.shards) == 1 else [(seed, part) for part in range(len(parts.shards))]
    sequences: list[Sequence] = [
        Dealt(sizes, slot, slots, stream) if slots else Shuffled(sum(sizes), stream)
        for sizes, stream in zip(parts.shards, streams, strict=True)
    ]
    if len(sequences) == 1:
        return sequences[0]
    starts = np.cumsum([0, *map(sum, parts.shards)]).tolist()
    if not all(map(sum, parts.shards)):
        raise UserError(
            "a part of the mixture holds no sample of this split that can be read; allowed: at least 1 in "
            "each"
        )
    return Mixed(sequences, starts[:-1], parts.weights, seed)


def _check(n: int, batch: int, rank: int, world: int) -> None:
    assert 0 <= rank < world
    if n < 1:
        raise UserError("the dataset holds no sample that can be read; allowed: at least 1")
    if batch < 1:
        raise UserError(f"batch_images={batch} is too small; allowed: at least 1")
