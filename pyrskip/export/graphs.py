"""Graphs of a model and its gate: traced once, written as ONNX and, where asked for, as compiled packages.

Every dimension that varies in service is traced as varying, and never at size 1, which would be taken for
fixed.
"""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

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
from pyrskip.inference.modules import Sight, alone_parts_of, parts_of
from pyrskip.inference.outside import Outside
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.models.tiers import GatedModel
from pyrskip.signals import signals_of

Example = tuple[dict[str, Any], dict[str, Any]]
"""Inputs of a graph by name, and which of their dimensions vary."""
OUTPUTS = {
    "gate": ("outputs", "asked", "pooled", "flops", "probability"),
    FIXED: ("asked", "pooled", "flops"),
    "vision": ("features",),
    "projector": ("tokens",),
    "prefill": ("logits", *STATE),
    "decode": ("logits", "longer_real", "longer_keys", "longer_values"),
}
OUTPUTS_ALONE = OUTPUTS | {"gate": ("outputs", "keep", "flops", "probability")}


def trace(
    model: NativeModel, gate: Gate, unit: float, graphs: Sequence[str] | None = None
) -> dict[str, ExportedProgram]:
    """Graph name -> program; by default all. unit: FLOPs of relative cost 1.

    Raises UserError for a part that cannot be traced, such as a backbone of one image size.
    """
    parts = parts_of(model, gate, unit)
    return _traced(parts, _examples(model, gate, parts), list(parts) if graphs is None else graphs)


def trace_alone(sight: Sight, gate: Gate, outside: Outside, unit: float) -> dict[str, ExportedProgram]:
    """As `trace`, of a gate without a model."""
    parts = alone_parts_of(sight, gate, outside, unit)
    glance = sight.pyramid.side(sight.pyramid.levels - 1) // sight.vision.stride
    decides = _deciding_examples(
        cast(GatedModel, sight), gate, glance, Dim("words", max=sight.text.max_words)
    )
    own = {name: torch.ones(3, gate.layout.tiles, dtype=torch.int64) for name in ("tokens", "places")}
    if outside.lone is not None:
        own["lone"] = torch.ones(3, 3, dtype=torch.float64)
    inputs, varying = decides["gate"]
    decides["gate"] = inputs | own, varying | {name: {0: varying["price"][0]} for name in own}
    examples = {**decides, "vision": _vision_example(sight.vision.stride, varying["price"][0])}
    return _traced(parts, examples, list(parts))


def _traced(
    parts: dict[str, nn.Module], examples: Mapping[str, Example], graphs: Sequence[str]
) -> dict[str, ExportedProgram]:
    parts["vision"] = _with_fixed_padding(parts["vision"])
    programs = {}
    for name in graphs:
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


def write_onnx(
    programs: dict[str, ExportedProgram], directory: Path, outputs: Mapping[str, Sequence[str]] = OUTPUTS
) -> None:
    """`directory`/<graph>.onnx, each one file. outputs: their names, of a graph that has names for them."""
    directory.mkdir(parents=True)
    for name, program in programs.items():
        count = len(program.graph_signature.user_outputs)
        named = outputs.get(name, tuple(f"tensor_{i}" for i in range(count)))
        to_onnx(program, named[:count]).save(directory / f"{name}.onnx")


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


def _question() -> dict[str, torch.Tensor]:
    return {"ids": torch.full((3, 5), 2), "mask": torch.ones(3, 5, dtype=torch.bool)}


def _tiled(tiles: int) -> dict[str, torch.Tensor]:
    """What decisions cost by."""
    return {
        "cells": torch.ones(3, tiles, 2, dtype=torch.int64),
        "encode": torch.rand(3, tiles, dtype=torch.float64),
        "words": torch.ones(3, dtype=torch.int64),
    }


def _fixed_example(tiles: int, batch: Dim) -> Example:
    inputs = {"action": torch.zeros(3, dtype=torch.int64), **_tiled(tiles)}
    return inputs, {name: {0: batch} for name in inputs}


def _vision_example(stride: int, batch: Dim) -> Example:
    rows, columns = Dim("rows"), Dim("columns")
    return (
        {"pixels": torch.rand(3, 3, 2 * stride, 3 * stride)},
        {"pixels": {0: batch, 2: stride * rows, 3: stride * columns}},
    )


@torch.no_grad()
def _deciding_examples(
    model: GatedModel, gate: Gate, cells: int, query_words: Dim, vocabulary: int = 0
) -> dict[str, Example]:
    """Example inputs of the signals' graphs, and of what the gate's graph reads in every kind of export;
    their values do not matter. cells: a side of the glance's map; vocabulary: of the language model, where it
    is there."""
    layout, side, batch = gate.layout, cells * model.vision.stride, Dim("batch")
    sources = {
        "question": tuple(_question().values()),
        "glance": (torch.rand(3, model.vision.channels, cells, cells), _whole(cells)),
        "pixels": (torch.rand(3, 3, side, side), _whole(side)),
        "first_token": (torch.rand(3, vocabulary),),
    }
    signals: dict[str, Example] = {}
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
    tiled = _tiled(layout.tiles) | {"price": torch.rand(3), "max_tokens": torch.ones(3, dtype=torch.int64)}
    return signals | {
        "gate": ({"signals": seen, **tiled}, {"signals": of_seen, **{name: {0: batch} for name in tiled}})
    }


@torch.no_grad()
def _examples(model: NativeModel, gate: Gate, parts: Mapping[str, nn.Module]) -> dict[str, Example]:
    """Example inputs of every graph of an export that holds its model."""
    language = model.config.language
    batch, words = Dim("batch"), Dim("words", max=language.max_words)
    tokens, past, memory = map(Dim, ("tokens", "past", "memory"))
    question = _question()
    query_words = Dim("words", max=model.text.max_words) if isinstance(model.text, MiniLmText) else words
    cells = model.pyramid.side(model.pyramid.levels - 1) // model.vision.stride
    prompt = {"visual": torch.rand(3, 7, language.width), **question}
    state = dict(zip(STATE, parts["prefill"](**prompt)[1:], strict=False))
    of_state = {name: {1: batch, 3: memory if name.startswith("memory") else past} for name in state}
    return {
        **_deciding_examples(model, gate, cells, query_words, model.language.embed.num_embeddings),
        FIXED: _fixed_example(gate.layout.tiles, batch),
        "vision": _vision_example(model.vision.stride, batch),
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
