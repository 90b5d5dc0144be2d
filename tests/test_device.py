"""Claims about the device that everything runs on: with `--device cuda` a GPU, else the CPU, against which
they compare."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.data.datamodule import StepData
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.policies import POLICIES
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.sample import Batch
from pyrskip.selftest import selftest
from pyrskip.signals import SIGNALS
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit
from tests.models import mixed_decisions, taught_model, tiny_batch, tiny_model
from tests.tables import synthetic_pyramid, synthetic_table

CLOSE = 1e-4


def test_the_self_test_holds(request: pytest.FixtureRequest) -> None:
    found = list(selftest(request.config.getoption("--device")))
    assert [check.wrong for check in found] == [""] * len(found)


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def taught() -> tuple[NativeModel, Batch]:
    batch = tiny_batch()
    return taught_model(batch, steps=40, mixed=False), batch


def moved(model: NativeModel, device: torch.device) -> NativeModel:
    return copy.deepcopy(model).to(device)


def table_gate(policy: str, seed: int = 0) -> tuple[Gate, TableEnvironment]:
    """A gate of random weights, and a table for it."""
    rungs = (0, 64, 256) if policy == "rungs" else None
    table, budget = synthetic_table(rungs=rungs), BudgetRule(rungs=rungs)
    environment = TableEnvironment(table, synthetic_pyramid(), budget, table.mean_full_flops)
    torch.manual_seed(seed)
    gate = build_gate(GateConfig(policy=policy), environment.layout)
    for parameter in gate.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gate.eval(), environment


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_a_policy_is_that_of_the_cpu(policy: str, device: torch.device) -> None:
    gate, environment = table_gate(policy)
    rows = torch.arange(len(environment.table))
    wanted = gate.policy(environment.observe(rows, torch.full((len(rows),), 0.1)))
    environment.to(device)
    found = gate.to(device).policy(
        environment.observe(rows.to(device), torch.full((len(rows),), 0.1).to(device))
    )
    mode = wanted.mode()
    clear = wanted.margin(mode) > CLOSE
    assert clear.any()
    assert found.mode().tokens.cpu()[clear].equal(mode.tokens[clear])
    assert torch.allclose(found.log_prob(found.mode()).cpu()[clear], wanted.log_prob(mode)[clear], atol=CLOSE)
    assert torch.allclose(found.entropy().cpu(), wanted.entropy(), atol=CLOSE)
    assert torch.allclose(found.marginals().cpu(), wanted.marginals(), atol=CLOSE)
    drawn = found.sample()
    assert drawn.tokens.device.type == device.type and found.log_prob(drawn).isfinite().all()
    most = found.mode(torch.full((len(rows),), 20, device=device)).tokens
    assert (most.sum(-1) <= 20).all()


@pytest.mark.parametrize("pair", valid_pairs(online=False), ids="-".join)
def test_a_rule_learns_from_a_table(pair: tuple[str, str], device: torch.device) -> None:
    rule, policy = pair
    gate, environment = table_gate(policy)
    config: Any = rule_config(rule)
    learns(RULES[rule](config(), gate, environment, RewardConfig(), 0), torch.arange(64).to(device), device)


@pytest.mark.slow
@pytest.mark.parametrize("pair", valid_pairs(online=True), ids="-".join)
def test_a_rule_learns_online(
    pair: tuple[str, str], taught: tuple[NativeModel, Batch], device: torch.device
) -> None:
    rule, policy = pair
    model, batch = moved(taught[0], device), taught[1].to(device)
    budget = BudgetRule(rungs=(0, 64, 256)) if policy == "rungs" else BudgetRule()
    environment = ModelEnvironment(
        model, ActionSet.of(model.pyramid, budget), budget, 1e6, GateConfig(policy=policy).needs
    )
    gate = build_gate(GateConfig(policy=policy), environment.layout)
    config: Any = rule_config(rule)
    learns(RULES[rule](config(online=True), gate, environment, RewardConfig(), 0), batch, device)


def learns(module: Any, rows: Any, device: torch.device) -> None:
    """A step of the rule moves its gate, to numbers."""
    module.log_every = 0  # there is no Trainer
    module.train().to(device)
    module.environment.to(device)
    before = [p.detach().clone() for p in module.gate.parameters()]
    optimizer = module.build_optimizer()
    module.training_step(rows, 0).backward()
    optimizer.step()
    after = list(module.gate.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not p.equal(q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("language", ["decoder", "cross"])
def test_a_flex_step_is_that_of_the_cpu(language: str, device: torch.device) -> None:
    model, batch = tiny_model((2, 1, 1), language=language), tiny_batch()

    def loss(model: NativeModel, batch: Batch, **autocast: Any) -> Tensor:
        module = FlexModule(FlexConfig(), model, ActionSet.by_level(model.pyramid)).train()
        module.log_every = 0
        torch.manual_seed(0)
        with torch.autocast(batch.image.device.type, torch.bfloat16, **autocast):
            return module.training_step(batch, 1).detach().float().cpu()

    wanted = loss(model, batch, enabled=False)
    assert torch.allclose(loss(moved(model, device), batch.to(device), enabled=False), wanted, atol=1e-3)
    assert torch.allclose(loss(moved(model, device), batch.to(device)), wanted, rtol=0.05)


@torch.no_grad()
def test_answers_and_decisions_are_those_of_the_cpu(
    taught: tuple[NativeModel, Batch], device: torch.device
) -> None:
    model, batch = taught
    actions = ActionSet.by_level(model.pyramid)
    environment = ModelEnvironment(model, actions, BudgetRule(), 1e6, SIGNALS)
    gate = build_gate(GateConfig(policy="bernoulli"), environment.layout).eval()
    torch.nn.init.normal_(gate.head.weight, std=0.3)
    there, elsewhere = moved(model, device), batch.to(device)
    of_cpu, of_device = Gated(model, gate, 1e6, 0.1), Gated(there, copy.deepcopy(gate).to(device), 1e6, 0.1)
    wanted = of_cpu.decide(batch, of_cpu.glance(batch))
    found = of_device.decide(elsewhere, of_device.glance(elsewhere))
    assert found.tokens.cpu().equal(wanted.tokens)
    tokens = mixed_decisions(model, batch)
    assert there.answer(elsewhere, tokens.to(device)) == model.answer(batch, tokens)
    assert torch.allclose(
        there.loglik(elsewhere, tokens.to(device)).cpu(), model.loglik(batch, tokens), atol=1e-3
    )


@pytest.mark.parametrize("language", ["decoder", pytest.param("cross", marks=pytest.mark.slow)])
def test_single_questions_are_answered_as_a_batch_is(
    language: str, taught: tuple[NativeModel, Batch], device: torch.device
) -> None:
    """On a GPU they are launched first, then recorded, then replayed."""
    batch = taught[1]
    model = moved(taught[0] if language == "decoder" else taught_model(batch, 40, language=language), device)
    elsewhere, tokens = batch.to(device), mixed_decisions(model, batch)
    wanted = model.answer(elsewhere, tokens)
    assert len(set(wanted)) > 1
    for _ in range(4 if device.type == "cuda" else 1):
        for row in range(len(batch)):
            assert model.answer(elsewhere.rows([row]), tokens[[row]]) == [wanted[row]]


@torch.no_grad()
def test_a_rollout_table_is_that_of_the_cpu(taught: tuple[NativeModel, Batch], device: torch.device) -> None:
    model, batch = taught
    actions = ActionSet.by_level(model.pyramid)
    wanted = RolloutModule(model, actions, BudgetRule(), "val").predict_step(batch, 0)
    found = RolloutModule(moved(model, device), actions, BudgetRule(), "val").predict_step(
        batch.to(device), 0
    )
    assert wanted is not None and found is not None
    assert found.score.equal(wanted.score) and found.cost.flops.equal(wanted.cost.flops)
    assert found.probability is not None and wanted.probability is not None
    assert torch.allclose(found.probability, wanted.probability, atol=1e-3)
    assert found.keys == wanted.keys and found.image_of.equal(wanted.image_of)


def test_a_third_party_model_scores_and_costs_as_on_the_cpu(device: torch.device) -> None:
    pytest.importorskip("transformers")
    from pyrskip.models.vlm.hf import HfConfig, HfVlm
    from tests.vlm import llava, processor

    batch, pyramid = tiny_batch(), Pyramid(64, 2, 8, (2, 1))
    asked = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).repeat(len(batch), 1)[: len(batch)]
    here, there = (
        HfVlm(llava().to(d), processor(), pyramid, HfConfig(max_answer=4)) for d in ("cpu", device)
    )
    moved = batch.to(device)
    torch.testing.assert_close(
        there.loglik(moved, asked.to(device)).cpu(), here.loglik(batch, asked), atol=1e-3, rtol=1e-3
    )
    assert there.encoded == here.encoded and len(there.answer(moved, asked)) == len(batch)
    size, of = moved.on_cpu
    cost = there.cost(there.realise(asked, size[of]), size[of], there.prompt_tokens(moved))
    assert cost.flops.equal(
        here.cost(here.realise(asked, size[of]), size[of], here.prompt_tokens(batch)).flops
    )


@pytest.mark.slow
def test_every_stage_runs_and_is_exported(tmp_path: Path, device: torch.device) -> None:
    """The frontier's clock and the export's check of itself with it, in the trainer's own precision."""
    from pyrskip.export.export import export_run
    from pyrskip.stages import run_stages
    from tests.configs import tiny

    trainer = "gpu" if device.type == "cuda" else "cpu"
    config = tiny(tmp_path, "name=whole", f"trainer={trainer}", "trainer.quiet=true")
    run_stages(config, {})
    export_run(config, tmp_path / "export")
    assert (tmp_path / "export" / "checksums.json").is_file()


def test_a_step_that_does_not_fit_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(pl.Trainer, "fit", full)
    monkeypatch.chdir(tmp_path)
    trainer = build_trainer(TrainerConfig(quiet=True), tmp_path)
    data = StepData(range(4), torch.tensor, 2, 1)
    with pytest.raises(UserError, match=r"Tried to allocate 2.00 GiB\); smaller: loader.batch_images with"):
        fit(trainer, pl.LightningModule(), data, tmp_path)
