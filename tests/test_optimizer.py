"""Claims about optimizers: what each of them moves, how far, and that a resumed one goes on as if nothing had
been."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyrskip.data.datamodule import StepData
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.trainer import TrainerConfig
from tests.models import tiny_batch, tiny_model
from tests.toys import fit_until

RATE = 0.01
STEPS = 6


def flex(name: str, **settings: float) -> FlexModule:
    model = tiny_model().train()
    config = FlexConfig(
        optimizer=OptimizerConfig(name, steps=STEPS, lr=RATE, warmup=0, **settings), blind_share=0.0
    )
    return FlexModule(config, model, ActionSet.by_level(model.pyramid))


def moved(module: FlexModule) -> dict[str, Tensor]:
    """What one step adds to each parameter, by name."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    module.training_step(tiny_batch(), 0).backward()
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in module.named_parameters()}


def test_muon_turns_linear_layers_alike_in_every_direction() -> None:
    change = moved(flex("muon", weight_decay=0.0))
    for name in ("model.projector.gate_up.weight", "model.language.blocks.0.qkv.weight"):
        # orthogonal but for a few rounds of Newton-Schulz, and as large in the mean square as AdamW's
        singular = torch.linalg.svdvals(change[name])
        singular = singular[singular > 0.01 * singular[0]]  # a batch has gradients in so many directions
        assert len(singular) > 8
        scale = 0.2 * RATE * max(change[name].shape) ** 0.5
        assert singular.min() > 0.5 * scale and singular.max() < 1.5 * scale
    adamw = moved(flex("adamw", weight_decay=0.0))
    uneven = torch.linalg.svdvals(adamw["model.projector.gate_up.weight"])
    assert uneven[0] > 4 * uneven[-1]
    # AdamW's first step is the rate itself, whatever the gradient
    for name in ("model.language.embed.weight", "model.projector.level.weight", "model.language.norm.weight"):
        assert change[name].abs().sub(RATE).abs().median() < 0.01 * RATE


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_moves_and_no_frozen_one(name: str) -> None:
    module = flex(name)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {name for name, change in moved(module).items() if change.any()} == trained


def test_only_matrices_and_tables_decay() -> None:
    for name in ("adamw", "muon"):
        groups = flex(name).build_optimizer().param_groups
        assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in groups for p in group["params"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_killed_training_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    def train(folder: str, until: int) -> dict[str, Tensor]:
        data = StepData(range(8), lambda rows: tiny_batch(seed=sum(rows)), 2, STEPS, 1)  # type: ignore[arg-type]
        return fit_until(
            flex(name), data, tmp_path / folder, until, TrainerConfig(checkpoint_every=1, quiet=True)
        )

    whole = train("whole", STEPS)
    train("killed", 3)
    killed = train("killed", STEPS)
    assert all(killed[name].equal(value) for name, value in whole.items())


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer.name.*lion.*allowed: adamw, muon"):
        replace(OptimizerConfig(), name="lion")
