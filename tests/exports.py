"""A tiny export, for tests of what loads and runs one."""

from math import inf
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.export.export import describe, write_parts
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig, Layout
from pyrskip.inference import Request
from pyrskip.inference.bundle import Prices
from pyrskip.models.native import NativeModel
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import observe
from pyrskip.sample import Batch
from tests.models import SIDE, tiny_model

UNIT = 2e7
GATE_FLOPS = 12_345.0
PYRAMID = Pyramid(SIDE, 3, 8, (2, 1, 1))


def tiny_gate(
    model: NativeModel,
    name: str = "joint",
    policy: str = "utility",
    budget: BudgetRule | None = None,
    seed: int = 0,
) -> Gate:
    """A gate with random weights in its head as well, so that it decides this and that."""
    torch.manual_seed(seed)
    actions = ActionSet.by_level(model.pyramid)
    layout = Layout(
        model.text.width, model.vision.channels, model.pyramid.tiles, actions, budget or BudgetRule()
    )
    gate = build_gate(GateConfig(name, policy, width=8, open_bias=0.0), layout).eval()
    torch.nn.init.normal_(gate.head.weight, std=2.0)
    return gate


def tiny_export(directory: Path) -> tuple[NativeModel, Gate]:
    """Write an export of random weights on a grid of tiles with a budget, and return what it was made
    from."""
    model = tiny_model(grid=PYRAMID.grid)
    gate = tiny_gate(model, budget=BudgetRule(total=40, floor=2))
    directory.mkdir(parents=True, exist_ok=True)
    write_parts(model, gate, describe(model, gate, UNIT, GATE_FLOPS, Prices(0.0, inf, 0.05)), directory)
    return model, gate


def images(batch: Batch) -> list[Image.Image]:
    pixels = [batch.image[i, :, :h, :w] for i, (h, w) in enumerate(batch.size.tolist())]
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]


def requests(batch: Batch, **dial: Any) -> list[Request]:
    pictures = images(batch)
    return [
        Request(pictures[i], text, **dial)
        for i, text in zip(batch.image_of.tolist(), batch.texts, strict=True)
    ]


@torch.no_grad()
def expected(
    model: NativeModel, gate: Gate, batch: Batch, price: float, most: int | None
) -> tuple[torch.Tensor, list[str]]:
    """The trained model's decisions and answers."""
    keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
    keep[:, -1] = True
    seen = observe(
        model, gate.layout, batch, model.encode(batch, keep), torch.full((len(batch),), price), UNIT
    )
    asked = gate.policy(seen).mode(most)
    return asked, model.answer(batch, asked)
