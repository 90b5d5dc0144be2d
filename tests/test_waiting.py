"""Claims about an accelerator that is never waited for, held on a device whose tensors have no values: what
would read one back raises there.

Python then runs ahead of the device, however long its kernels take.
"""

from typing import Any

import pytest
import torch

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.gated import encode_glance
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.models.language import Room
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.sample import Batch
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from tests.models import tiny_batch, tiny_model
from tests.tables import synthetic_pyramid, synthetic_table


def elsewhere() -> Batch:
    return tiny_batch().to("meta")


@pytest.mark.parametrize("language", ["decoder", "cross"])
@pytest.mark.parametrize("grid", [(1,), (2, 1, 1)])
def test_a_flex_step_waits_for_nothing(language: str, grid: tuple[int, ...]) -> None:
    model = tiny_model(grid, language=language)
    module = FlexModule(FlexConfig(budget="sandwich"), model, ActionSet.by_level(model.pyramid))
    module.train().to("meta")
    module.log_every = 0  # there is no Trainer
    for step in (0, 3):
        loss = module.training_step(elsewhere(), step)
        loss.backward()
    assert all(p.grad is not None for p in model.projector.parameters())


@pytest.mark.parametrize("pair", valid_pairs(online=False), ids="-".join)
def test_a_gate_step_waits_for_nothing(pair: tuple[str, str]) -> None:
    rule, policy = pair
    rungs = (0, 64, 256) if policy == "rungs" else None
    table, budget = synthetic_table(rungs=rungs), BudgetRule(rungs=rungs)
    environment = TableEnvironment(table, synthetic_pyramid(), budget, table.mean_full_flops)
    gate = build_gate(GateConfig(policy=policy), environment.layout)
    config: Any = rule_config(rule)
    module: Any = RULES[rule](config(), gate, environment, RewardConfig(), 0)
    module.log_every = 0  # there is no Trainer
    module.train().to("meta")
    environment.to(torch.device("meta"))
    for step in range(2):
        module.training_step(torch.arange(32, device="meta"), step).backward()


@pytest.mark.parametrize("language", ["decoder", "cross"])
def test_an_answer_is_read_without_waiting(language: str) -> None:
    model, batch = tiny_model((2, 1, 1), language=language).to("meta"), elsewhere()
    tokens = model.pyramid.capacity(batch.on_cpu[0])[batch.on_cpu[1]]
    features = model.look(batch, encode_glance(model, batch), tokens)
    visual, _ = model.visual(batch, features, tokens)
    question = model.language.tokenize(batch.texts)
    logits, keys, caches, layers = model.language.prefill(visual, question)
    rooms = [Room(cache, 4) for cache in caches]
    for number in range(1, 4):
        keys = [torch.nn.functional.pad(of_layer, (0, 1), value=True) for of_layer in keys]
        step = torch.tensor([number], device="meta")
        logits, _ = model.language.decode(logits.argmax(-1), step, keys, rooms, layers)
    assert all(room.length == cache[0].shape[2] + 3 for room, cache in zip(rooms, caches, strict=True))
