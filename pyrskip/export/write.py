"""The files of an export that are loaded: graphs, weights, tokenizers, config.json and their checksums."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer

from pyrskip.export.graphs import OUTPUTS_ALONE, trace, trace_alone, write_native, write_onnx
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import NATIVE, write_checksums
from pyrskip.inference.modules import Sight
from pyrskip.inference.outside import Outside
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.models.vlm.served import ServedModel


def write_parts(
    model: NativeModel,
    gate: Gate,
    plain: dict[str, Any],
    directory: Path,
    native: bool = False,
    graphs: Sequence[str] | None = None,
) -> None:
    """What is loaded: graphs (by default all), weights, tokenizers, config.json and their checksums. plain:
    of `describe`. Raises UserError as `trace` does."""
    programs = trace(model, gate, plain["cost"]["full_pyramid"], graphs)
    write_onnx(programs, directory / "onnx")
    if native:
        write_native(programs, directory / NATIVE)
    _write_weights(model, gate, directory)
    (directory / "config.json").write_text(json.dumps(plain, indent=1))
    write_checksums(directory)


def write_alone(
    model: ServedModel,
    gate: Gate,
    outside: Outside,
    tokenizer: Tokenizer | None,
    plain: dict[str, Any],
    directory: Path,
) -> None:
    """What is loaded of a gate alone: graphs, weights, tokenizers, config.json and their checksums.

    tokenizer: of the model, where that counts tokens; plain: of `describe_alone`. Raises UserError as `trace`
    does.
    """
    assert isinstance(model.text, MiniLmText)
    sight = Sight(model.pyramid, model.vision, model.text)
    programs = trace_alone(sight, gate, outside, plain["cost"]["full_pyramid"])
    write_onnx(programs, directory / "onnx", OUTPUTS_ALONE)
    _write_state({f"vision.{name}": t for name, t in model.vision.state_dict().items()}, gate, directory)
    _write_query(model.text, directory)
    if tokenizer is not None:
        (directory / "tokenizer.json").write_text(tokenizer.to_str())
    (directory / "config.json").write_text(json.dumps(plain, indent=1))
    write_checksums(directory)


def _write_weights(model: NativeModel, gate: Gate, directory: Path) -> None:
    _write_state(
        {name: t for name, t in model.state_dict().items() if not name.startswith("text.")}, gate, directory
    )
    (directory / "tokenizer.json").write_text(model.language.tokenizer.to_str())
    if isinstance(model.text, MiniLmText):
        _write_query(model.text, directory)


def _write_query(text: MiniLmText, directory: Path) -> None:
    text.model.save_pretrained(directory / "query")
    text.reads.save_pretrained(directory / "query")


def _write_state(model: Mapping[str, torch.Tensor], gate: Gate, directory: Path) -> None:
    state = {f"model.{name}": t for name, t in model.items()}
    state |= {f"gate.{name}": t for name, t in gate.state_dict().items()}
    safetensors.torch.save_file(
        {name: t.contiguous() for name, t in state.items()}, directory / "model.safetensors"
    )
    (directory / "model.safetensors").chmod(0o644)
