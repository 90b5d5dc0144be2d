"""Claims about an accelerator that is never waited for, held on a device whose tensors have no values: what
would read one back raises there.

Python then runs ahead of the device, however long its kernels take.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.gated import encode_glance
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.models.reading import Launched
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.sample import Batch
from pyrskip.signals import SIGNALS, read, signals_of
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from tests.models import tiny_batch, tiny_model
from tests.tables import synthetic_pyramid, synthetic_table


class NoWaiting(TorchDispatchMode):
    """Refuses copies to the device that the CPU would wait for, also of what indexes a tensor there; and the
    gradient of an index, whose sums a GPU makes one behind the other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        name = func.name().partition(".")[0]
        if isinstance(out, Tensor) and out.is_meta:
            if name == "aten::_to_copy":
                assert not _on_cpu(args[0]) or kwargs.get("non_blocking"), "a copy is waited for"
            if name == "aten::copy_":
                assert not _on_cpu(args[1]) or (len(args) > 2 and args[2]), "a copy is waited for"
            if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
                assert not any(map(_on_cpu, args[1])), "a tensor there is indexed from the CPU"
                summed = len(args) > 3 and args[3]
                assert not summed, "what falls to one row is added up one by one: embedding or index_select"
        return out


def _on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim > 0


def elsewhere() -> Batch:
    return tiny_batch().to("meta")


@pytest.mark.parametrize("language", ["decoder", "cross"])
@pytest.mark.parametrize("grid", [(1,), (2, 1, 1)])
def test_a_flex_step_waits_for_nothing(language: str, grid: tuple[int, ...]) -> None:
    model = tiny_model(grid, language=language)
    module = FlexModule(FlexConfig(budget="sandwich"), model, ActionSet.by_level(model.pyramid))
    module.train().to("meta")
    module.log_every = 0  # there is no Trainer
    batch = elsewhere()
    for step in (0, 3):
        with NoWaiting():
            module.training_step(batch, step).backward()
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
        with NoWaiting():
            module.training_step(torch.arange(32, device="meta"), step).backward()


def test_signals_go_where_their_model_has_gone() -> None:
    model = tiny_model((2, 1, 1))
    # meta tensors have no autocast, which reading the first token turns off
    signals = signals_of(model, [name for name, of in SIGNALS.items() if of.source != "first_token"])
    model.to("meta")
    batch = elsewhere()
    found = read(signals, model, batch, encode_glance(model, batch))
    assert found and all(of.is_meta for of in found.values())


@pytest.mark.parametrize("language", ["decoder", "cross"])
def test_an_answer_is_read_without_waiting(language: str) -> None:
    model, batch = tiny_model((2, 1, 1), language=language).to("meta"), elsewhere()
    tokens = model.pyramid.capacity(batch.on_cpu[0])[batch.on_cpu[1]]
    with NoWaiting():
        features = model.look(batch, encode_glance(model, batch), tokens)
        visual, _ = model.visual(batch, features, tokens)
        reading = Launched(model.language, visual, model.language.tokenize(batch.texts))
        logits = reading.first()
        for _ in range(3):
            logits = reading.next(logits.argmax(-1))
    assert logits.shape == (len(batch), model.language.embed.num_embeddings)
