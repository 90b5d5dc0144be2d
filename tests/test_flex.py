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


def test_all_is_kept_of_close_ups(model: NativeModel) -> None:
    chosen = selections(model, range(STEPS), close_share=0.25)
    assert chosen[: STEPS // 4].all()
    assert not chosen[STEPS // 4 :].all()
    assert chosen[STEPS // 4 :].equal(selections(model, range(STEPS // 4, STEPS)))


def test_shares_of_selections_hold(model: NativeModel) -> None:
    chosen = selections(model, range(STEPS), full_share=0.5, reference_share=0.3)
    assert 0.5 < chosen.all(-1).float().mean() < 0.65
    assert abs((chosen == reference(model.pyramid)).all(-1).float().mean() - 0.3) < 0.08
    whole = selections(model, range(STEPS), full_share=0.0, reference_share=1.0)
    assert (whole == reference(model.pyramid)).all()
    glances = selections(model, range(STEPS), full_share=0.0, reference_share=0.0, glance_share=1.0)
    assert glances[:, model.pyramid.glance].all() and (glances.sum(-1) == 1).all()


def test_shares_of_selections_are_at_most_all_of_them() -> None:
    with pytest.raises(
        UserError,
        match=r"glance_share=0.3, region_share=0.0, .*: allowed: at least 0, the first four at most 1",
    ):
        FlexConfig(full_share=0.5, reference_share=0.3, glance_share=0.3)


@pytest.mark.parametrize("name", ["close_share", "dropout"])
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_shares_are_below_one(name: str, share: float) -> None:
    with pytest.raises(UserError, match=rf"flex.{name}={share}: allowed: at least 0 and below 1"):
        FlexConfig(**{name: share})  # type: ignore[arg-type]


def test_features_are_dropped_in_training_alone() -> None:
    model, features = tiny_model(), torch.ones(1, 500, tiny_model().vision.channels)
    FlexModule(FlexConfig(dropout=0.3), model, ActionSet.by_level(model.pyramid))
    seen: list[Tensor] = []
    model.projector.gate_up.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for training in (True, False):
        nowhere, level = torch.zeros(1, 500, 2), torch.zeros(500, dtype=torch.int64)
        model.projector.train(training)(features, nowhere, nowhere, level)
    assert abs(float((seen[0] == 0).float().mean()) - 0.3) < 0.03
    assert seen[1].equal(features)
