"""Claims about Muon: recorded, it takes timm's steps. A stand-in runs anew what a GPU would replay."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim.muon
import torch
from torch import Tensor, nn

from pyrskip.training import muon


class StandIn:
    made = 0

    def __init__(self, function: Callable[[], Tensor], pool: Any = None, tries: int = 2) -> None:
        assert tries == 0, "a trial would be a step"
        optimizer: Any = function.__self__  # type: ignore[attr-defined]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(len(optimizer.state[p]) > 1 for p in parameters), "state would be reset at every replay"
        self.function = function
        StandIn.made += 1

    def replay(self) -> Tensor:
        return self.function()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    others = [p for p in model.parameters() if all(p is not of for of in linear)]
    return [
        {"params": linear, "weight_decay": 0.01},
        {"params": others, "weight_decay": 0.0, "use_fallback": True},
    ]


def run(model: nn.Module, optimizer: Any, steps: range) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in steps:
        torch.manual_seed(step)
        # in some steps, among them the first, a parameter gets no gradient
        x = torch.randn(8, 6)
        loss = model[0](x).square().mean() if step in (0, 1, 5) else model(x).square().mean()  # type: ignore[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def test_recorded_steps_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "Recording", StandIn)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 5))
    other = copy.deepcopy(model)
    # a rate in a tensor rounds as a recording does
    wanted = timm.optim.muon.Muon(groups(model), lr=torch.tensor(0.1))
    run(model, wanted, range(8))
    optimizer = muon.Muon(groups(other), lr=0.1)
    assert not optimizer.records  # on a CPU
    optimizer.records = True
    run(other, optimizer, range(8))
    assert StandIn.made == 1
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    # what is saved are plain numbers, and goes on from there
    state = optimizer.state_dict()
    assert all(isinstance(group["lr"], float) for group in state["param_groups"])
    again = muon.Muon(groups(other), lr=0.1)
    again.load_state_dict(state)
    again.records = True
    run(other, again, range(8, 12))
    run(model, wanted, range(8, 12))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
