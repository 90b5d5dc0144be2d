"""Backend 'torch': the same parts from model.safetensors, eager, or compiled where native code is allowed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from pyrskip.inference.decider import Array, Arrays, Inputs
from pyrskip.inference.modules import Sight, alone_parts_of, parts_of
from pyrskip.inference.outside import Outside
from pyrskip.models.language import LanguageConfig
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import MiniLmText, TextConfig
from pyrskip.models.vision import VisionConfig, VisionEncoder


class TorchBackend:
    """native: run native/<graph>.pt2, which is compiled code, in place of eager modules; such code is not to
    be trusted because its checksum is right, but because its maker is."""

    def __init__(
        self, directory: Path, spec: Spec, tokenizer: Tokenizer | None, native: bool = False
    ) -> None:
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
        elif isinstance(spec.answerer, Outside):
            sight, gate = load_alone(directory, spec)
            self.parts = alone_parts_of(sight, gate, spec.answerer, spec.costs.unit)
        else:
            assert tokenizer is not None
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
    with _described(directory):
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
        missing, unexpected = model.load_state_dict(_weights(directory, "model."), strict=False)
        if unexpected or any(not name.startswith("text.") for name in missing):
            raise ValueError("its tensors are not the model's")
        return model.eval(), _gate(directory, spec)


def load_alone(directory: Path, spec: Spec) -> tuple[Sight, Gate]:
    """What the gate looks through and the gate of a bundle that holds no model, in evaluation mode. Raises
    UserError where weights and config.json disagree."""
    with _described(directory):
        vision = VisionEncoder(VisionConfig(**spec.plain["model"]["vision"]))
        vision.load_state_dict(_weights(directory, "model.vision."))
        sight = Sight(spec.pyramid, vision.eval(), MiniLmText(str(directory / "query")))
        return sight, _gate(directory, spec)


def _gate(directory: Path, spec: Spec) -> Gate:
    gate = described_gate(spec.plain["gate"])
    gate.load_state_dict(_weights(directory, "gate."))
    return gate.eval()


def _weights(directory: Path, prefix: str) -> dict[str, Tensor]:
    state = safetensors.torch.load_file(directory / "model.safetensors")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@contextmanager
def _described(directory: Path) -> Iterator[None]:
    """Whatever is wrong inside: one sentence."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}/model.safetensors is not what config.json describes ({reason}); export again"
        ) from error
