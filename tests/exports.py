"""A tiny export, for tests of what loads and runs one."""

from math import inf
from pathlib import Path

import torch

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.export.export import describe, write_parts
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig, Layout
from pyrskip.inference.bundle import Prices
from pyrskip.models.native import NativeModel
from tests.models import tiny_model

UNIT = 2e7
GATE_FLOPS = 12_345.0


def tiny_gate(
    model: NativeModel, name: str = "joint", policy: str = "utility", budget: BudgetRule | None = None, seed: int = 0
) -> Gate:
    """A gate with random weights in its head as well, so that it decides this and that."""
    torch.manual_seed(seed)
    actions = ActionSet.by_level(model.pyramid)
    layout = Layout(model.text.width, model.vision.channels, model.pyramid.tiles, actions, budget or BudgetRule())
    gate = build_gate(GateConfig(name, policy, width=8, open_bias=0.0), layout).eval()
    torch.nn.init.normal_(gate.head.weight, std=2.0)
    return gate


def tiny_export(directory: Path) -> tuple[NativeModel, Gate]:
    """Write an export of random weights on a grid of tiles with a budget, and return what it was made from."""
    model = tiny_model(grid=(2, 1, 1))
    gate = tiny_gate(model, budget=BudgetRule(total=40, floor=2))
    directory.mkdir(parents=True, exist_ok=True)
    write_parts(model, gate, describe(model, gate, UNIT, GATE_FLOPS, Prices(0.0, inf, 0.05)), directory)
    return model, gate
