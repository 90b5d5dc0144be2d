"""The clock of a finished run: its model and one of its gates, on a device."""

import json
import platform

import torch

from pyrskip.config import Config
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.errors import UserError
from pyrskip.evaluation.bench import SIZES, Timed, bench
from pyrskip.evaluation.summary import default_price
from pyrskip.gates import load_gate
from pyrskip.models.native import NativeModel
from pyrskip.stages.data import DATA
from pyrskip.stages.flex import FLEX
from pyrskip.stages.frontier import FRONTIER
from pyrskip.stages.gate import GATE, gate_directory
from pyrskip.stages.run import Run

DEVICES = ("cpu", "cuda")


def bench_run(
    config: Config, device: str, seconds: float, price: float | None, seed: int | None
) -> tuple[str, list[Timed]]:
    """The device's name, and the times on it. device: by default the one that the run was trained on. price,
    seed: of the gate, by default those that its export would have.

    Raises UserError where a stage is missing, the model runs elsewhere, or there is no such device or gate.
    """
    device = device or ("cpu" if config.trainer.accelerator == "cpu" else "cuda")
    if device not in DEVICES or (device == "cuda" and not torch.cuda.is_available()):
        there = ", ".join(DEVICES if torch.cuda.is_available() else DEVICES[:1])
        raise UserError(f"device={device} is not here; allowed: {there}")
    if config.model.served:
        raise UserError(
            f"model.name={config.model.name} runs elsewhere, and its time is its own; allowed: native"
        )
    run = Run(config, {})
    for stage in (DATA, FLEX, GATE, FRONTIER):
        if not run.done(stage):
            raise UserError(
                f"run={run.root} has no finished {stage.name} stage; finish it with pyrskip train"
            )
    seeds = range(config.seed, config.seed + config.seeds)
    seed = config.seed if seed is None else seed
    if seed not in seeds:
        raise UserError(f"seed={seed} was not trained; allowed: {', '.join(map(str, seeds))}")
    told = json.loads((run.root / "summary.json").read_text())
    model = NativeModel.load(run.directory(FLEX), config.cost).to(device)
    gate = load_gate(gate_directory(run.root, "gate", seed)).to(device)
    [price] = gate.prices([default_price(told, seed) if price is None else price])
    test = ShardDataset(run.directory(DATA), "test", config.pyramid.size)
    batch = collate([test[i] for i in range(min(SIZES[-1], len(test)))], config.pyramid.size).to(device)
    name = torch.cuda.get_device_name(model.device) if device == "cuda" else platform.processor() or "CPU"
    return f"{name}, price {price:g}", bench(model, gate, batch, float(told["unit_flops"]), price, seconds)
