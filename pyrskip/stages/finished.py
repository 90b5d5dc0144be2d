"""A finished run: the model, one of its gates, and what its frontier says of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrskip.config import Config
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.evaluation.summary import default_price
from pyrskip.gates import load_gate
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.stages.data import DATA
from pyrskip.stages.flex import FLEX
from pyrskip.stages.frontier import FRONTIER
from pyrskip.stages.gate import GATE, gate_directory
from pyrskip.stages.model import model_of
from pyrskip.stages.run import Run


@dataclass(frozen=True)
class Finished:
    """seed: of the gate; price: its own where none is given; summary: summary.json; test: the test split;
    unit: FLOPs of relative cost 1."""

    root: Path
    model: NativeModel | ServedModel
    gate: Gate
    seed: int
    price: float
    summary: Mapping[str, Any]
    test: ShardDataset

    @property
    def unit(self) -> float:
        return float(self.summary["unit_flops"])

    @classmethod
    def of(cls, config: Config, seed: int | None = None) -> "Finished":
        """seed: by default the run's first. Raises UserError where a stage is missing or no such gate was
        trained."""
        run = Run(config, {})
        for stage in (DATA, FLEX, GATE, FRONTIER):
            if stage.applies(config) and not run.done(stage):
                raise UserError(
                    f"run={run.root} has no finished {stage.name} stage; finish it with pyrskip train"
                )
        seed = config.seed if seed is None else seed
        allowed = range(config.seed, config.seed + config.seeds)
        if seed not in allowed:
            raise UserError(f"seed={seed} was not trained; allowed: {', '.join(map(str, allowed))}")
        summary = read_result(run.root / "summary.json")
        return cls(
            root=run.root,
            model=model_of(run),
            gate=load_gate(gate_directory(run.root, "gate", seed)),
            seed=seed,
            price=default_price(summary, seed),
            summary=summary,
            test=ShardDataset(run.directory(DATA), "test", config.pyramid.size),
        )


def read_result(path: Path) -> Any:
    """A JSON file that the frontier wrote. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); draw the frontier again with pyrskip eval"
        ) from error
