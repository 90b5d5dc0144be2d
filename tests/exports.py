"""Tiny exports, for tests of what loads and runs one."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pyrskip.answering import answer
from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet
from pyrskip.export import write
from pyrskip.export.describe import describe, describe_alone
from pyrskip.export.outside import outside_of
from pyrskip.export.write import write_parts
from pyrskip.gated import Gated
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.inference import Request
from pyrskip.inference.bundle import FIXED, Guaranteed, Prices, write_checksums
from pyrskip.inference.modules import parts_of
from pyrskip.inference.outside import Outside
from pyrskip.inference.safe import Safe
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.models.tiers import GatedModel
from pyrskip.models.vision import VisionEncoder
from pyrskip.models.vlm.hf import HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.models.vlm.served import ServedModel
from pyrskip.observation import Layout
from pyrskip.policies import POLICIES
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch
from pyrskip.signals import shapes_of, signals_of
from tests.models import BACKBONE, SIDE, TEXTS, tiny_batch, tiny_model
from tests.vlm import save_text_encoder

UNIT = 2e7
GATE_FLOPS = 12_345.0
GUARANTEED = (Guaranteed(0.9, 0.2, 0.95, 400, 0.93), Guaranteed(0.98, 0.02, 0.95, 400, None))
SAFE = Safe(((0.02, 0.1), (0.4, 0.4)), ((0.0, "0,1"), (0.05, "1"), (0.6, "glance")))
PYRAMID = Pyramid(SIDE, 3, 8, (2, 1, 1))


def tiny_gate(
    model: GatedModel,
    name: str = "joint",
    policy: str = "utility",
    budget: BudgetRule | None = None,
    seed: int = 0,
    signals: Sequence[str] = (),
    unit: str = "level",
) -> Gate:
    """A gate with random weights in its head as well, so that it decides this and that. unit: of actions."""
    torch.manual_seed(seed)
    opening = {"open_bias": 0.0} if "open_bias" in POLICIES[policy].options and policy != "quadtree" else {}
    config = GateConfig(name=name, policy=policy, width=8, signals=tuple(signals), **opening)
    budget = budget or BudgetRule()
    actions = ActionSet.of(model.pyramid, budget, ActionConfig(unit))
    pyramid, shapes = model.pyramid, shapes_of(signals_of(model, config.needs))
    layout = Layout(shapes, pyramid.tiles, actions, budget, pyramid.grid)
    gate = build_gate(config, layout).eval()
    for head in gate.head.modules():
        if isinstance(head, torch.nn.Linear):
            torch.nn.init.normal_(head.weight, std=2.0)
    return gate


def tiny_parts() -> tuple[NativeModel, Gate]:
    """Random weights on a grid of tiles with a budget, the same ones each time."""
    model = tiny_model(grid=PYRAMID.grid)
    return model, tiny_gate(model, budget=BudgetRule(total=40, floor=2))


def tiny_export(directory: Path) -> tuple[NativeModel, Gate]:
    """Write an export of `tiny_parts`, and return what it was made from."""
    model, gate = tiny_parts()
    write_parts(model, gate, described(model, gate, SAFE), directory)
    return model, gate


@dataclass(frozen=True)
class Squares:
    """What is counted in place of a server: of a picture each begun square of so many pixels a side, and
    every begun four bytes of a text."""

    side: int

    def pictures(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        return [-(-rows // self.side) * -(-columns // self.side) for rows, columns in sizes]

    def texts(self, texts: Sequence[str]) -> list[int]:
        return [20 - -len(text.encode()) // 4 for text in texts]


def tiny_box(url: str = "http://localhost/v1") -> RemoteModel:
    sizes = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 100}
    config = RemoteConfig(url, "tiny", instruction="Be brief.", encoder_flops=1e5, **sizes)
    return RemoteModel(config, PYRAMID)


def tiny_served(
    folder: Path, policy: str = "utility", side: int = 8, box: HfVlm | RemoteModel | None = None
) -> tuple[ServedModel, Gate]:
    """A served model, by default one whose box answers nothing, and a gate for it; random weights. folder:
    takes a sentence encoder; side: of a token's square in that box."""
    torch.manual_seed(0)
    text = MiniLmText(str(save_text_encoder(folder, list(TEXTS))))
    if box is None:
        box = tiny_box()
        box.counts = Squares(side)
    model = ServedModel(box, VisionEncoder(BACKBONE), text)
    return model, tiny_gate(model, policy=policy, unit="tile")


def alone_export(directory: Path, model: ServedModel, gate: Gate, traced: bool = True) -> Outside:
    """Write a gate alone, and return what it knows of the model. traced: whether its graphs are made, which
    take seconds and backend='torch' does not need."""
    outside, tokenizer = outside_of(model.box, "tiny", tiny_batch(), print)
    dial = Prices(0.0, inf, 0.05, GUARANTEED)
    plain = describe_alone(model, BACKBONE, gate, UNIT, GATE_FLOPS, dial, outside)
    directory.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if not traced:
            patch.setattr(write, "trace_alone", lambda *_: {})
        write.write_alone(model, gate, outside, tokenizer, plain, directory)
    if not traced:
        for graph in ("gate", "vision", "signal-query"):
            (directory / "onnx" / f"{graph}.onnx").write_bytes(b"")
        write_checksums(directory)
    return outside


def with_gate(directory: Path, model: NativeModel, gate: Gate, base: Path, traced: bool = True) -> Path:
    """An export of another gate for the model of the export `base`, whose graphs are taken. traced: whether
    its gate's are made, which backend='torch' does not need."""
    had = {path.stem for path in (base / "onnx").iterdir()} - {FIXED}
    own = [name for name in parts_of(model, gate, UNIT) if name not in had - {"gate"} | {FIXED}]
    write_parts(model, gate, described(model, gate), directory, graphs=own if traced else [])
    for name in had - set(own if traced else []):
        shutil.copy(base / "onnx" / f"{name}.onnx", directory / "onnx")
    write_checksums(directory)
    return directory


def described(model: NativeModel, gate: Gate, safe: Safe | None = None) -> dict[str, Any]:
    return describe(model, gate, UNIT, GATE_FLOPS, Prices(0.0, inf, 0.05, GUARANTEED, safe))


def images(batch: Batch) -> list[Image.Image]:
    pixels = [batch.image[i, :, :h, :w] for i, (h, w) in enumerate(batch.size.tolist())]
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]


def requests(batch: Batch, **dial: Any) -> list[Request]:
    pictures = images(batch)
    return [
        Request(pictures[i], text, **dial)
        for i, text in zip(batch.image_of.tolist(), batch.texts, strict=True)
    ]


def expected(
    model: NativeModel, gate: Gate, batch: Batch, price: float, most: int | None
) -> tuple[torch.Tensor, list[str]]:
    """The trained model's decisions, tokens [B, T], and answers."""
    answers = answer(Gated(model, gate, UNIT, price, most), batch)
    return answers.decided.tokens, answers.texts
