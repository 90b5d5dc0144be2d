"""Graphs of a model and its gate: traced once, written as ONNX and, where asked for, as compiled packages.

Every dimension that varies in service is traced as varying, and never at size 1, which would be taken for
fixed.
"""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx.helper import make_tensor
from onnxscript import opset18
from timm.layers import Conv2dSame
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import FIXED, STATE, signal_graph
from pyrskip.inference.modules import parts_of
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.signals import signals_of

OUTPUTS = {
    "gate": ("outputs", "asked", "pooled", "flops", "probability"),
    FIXED: ("asked", "pooled", "flops"),
    "vision": ("features",),
    "projector": ("tokens",),
    "prefill": ("logits", *STATE),
    "decode": ("logits", "longer_real", "longer_keys", "longer_values"),
}


def trace(
    model: NativeModel, gate: Gate, unit: float, graphs: Sequence[str] | None = None
) -> dict[str, ExportedProgram]:
    """Graph name -> program; by default all. unit: FLOPs of relative cost 1.

    Raises UserError for a part that cannot be traced, such as a backbone of one image size.
    """
    parts = parts_of(model, gate, unit)
    parts["vision"] = _with_fixed_padding(parts["vision"])
    programs = {}
    examples = _examples(model, gate, parts)
    for name in parts if graphs is None else graphs:
        example, varying = examples[name]
        try:
            with torch.no_grad():
                programs[name] = torch.export.export(parts[name], (), kwargs=example, dynamic_shapes=varying)
        except Exception as error:  # the tracer's own errors have no common base but this
            reason = " ".join(str(error).split())[:400]
            raise UserError(
                f"the {name} graph cannot be exported with dimensions that vary: {reason}"
            ) from error
    return programs


def write_onnx(programs: dict[str, ExportedProgram], directory: Path) -> None:
    """`directory`/<graph>.onnx, each one file."""
    directory.mkdir(parents=True)
    for name, program in programs.items():
        count = len(program.graph_signature.user_outputs)
        outputs = OUTPUTS.get(name, tuple(f"tensor_{i}" for i in range(count)))
        to_onnx(program, outputs[:count]).save(directory / f"{name}.onnx")


def to_onnx(program: ExportedProgram, outputs: Sequence[str]) -> ONNXProgram:
    """A program as an ONNX graph with these names of its outputs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        # the exporter tells of its own deprecations and of names of dimensions that it merges
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            output_names=outputs,
            custom_translation_table={torch.ops.aten.scalar_tensor.default: _scalar},
        )
        logger.setLevel(level)
    assert onnx is not None
    return onnx


def write_native(programs: dict[str, ExportedProgram], directory: Path) -> None:
    """`directory`/<graph>.pt2: AOTInductor packages, native code for this kind of machine. Needs a C++
    compiler."""
    directory.mkdir(parents=True)
    for name, program in programs.items():
        torch._inductor.aoti_compile_and_package(program, package_path=str(directory / f"{name}.pt2"))


@torch.no_grad()
def _examples(
    model: NativeModel, gate: Gate, parts: Mapping[str, nn.Module]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Inputs of each graph by name, and which of their dimensions vary. The numbers themselves do not
    matter."""
    layout, language, stride = gate.layout, model.config.language, model.vision.stride
    side = model.pyramid.side(model.pyramid.levels - 1)
    cells = side // stride
    batch, words = Dim("batch"), Dim("words", max=language.max_words)
    tokens, past, memory, rows, columns = map(Dim, ("tokens", "past", "memory", "rows", "columns"))
    question = {"ids": torch.full((3, 5), 2), "mask": torch.ones(3, 5, dtype=torch.bool)}
    query_words = Dim("words", max=model.text.max_words) if isinstance(model.text, MiniLmText) else words
    sources = {
        "question": tuple(question.values()),
        "glance": (torch.rand(3, model.vision.channels, cells, cells), _whole(cells)),
        "pixels": (torch.rand(3, 3, side, side), _whole(side)),
        "first_token": (torch.rand(3, model.language.embed.num_embeddings),),
    }
    signals: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    seen: dict[str, torch.Tensor] = {}
    of_seen: dict[str, dict[int, Dim]] = {}
    for name, signal in signals_of(model, gate.config.needs).items():
        source = dict(zip(("value", "mask"), sources[signal.source], strict=False))
        varying = {0: batch, 1: query_words} if signal.source == "question" else {0: batch}
        signals[signal_graph(name)] = source, {key: varying for key in source}
        seen |= zip(signal.shapes, signal(*source.values()), strict=True)
        # what varies of a row is its words
        of_seen |= {
            tensor: {0: batch, **{i: query_words for i, size in enumerate(shape, 1) if size is None}}
            for tensor, shape in signal.shapes.items()
        }
    tiled = {
        "cells": torch.ones(3, layout.tiles, 2, dtype=torch.int64),
        "encode": torch.rand(3, layout.tiles, dtype=torch.float64),
        "words": torch.ones(3, dtype=torch.int64),
    }
    fixed = {"action": torch.zeros(3, dtype=torch.int64), **tiled}
    tiled |= {"price": torch.rand(3), "max_tokens": torch.ones(3, dtype=torch.int64)}
    prompt = {"visual": torch.rand(3, 7, language.width), **question}
    state = dict(zip(STATE, parts["prefill"](**prompt)[1:], strict=False))
    of_state = {name: {1: batch, 3: memory if name.startswith("memory") else past} for name in state}
    return {
        **signals,
        "gate": ({"signals": seen, **tiled}, {"signals": of_seen, **{name: {0: batch} for name in tiled}}),
        FIXED: (fixed, {name: {0: batch} for name in fixed}),
        "vision": (
            {"pixels": torch.rand(3, 3, 2 * stride, 3 * stride)},
            {"pixels": {0: batch, 2: stride * rows, 3: stride * columns}},
        ),
        "projector": (
            {
                "features": torch.rand(3, 7, model.vision.channels),
                "centre": torch.rand(3, 7, 2),
                "extent": torch.rand(3, 7, 2),
                "level": torch.zeros(7, dtype=torch.int64),
            },
            {
                **{name: {0: batch, 1: tokens} for name in ("features", "centre", "extent")},
                "level": {0: tokens},
            },
        ),
        "prefill": (
            prompt,
            {"visual": {0: batch, 1: tokens}, "ids": {0: batch, 1: words}, "mask": {0: batch, 1: words}},
        ),
        "decode": (
            {"token": torch.full((3,), 2), "step": torch.tensor([1]), **state},
            {"token": {0: batch}, "step": {}, **of_state, "real": {0: batch, 1: past}},
        ),
    }


def _whole(side: int) -> torch.Tensor:
    """The mask of what has no padding."""
    return torch.ones(3, side, side, dtype=torch.bool)


def _scalar(s: float, dtype: int = 1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    """A constant of its own type; the exporter would round those of float64 arithmetic to float32."""
    return opset18.Constant(value=make_tensor("", dtype, (), [s]))


def _with_fixed_padding(vision: nn.Module) -> nn.Module:
    """A copy whose TensorFlow-style convolutions pad by constants.

    They compute their padding from the image's size, which makes a trace slow and its graph large; where
    sizes are multiples of the stride, as all tiles' are, it is always the same.
    """
    vision = copy.deepcopy(vision)
    for parent in list(vision.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, Conv2dSame):
                continue
            bias = conv.bias is not None
            plain = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                0,
                conv.dilation,
                conv.groups,
                bias,
            )
            plain.load_state_dict(conv.state_dict())
            sides = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
            rows, columns = (
                max(0, (kernel - 1) * dilation + 1 - stride) for kernel, stride, dilation in sides
            )
            pad = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            setattr(parent, name, nn.Sequential(pad, plain).eval())
    return vision
