"""Claims about recordings of single questions, with a stand-in that runs anew what a GPU would replay, and
never looks at what Python makes meanwhile: that is how a recording's mistakes show."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.models import reading as reading_module
from pyrskip.models import recorded, vision
from pyrskip.models.native import NativeModel
from pyrskip.sample import Batch
from tests.models import every_tile, mixed_decisions, taught_model, tiny_batch


class StandIn:
    """Runs its function where a recording would be made, and at every replay."""

    made = 0

    def __init__(self, function: Callable[[], Tensor], pool: Any) -> None:
        for _ in range(3):  # twice to warm up, and what is recorded
            function()
        self.function = function
        StandIn.made += 1

    def replay(self) -> Tensor:
        return self.function()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    def single(x: Tensor) -> bool:
        return len(x) == 1

    monkeypatch.setattr(recorded, "Recording", StandIn)
    monkeypatch.setattr(reading_module, "Recording", StandIn)
    monkeypatch.setattr(reading_module, "can_record", single)
    monkeypatch.setattr(vision, "can_record", single)
    monkeypatch.setattr(recorded.Recordings, "pool", None)
    StandIn.made = 0
    return StandIn


@pytest.fixture(scope="module", params=["decoder", "cross"])
def taught(request: pytest.FixtureRequest) -> tuple[NativeModel, Batch]:
    batch = tiny_batch()
    return taught_model(batch, 40, language=request.param), batch


def answers(model: NativeModel, batch: Batch, asked: Tensor) -> list[str]:
    return [model.answer(batch.rows([i]), asked[[i]])[0] for i in range(len(batch))]


def test_a_replayed_answer_is_the_one_of_a_batch(
    taught: tuple[NativeModel, Batch], recording: type[StandIn]
) -> None:
    model, batch = copy.deepcopy(taught[0]), taught[1]
    for asked in (every_tile(model, batch), mixed_decisions(model, batch)):
        wanted = model.answer(batch, asked)
        for _ in range(3):  # launched, recorded, replayed
            assert answers(model, batch, asked) == wanted
    assert recording.made > 0
    assert len(set(wanted)) > 1


def test_recordings_are_forgotten_when_weights_change(
    taught: tuple[NativeModel, Batch], recording: type[StandIn]
) -> None:
    model, batch = copy.deepcopy(taught[0]), taught[1]
    asked = every_tile(model, batch)
    for _ in range(2):
        answers(model, batch, asked)
    made = recording.made
    answers(model, batch, asked)
    assert recording.made == made
    with torch.no_grad():
        model.language.embed.weight.add_(torch.randn_like(model.language.embed.weight))
    assert answers(model, batch, asked) == model.answer(batch, asked)
    answers(model, batch, asked)
    assert recording.made > made


def test_only_so_many_recordings_are_kept(recording: type[StandIn]) -> None:
    module, held = torch.nn.Linear(2, 2), recorded.Recordings[int]()
    for number in range(2 * recorded.KEPT):
        assert held.of(module, number, lambda: 1) is None
        assert held.of(module, number, lambda number=number: number) == number  # type: ignore[misc]
    assert len(held.by_shape) == recorded.KEPT
    assert copy.deepcopy(held).by_shape == {}
