"""Gates by name, one file each, found by themselves; and on disk."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.files import write_json, write_whole
from pyrskip.gates.ensemble import Ensemble
from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.observation import Layout
from pyrskip.registry import import_modules

import_modules(__name__)


def build_gate(config: GateConfig, layout: Layout) -> Gate:
    return GATES[config.name](config, layout) if config.members == 1 else Ensemble(config, layout)


def save_gate(gate: Gate, directory: Path) -> None:
    """gate.safetensors, and gate.json that says what it is by registered names."""
    state = {k: v.contiguous() for k, v in gate.state_dict().items()}
    write_whole(directory / "gate.safetensors", safetensors.torch.save(state))
    write_json(directory / "gate.json", describe_gate(gate))


def describe_gate(gate: Gate) -> dict[str, Any]:
    """A gate in registered names and numbers, without its weights."""
    layout = gate.layout
    return {
        "gate": asdict(gate.config),
        "signals": layout.signals,
        "tiles": layout.tiles,
        "actions": {
            "names": layout.actions.names,
            "selection": layout.actions.selection.int().tolist(),
            "ladder": layout.actions.ladder,
            "rung": None if layout.actions.rung is None else layout.actions.rung.tolist(),
        },
        "budget": asdict(layout.budget),
    }


def described_gate(plain: dict[str, Any]) -> Gate:
    """The gate that `describe_gate` describes, with new weights. Raises UserError for an unknown name;
    KeyError, TypeError or AttributeError for what describes none."""
    names = plain["actions"]["names"]
    selection = torch.tensor(plain["actions"]["selection"], dtype=torch.bool)
    if selection.shape != (len(names), plain["tiles"]):
        raise TypeError(f"actions.selection is {list(selection.shape)}, not {[len(names), plain['tiles']]}")
    rung = plain["actions"]["rung"]
    actions = ActionSet(
        selection, tuple(names), tuple(plain["actions"]["ladder"]), rung and torch.tensor(rung)
    )
    signals = {name: tuple(shape) for name, shape in plain["signals"].items()}
    layout = Layout(signals, plain["tiles"], actions, BudgetRule(**_tuples(plain["budget"])))
    return build_gate(GateConfig(**_tuples(plain["gate"])), layout)


def load_gate(directory: Path) -> Gate:
    """Raises UserError where the directory holds no whole gate."""
    try:
        gate = described_gate(json.loads((directory / "gate.json").read_text()))
        gate.load_state_dict(safetensors.torch.load_file(directory / "gate.safetensors"))
    except UserError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{directory} holds no gate that can be read ({error}); run the gate stage"
        ) from error
    return gate.eval()


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
