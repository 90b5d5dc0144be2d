"""Claims about flex: which selections it trains under, and when."""

import pytest
import torch
from torch import Tensor

from pyrskip.decision import ActionSet, reference
from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.module import OptimizerConfig
from tests.models import tiny_model

STEPS = 400


@pytest.fixture(scope="module")
def model() -> NativeModel:
    return tiny_model()


def selections(model: NativeModel, steps: range, **settings: object) -> Tensor:
    """[steps, T] bool."""
    config = FlexConfig(optimizer=OptimizerConfig(steps=STEPS), **settings)  # type: ignore[arg-type]
    module = FlexModule(config, model, ActionSet.by_level(model.pyramid))
    return torch.stack([module.selection(step) for step in steps])


def test_finer_levels_open_one_by_one(model: NativeModel) -> None:
    level = model.pyramid.tile_level
    assert model.pyramid.levels == 3
    early = selections(model, range(STEPS // 2), coarse_until=(0.5,))
    assert not early[:, level == 0].any()
    late = selections(model, range(STEPS // 2, STEPS), coarse_until=(0.5,))
    assert late[:, level == 0].any()
    assert late.equal(selections(model, range(STEPS // 2, STEPS)))


def test_shares_hold_of_what_is_open(model: NativeModel) -> None:
    level = model.pyramid.tile_level
    early = selections(model, range(STEPS), coarse_until=(0.999,), full_share=0.5, reference_share=0.3)
    everything, finest = (early == (level >= 1)).all(-1), (early == (level == 1)).all(-1)
    assert 0.5 < everything.float().mean() < 0.8
    assert abs(finest.float().mean() - 0.3) < 0.08
    whole = selections(model, range(STEPS), full_share=0.0, reference_share=1.0)
    assert (whole == reference(model.pyramid)).all()


@pytest.mark.parametrize("shares", [(0.0,), (1.0,), (0.5, 0.5), (0.6, 0.4)])
def test_shares_of_the_steps_must_ascend(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"flex.coarse_until=.*each above the last"):
        FlexConfig(coarse_until=shares)


def test_more_levels_than_there_are_cannot_open(model: NativeModel) -> None:
    with pytest.raises(UserError, match=r"flex.coarse_until=\[0.2, 0.5\] opens 2 levels; allowed: at most 1 of a pyramid of 3"):
        selections(model, range(1), coarse_until=(0.2, 0.5))
