"""Stage gate: the run's gate and its ablations, one of each seed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.config import Config
from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import Filled, collate
from pyrskip.errors import UserError
from pyrskip.gates import build_gate, load_gate, save_gate
from pyrskip.gates.ensemble import Ensemble
from pyrskip.gates.gate import GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.environments import Environment, ModelEnvironment, TableEnvironment
from pyrskip.rollouts.held_out import looked_at
from pyrskip.rollouts.table import RolloutTable
from pyrskip.signals import SIGNALS
from pyrskip.stages.cache import inputs_of, pyramid_of
from pyrskip.stages.model import model_of
from pyrskip.stages.peers import PEERS
from pyrskip.stages.rollouts import tables_of
from pyrskip.stages.run import Run, Stage, select
from pyrskip.tracking.guard import first_rank
from pyrskip.tracking.loggers import loggers
from pyrskip.tracking.watch import Watch
from pyrskip.training.best import KEPT, Best
from pyrskip.training.health import glance_is_best
from pyrskip.training.rules import RULES
from pyrskip.training.trainer import CHECKPOINT, build_trainer, fit

# ablations by the gate that they train; of one from outside it is ablation:<its name>
METHODS = {"predictor": "gate:query_only", "glance": "gate:glance_only", "joint": "gate:joint"}


def train_gates(run: Run) -> None:
    tables = tables_of(run, ("gate", "val"))
    _check_target(run.config, tables["gate"])
    _warn_of_price(run, tables["gate"])
    for method, gate, seed, directory in gates_of(run):
        if (directory / "gate.json").exists():
            if _readable(directory):
                continue
            start = "its checkpoint" if (directory / CHECKPOINT).exists() else "its start"
            run.say(f"{directory} holds no gate that can be read; it is trained again from {start}")
        train = _train_gate if gate.members == 1 else _train_members
        train(run, tables, f"{method}/seed-{seed}", gate, seed, directory)


def _train_members(
    run: Run, tables: dict[str, RolloutTable], name: str, wanted: GateConfig, seed: int, directory: Path
) -> None:
    """Each with a seed of its own; one that is trained already is not trained again."""
    places = [directory / f"member-{member}" for member in range(wanted.members)]
    for member, place in enumerate(places):
        if not ((place / "gate.json").exists() and _readable(place)):
            own = replace(wanted, members=1), seed * wanted.members + member, place
            _train_gate(run, tables, f"{name}/member-{member}", *own)
    if first_rank():
        save_gate(Ensemble.of(wanted, [load_gate(place) for place in places]), directory)


def _train_gate(
    run: Run, tables: dict[str, RolloutTable], name: str, wanted: GateConfig, seed: int, directory: Path
) -> None:
    config, unit = run.config, tables["gate"].mean_full_flops
    environment = _environment(run, tables["gate"], unit, wanted)
    torch.manual_seed(seed)
    gate = build_gate(wanted, environment.layout)
    module = RULES[config.rule.name](config.rule, gate, environment, config.reward, seed)
    val = TableEnvironment(looked_at(tables["val"]), pyramid_of(config), config.budget, unit)
    steps = module.optimizer_config.steps
    if config.rule.online:
        glances = any(SIGNALS[need].source == "pixels" for need in wanted.needs)
        data = Filled(inputs_of(run, "gate", model_of(run).vision, glances))
        gather = partial(collate, side=config.pyramid.size)
        batches = StepData(data, gather, config.loader.batch_images, steps, module.seed)
    else:
        rows: Any = range(len(tables["gate"]))
        batches = StepData(rows, torch.tensor, config.rule.batch, steps, module.seed)
    with loggers(run.nodes, directory, run.job(name)) as built:
        # a table has nothing to look at
        watches: list[Callback] = [] if config.gate.looks else [Watch(val, built)]
        if run.stopper is not None and watches and name == f"gate/seed-{config.seed}":
            watches.append(run.stopper(run.root, val))
        # before Watch, whose last look is at the weights that are kept
        if config.rule.validations and watches:
            watches.insert(0, Best(val, config.rule.validations, config.rule.patience, directory / KEPT))
        fit(build_trainer(config.trainer, directory, built, name, watches), module, batches, directory)
    _say_kept(run, name, kept_in(directory))
    if config.reward.target is not None:
        val.to(torch.device("cpu"))
        reached = module.calibrate(val, torch.arange(len(val.table)))
        run.say(f"{name}: costs {reached:.3f} on validation, {config.reward.target} wanted")
    if first_rank():
        save_gate(gate.cpu(), directory)


def _say_kept(run: Run, name: str, kept: dict[str, Any] | None) -> None:
    total = run.config.rule.optimizer.steps
    if kept is not None:
        ended = f"stopped at {kept['steps']} of {total}" if kept["steps"] < total else f"of {total}"
        figure = f"reward {kept['reward']:.4f} on validation"
        run.say(f"{name}: keeps the weights of step {kept['step']} ({figure}), {ended}")
    elif run.config.rule.validations:
        run.say(f"{name}: keeps its last weights: validation rollouts tell nothing of it")


def kept_in(directory: Path) -> dict[str, Any] | None:
    """Which weights a gate's training kept, as it says in its directory; None where it was not validated."""
    path = directory / KEPT
    return json.loads(path.read_text()) if path.exists() else None


def methods_of(config: Config) -> dict[str, GateConfig]:
    """The frontier's name of each gate that is trained -> the gate. No ablation reads signals beside its own,
    nor goes without a score; one that is the run's own gate is left out."""
    ablations = {
        METHODS.get(name, f"ablation:{name}"): replace(config.gate, name=name, signals=(), without=())
        for name in config.ablations
    }
    return {"gate": config.gate} | {method: gate for method, gate in ablations.items() if gate != config.gate}


def gates_of(run: Run) -> Iterator[tuple[str, GateConfig, int, Path]]:
    """Method, gate, seed and directory of each gate of a run."""
    for method, gate in methods_of(run.config).items():
        for seed in range(run.config.seed, run.config.seed + run.config.seeds):
            yield method, gate, seed, gate_directory(run.root, method, seed)


def gate_directory(root: Path, method: str, seed: int) -> Path:
    return root / GATE.name / method.replace(":", "-") / f"seed-{seed}"


def _readable(directory: Path) -> bool:
    try:
        load_gate(directory)
    except UserError:
        return False
    return True


def _check_target(config: Config, table: RolloutTable) -> None:
    least = float(table.cost.flops[:, : len(table.actions)].amin(-1).mean()) / table.mean_full_flops
    if config.reward.target is not None and config.reward.target < least:
        raise UserError(
            f"reward.target={config.reward.target}: the glance alone costs {least:.3f}; allowed: from there "
            "to 1"
        )


def _warn_of_price(run: Run, table: RolloutTable) -> None:
    """Say, with the arithmetic, where the reward makes the glance alone the best decision for every question
    type."""
    config, reward = run.config, run.config.reward
    if reward.mode != "target":
        lowest = reward.low if reward.price is None else reward.price
        environment = TableEnvironment(table, pyramid_of(config), config.budget, table.mean_full_flops)
        found = glance_is_best(environment, reward, lowest)
        if found is not None:
            run.say(f"warning: {found}")


def _environment(run: Run, table: RolloutTable, unit: float, gate: GateConfig) -> Environment[Any]:
    if run.config.rule.online:
        model = model_of(run)
        assert isinstance(model, NativeModel), "a config with a served model is refused"
        return ModelEnvironment(model, table.actions, run.config.budget, unit, gate.needs)
    return TableEnvironment(table, pyramid_of(run.config), run.config.budget, unit)


def _batch(run: Run) -> dict[str, Any]:
    """Online a step is of images, and not of a table's rows."""
    return select(run.config, "loader.batch_images") if run.config.rule.online else {}


GATE = Stage(
    "gate",
    train_gates,
    after=PEERS,
    keys=("gate", "rule", "reward", "seed", "seeds", "ablations", "trainer"),
    more=_batch,
    borrowed=False,
    whole=lambda run: all(_readable(directory) for *_, directory in gates_of(run)),
)
