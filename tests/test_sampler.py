"""Claims about the order of samples."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrskip.data.sampler import BLOCK, ChunkSampler, Parts, StepSampler, check_shards
from pyrskip.errors import UserError

size = st.integers(1, 40)
sizes = st.lists(st.integers(1, 7), min_size=6, max_size=20).map(tuple)
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


@given(
    first=size,
    n=size,
    batch=small,
    steps=st.integers(0, 12),
    early=st.integers(0, 12),
    start=st.integers(0, 12),
)
def test_early_steps_draw_from_the_first_samples_alone(
    first: int, n: int, batch: int, steps: int, early: int, start: int
) -> None:
    whole = list(StepSampler(n, batch, steps, seed=3, early=(early, first)))
    assert all(max(indices) < first for indices in whole[:early])
    assert [[i - first for i in indices] for indices in whole[early:]] == list(
        StepSampler(n, batch, steps, seed=3)
    )[early:]
    assert list(StepSampler(n, batch, steps, start=start, seed=3, early=(early, first))) == whole[start:]


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
    rest = [
        c for r in range(worlds[1]) for c in ChunkSampler(n, 3, chunk, list(done), r, worlds[1]).ends.values()
    ]
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


# shards of one's own


def dealt(
    shards: tuple[int, ...], rank: int, world: int, workers: int, steps: int = 60, start: int = 0
) -> StepSampler:
    return StepSampler(Parts((shards,)), 3, steps, start, 1, rank, world, "shards", workers)


@given(shards=sizes, world=st.integers(1, 3), workers=st.integers(0, 2))
def test_every_reader_has_shards_of_its_own_and_together_all_samples(
    shards: tuple[int, ...], world: int, workers: int
) -> None:
    slots = world * max(1, workers)
    n, seen = sum(shards), []
    for rank in range(world):
        sequences = dealt(shards, rank, world, workers)._sequences
        seen.append([sequence._of_epoch(epoch).tolist() for sequence in sequences for epoch in (0, 1)])  # type: ignore[attr-defined]
    for epoch in (0, 1):
        orders = [order for of_rank in seen for order in of_rank[epoch::2]]
        assert len(orders) == slots
        assert sorted(chain(*orders)) == list(range(n))


@given(shards=sizes, world=st.integers(1, 3), workers=st.integers(0, 2), start=st.integers(0, 60))
def test_readers_of_shards_go_on_where_they_were(
    shards: tuple[int, ...], world: int, workers: int, start: int
) -> None:
    whole = list(dealt(shards, world - 1, world, workers))
    assert list(dealt(shards, world - 1, world, workers, start=start)) == whole[start:]
    assert {len(batch) for batch in whole} == {3}


def test_a_worker_reads_few_shards_at_a_time() -> None:
    shard_of = [i // 10 for i in range(400)]
    for worker in (0, 1):
        batches = list(StepSampler(Parts(((10,) * 40,)), 5, 32, order="shards", workers=2))[worker::2]
        assert len({shard_of[i] for batch in batches[:8] for i in batch}) == 4
        assert [i for batch in batches[:8] for i in batch] != sorted(
            i for batch in batches[:8] for i in batch
        )


def test_empty_shards_are_dealt_to_nobody() -> None:
    batches = list(StepSampler(Parts(((0, 3, 0, 2, 0),)), 1, 20, rank=1, world=2, order="shards"))
    assert set(chain(*batches)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("world", "workers"), [(2, 2), (4, 0), (1, 4)])
def test_fewer_shards_than_readers_are_refused_with_the_command_that_reshards(
    world: int, workers: int
) -> None:
    said = (
        f"gives each of {world} ranks x {max(1, workers)} workers shards of its own, and there are 3; "
        "allowed: "
        "loader.order=samples, fewer workers, or more shards: pyrskip data reshard here <new directory> "
        "samples_per_shard=18"
    )
    with pytest.raises(UserError, match=said):
        check_shards(Parts(((100, 100, 100),)), world, workers, "here")
    with pytest.raises(UserError, match="pyrskip data reshard"):
        StepSampler(Parts(((100, 100, 100),)), 3, 10, world=world, order="shards", workers=workers)
    check_shards(Parts(((100,) * 4,)), world, workers)
    StepSampler(Parts(((100, 100, 100),)), 3, 10, world=world, workers=workers)


# mixtures

MIXTURE = Parts(((30, 20), (500,), (7,)), (3.0, 1.0, 0.5))


@pytest.mark.parametrize("order", ["samples", "shards"])
def test_a_mixture_draws_by_weight_whatever_the_sizes(order: str) -> None:
    sequence = list(chain(*StepSampler(MIXTURE, 10, 3 * BLOCK // 10, seed=4, order=order)))
    part_of = [0] * 50 + [1] * 500 + [2] * 7
    for block in range(3):
        counts = Counter(part_of[i] for i in sequence[block * BLOCK : (block + 1) * BLOCK])
        assert counts == {0: 667, 1: 222, 2: 111}
    # within a part every epoch holds every sample once
    for part, n in enumerate((50, 500, 7)):
        mine = [i for i in sequence if part_of[i] == part]
        for start in range(0, len(mine) - n + 1, n):
            assert len(set(mine[start : start + n])) == n


@settings(max_examples=15)
@given(world=st.integers(1, 3), batch=small, start=st.integers(0, 300))
def test_a_mixture_resumes_and_is_shared_out_exactly(world: int, batch: int, start: int) -> None:
    together = list(StepSampler(MIXTURE, batch * world, 300, seed=2))
    ranks = [list(StepSampler(MIXTURE, batch, 300, start, 2, rank, world)) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == together[start:]


def test_weights_that_a_block_cannot_hold_are_refused() -> None:
    with pytest.raises(UserError, match="weights=.*at least a thousandth"):
        StepSampler(Parts(((5,), (5,)), (1.0, 1e-5)), 1, 1)


def test_a_part_without_samples_is_refused() -> None:
    with pytest.raises(UserError, match="a part of the mixture holds no sample"):
        StepSampler(Parts(((5,), (0,)), (1.0, 1.0)), 1, 1)


@given(n=size, batch=small, world=small, start=st.integers(0, 9), before=st.integers(1, 20))
def test_another_number_of_ranks_goes_on_at_the_next_sample(
    n: int, batch: int, world: int, start: int, before: int
) -> None:
    old = [i for indices in StepSampler(n, before, start + 30) for i in indices]
    samplers = [StepSampler(n, batch, start + 4, start, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.replan(before)
    new = [i for step in zip(*samplers, strict=True) for i in chain(*step)]
    assert new[: 30 * before] == old[start * before :][: len(new)]
