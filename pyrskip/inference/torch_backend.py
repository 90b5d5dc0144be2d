"""Backend 'torch': the same parts from model.safetensors, eager, or compiled where native code is allowed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.gates import described_gate
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import NATIVE, Spec
from pyrskip.inference.engine import Array, Arrays, Inputs
from pyrskip.inference.modules import parts_of
from pyrskip.models.language import LanguageConfig
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig


class TorchBackend:
    """native: run native/<graph>.pt2, which is compiled code, in place of eager modules; such code is not to
    be trusted because its checksum is right, but because its maker is."""

    def __init__(self, directory: Path, spec: Spec, tokenizer: Tokenizer, native: bool = False) -> None:
        self.parts: Mapping[str, Callable[..., Any]]
        if native:
            missing = [graph for graph in spec.graphs if not (directory / NATIVE / f"{graph}.pt2").is_file()]
            if missing:
                raise UserError(
                    f"{directory} has no compiled {', '.join(missing)}; export with native=true, or "
                    "allow_native=False"
                )
            load = torch._inductor.aoti_load_package
            self.parts = {graph: load(str(directory / NATIVE / f"{graph}.pt2")) for graph in spec.graphs}
        else:
            self.parts = parts_of(*load_modules(directory, spec, tokenizer), spec.costs.unit)

    @torch.inference_mode()
    def run(self, graph: str, inputs: Inputs) -> Arrays:
        outputs = self.parts[graph](**{name: _tensors(value) for name, value in inputs.items()})
        return [out.numpy() for out in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def _tensors(value: Array | Mapping[str, Array]) -> Tensor | dict[str, Tensor]:
    if isinstance(value, Mapping):
        return {name: torch.from_numpy(array) for name, array in value.items()}
    return torch.from_numpy(np.ascontiguousarray(value))


def load_modules(directory: Path, spec: Spec, tokenizer: Tokenizer) -> tuple[NativeModel, Gate]:
    """The model and the gate of an export, in evaluation mode. Raises UserError where weights and config.json
    disagree, or where that does not say what its costs count: this backend counts them itself."""
    plain = spec.plain["model"]
    try:
        if "count" not in plain["cost"]:
            raise UserError(
                f"{directory}/config.json does not say what its costs count (model.cost.count); allowed: "
                "backend='onnx', or to export again"
            )
        pyramid = PyramidConfig(**plain["pyramid"] | {"grid": tuple(plain["pyramid"]["grid"])})
        text = TextConfig(plain["text"]["name"], str(directory / "query") if spec.own_query else None)
        parts = (
            VisionConfig(**plain["vision"]),
            text,
            LanguageConfig(**plain["language"]),
            CostConfig(**plain["cost"]),
        )
        model = NativeModel(ModelConfig(pyramid, *parts), tokenizer)
        gate = described_gate(spec.plain["gate"])
        state = safetensors.torch.load_file(directory / "model.safetensors")
        of = {
            prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for prefix in ("model.", "gate.")
        }
        missing, unexpected = model.load_state_dict(of["model."], strict=False)
        gate.load_state_dict(of["gate."])
        if unexpected or any(not name.startswith("text.") for name in missing):
            raise ValueError("its tensors are not the model's")
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}/model.safetensors is not what config.json describes ({reason}); export again"
        ) from error
    return model.eval(), gate.eval()
