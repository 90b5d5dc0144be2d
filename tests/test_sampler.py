"""Claims about the order of samples."""

from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrskip.data.sampler import ChunkSampler, StepSampler
from pyrskip.errors import UserError

size = st.integers(1, 40)
small = st.integers(1, 6)


@given(n=size, batch=small, world=small, seed=st.integers(0, 5))
def test_ranks_partition_the_global_batch(n: int, batch: int, world: int, seed: int) -> None:
    together = list(StepSampler(n, batch * world, steps=7, seed=seed))
    ranks = [list(StepSampler(n, batch, steps=7, seed=seed, rank=r, world=world)) for r in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == together


@given(n=size, batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_epoch_covers_every_sample_once(n: int, batch: int, seed: int) -> None:
    sequence = iter(i for indices in StepSampler(n, batch, steps=3 * n, seed=seed) for i in indices)
    for _ in range(3):
        assert sorted(islice(sequence, n)) == list(range(n))


@given(n=size, batch=small, world=small, steps=st.integers(0, 12), start=st.integers(0, 12))
def test_a_resumed_run_goes_on_where_it_was(n: int, batch: int, world: int, steps: int, start: int) -> None:
    whole = list(StepSampler(n, batch, steps, seed=3, rank=world - 1, world=world))
    rest = StepSampler(n, batch, steps, start=start, seed=3, rank=world - 1, world=world)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole[start:])


def test_batches_all_have_the_same_size() -> None:
    assert {len(indices) for indices in StepSampler(5, 4, steps=20)} == {4}


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(i for b in StepSampler(20, 20, 2, seed=seed) for i in b) for seed in (0, 1)]
    epochs = {order[half : half + 20] for order in orders for half in (0, 20)}
    assert len(epochs) == 4


def test_a_sampler_can_be_iterated_again() -> None:
    sampler = StepSampler(5, 3, steps=6, seed=1)
    assert list(sampler) == list(sampler)


def test_the_order_is_the_same_in_every_release() -> None:
    assert list(StepSampler(6, 4, steps=3, seed=1)) == [[4, 0, 2, 1], [5, 3, 1, 4], [0, 3, 2, 5]]


@given(n=size, batch=small, chunk=small, world=st.integers(1, 50))
def test_ranks_share_out_every_chunk_once(n: int, batch: int, chunk: int, world: int) -> None:
    ranks = [ChunkSampler(n, batch, chunk, rank=rank, world=world) for rank in range(world)]
    seen = sorted(i for sampler in ranks for indices in sampler for i in indices)
    assert seen == list(range(n))
    for sampler in ranks:
        batches = list(sampler)
        assert len(sampler) == len(batches)
        assert sampler.chunks == ranks[0].chunks
        start = 0
        for last, (low, high) in sorted(sampler.ends.items()):
            assert [i for indices in batches[start : last + 1] for i in indices] == list(range(low, high))
            assert all(len(indices) == batch for indices in batches[start:last])
            start = last + 1
        assert start == len(batches)


@given(n=size, chunk=small, worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_another_number_of_ranks_finishes_what_is_left(n: int, chunk: int, worlds: tuple[int, int]) -> None:
    whole = ChunkSampler(n, 3, chunk)
    done = ChunkSampler(n, 3, chunk, rank=0, world=worlds[0]).ends.values()
    rest = [c for r in range(worlds[1]) for c in ChunkSampler(n, 3, chunk, list(done), r, worlds[1]).ends.values()]
    assert sorted([*done, *rest]) == whole.chunks


@pytest.mark.parametrize("n", [0, -1])
def test_an_empty_dataset_is_refused(n: int) -> None:
    with pytest.raises(UserError, match="no sample"):
        StepSampler(n, 1, 1)
    with pytest.raises(UserError, match="no sample"):
        ChunkSampler(n, 1, 1)


def test_a_wrong_batch_or_seed_is_refused() -> None:
    with pytest.raises(UserError, match="batch_images=0"):
        StepSampler(3, 0, 1)
    with pytest.raises(UserError, match="batch_images=0"):
        ChunkSampler(3, 0, 1)
    with pytest.raises(UserError, match="chunk_images=0"):
        ChunkSampler(3, 1, 0)
    with pytest.raises(UserError, match="seed=-1"):
        StepSampler(3, 1, 1, seed=-1)
