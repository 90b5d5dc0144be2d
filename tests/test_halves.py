"""Claims about an accelerator's memory that is too small: a batch is halved, nothing else changes, and a
batch goes from process to process whole."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.halves import in_halves
from pyrskip.rollouts import rollout
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.sample import Batch, Question, Sample
from tests.models import SIDE, tiny_batch, tiny_model

PLENTY = 2


def full(batch: Batch) -> None:
    if len(batch.image) > PLENTY:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cached_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            str(i),
            torch.zeros(1, dtype=torch.uint8).expand(3, SIDE, 50 + i),
            (Question("what?", ("this",)),) * (i % 3),
            (torch.randn(8, 7, 5, generator=generator).half(), torch.randn(4, 3 + i, 5)),
        )
        for i in range(4)
    ]
    return Batch.collate(samples, SIDE)


def same(a: Batch, b: Batch) -> None:
    assert (a.questions, a.keys, a.image_keys) == (b.questions, b.keys, b.image_keys)
    assert (a.maps is None) == (b.maps is None)
    tensors = zip((*a.on_cpu, a.image, *(a.maps or ())), (*b.on_cpu, b.image, *(b.maps or ())), strict=True)
    assert all(x.dtype == y.dtype and x.equal(y) for x, y in tensors)


def test_halves_are_worked_on_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    batch, seen = tiny_batch(), []

    def work(part: Batch) -> int:
        full(part)
        seen.extend(part.keys)
        return len(part)

    assert sum(in_halves(work, batch)) == len(batch)
    assert tuple(seen) == batch.keys
    assert "5 images do not fit the accelerator's memory: in halves" in capsys.readouterr().err


def test_an_image_that_does_not_fit_is_one_sentence() -> None:
    def work(part: Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(UserError, match=r"an image with its 2 questions .*2.00 GiB.*smaller: pyramid.size"):
        in_halves(work, tiny_batch())


def test_a_rollout_table_in_halves_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), tiny_batch()
    module = RolloutModule(model, ActionSet.by_level(model.pyramid), BudgetRule(), "val")
    wanted, score = module.predict_step(batch, 0), rollout.score_native

    def tight(model: Any, batch: Batch, *rest: Any) -> tuple[Tensor, Tensor]:
        full(batch)
        return score(model, batch, *rest)

    monkeypatch.setattr(rollout, "score_native", tight)
    found = module.predict_step(batch, 0)
    assert wanted is not None and found is not None
    assert found.keys == wanted.keys and found.score.equal(wanted.score)
    assert found.image_of.equal(wanted.image_of) and found.cost.flops.equal(wanted.cost.flops)
    assert [found.texts[i] for i in found.query_of] == [wanted.texts[i] for i in wanted.query_of]


def test_a_part_of_a_batch_has_its_images_and_questions() -> None:
    for batch in (tiny_batch(), cached_batch()):
        part = batch.part(1, 3)
        assert part.image_keys == batch.image_keys[1:3]
        rows = [i for i, image in enumerate(batch.image_of.tolist()) if image in (1, 2)]
        assert part.keys == tuple(batch.keys[i] for i in rows)
        assert part.image_of.equal(batch.image_of[rows] - 1)


@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_goes_between_processes_in_one_tensor(cached: bool) -> None:
    batch = cached_batch() if cached else tiny_batch()
    same(batch, pickle.loads(ForkingPickler.dumps(batch)))
    sent = []

    class Counts(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Tensor):
                sent.append(value.numel())
            return NotImplemented

    import io

    Counts(io.BytesIO()).dump(batch)
    assert len(sent) == 1


def test_a_batch_elsewhere_is_copied_there() -> None:
    moved = cached_batch().to("meta")
    again = copy.deepcopy(moved)
    assert again.image.is_meta and again.maps is not None and again.maps[0].is_meta
    assert again.keys == moved.keys


def test_a_blank_image_is_one_number_wherever_it_goes() -> None:
    moved = pickle.loads(pickle.dumps(cached_batch())).to("meta")
    assert moved.image.shape == (4, 3, SIDE, SIDE) and moved.image.stride() == (0, 0, 0, 0)
