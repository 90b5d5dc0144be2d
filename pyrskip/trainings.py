"""Stages that train, flex and gate: what each of them learns from, and how a trainer is given it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.artifacts import (
    encoder_of,
    first_batches,
    gate_directory,
    inputs_of,
    methods_of,
    model_of,
    pyramid_of,
    tables_of,
    tell_faults,
)
from pyrskip.config import Config, to_plain
from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import Filled, Joined, Samples, collate
from pyrskip.data.sampler import check_shards
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates import build_gate, save_gate
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.models.vision import VisionEncoder
from pyrskip.rollouts.environments import Environment, ModelEnvironment, TableEnvironment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.run import Run, first_rank
from pyrskip.sweeps.rungs import Rungs
from pyrskip.tracking.loggers import Job, loggers
from pyrskip.tracking.versions import versions
from pyrskip.tracking.watch import Watch
from pyrskip.training import find_rule
from pyrskip.training.flex import FlexModule
from pyrskip.training.health import glance_is_best
from pyrskip.training.trainer import build_trainer, fit


def train_flex(run: Run) -> None:
    config, directory = run.config, run.root / "flex"
    vision = encoder_of(run)
    train = inputs_of(run, "train", vision)
    data = _with_closeups(run, train, vision) if config.flex.close_steps else train
    if config.loader.order == "shards":
        ranks = config.trainer.devices * config.trainer.nodes
        check_shards(train.parts, ranks, config.loader.workers, str(run.directory("data")))
    tokenizer = train_tokenizer(_texts(data), config.language.vocabulary)
    torch.manual_seed(config.flex.seed)
    model = NativeModel(config.native, tokenizer)
    model.vision.load_state_dict(vision.state_dict())
    module = FlexModule(config.flex, model, ActionSet.by_level(model.pyramid))
    gather = partial(collate, side=config.pyramid.size)
    model.whiten(first_batches(train, config.loader.rollout_images, config.pyramid.size))
    state = _fit(run, module, Filled(data), gather, config.loader.batch_images, directory, "flex")
    tell_faults(run, "train")
    if first_rank():
        whole = NativeModel(config.native, tokenizer)
        whole.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        whole.save(directory)


def train_gates(run: Run) -> None:
    config = run.config
    tables = tables_of(run, ("gate", "val"))
    unit = tables["gate"].mean_full_flops
    _check_target(config, tables["gate"])
    _warn_of_worthless(run, tables["gate"], unit)
    methods = methods_of(config)
    for method, wanted in methods.items():
        for seed in range(config.seed, config.seed + config.seeds):
            directory = gate_directory(run.root, method, seed)
            if (directory / "gate.json").exists():
                continue
            environment = _environment(run, tables["gate"], unit, wanted.confidence)
            torch.manual_seed(seed)
            gate = build_gate(wanted, environment.layout)
            module = find_rule(config.rule.name)(config.rule, gate, environment, config.reward, seed)
            val = TableEnvironment(tables["val"], pyramid_of(config), config.budget, unit)
            watched = None if config.gate.looks else val  # a table has nothing to look at
            if config.rule.online:
                side, data = config.pyramid.size, Filled(inputs_of(run, "gate", model_of(run).vision))
                _fit(
                    run,
                    module,
                    data,
                    partial(collate, side=side),
                    config.loader.batch_images,
                    directory,
                    method,
                    seed,
                    watched,
                )
            else:
                _fit(
                    run,
                    module,
                    range(len(tables["gate"])),
                    torch.tensor,
                    config.rule.batch,
                    directory,
                    method,
                    seed,
                    watched,
                )
            if config.reward.target is not None:
                val.to(torch.device("cpu"))
                reached = module.calibrate(val, torch.arange(len(tables["val"])))
                run.say(
                    f"{method}/seed-{seed}: costs {reached:.3f} on validation, {config.reward.target} wanted"
                )
            if first_rank():
                save_gate(gate.cpu(), directory)


def _fit(
    run: Run,
    module: Any,
    data: Any,
    gather: Any,
    batch: int,
    directory: Path,
    stage: str,
    seed: int = 0,
    val: TableEnvironment | None = None,
) -> dict[str, torch.Tensor]:
    """val: what a gate is watched on while it trains. Returns the module's state."""
    config = run.config
    steps = module.optimizer_config.steps
    name = stage if stage == "flex" else f"{stage}/seed-{seed}"
    with loggers(run.nodes, directory, job_of(run, name)) as built:
        watches: list[Callback] = [Watch(val, built)] if val is not None else []
        if run.prunes and val is not None and name == f"gate/seed-{config.seed}":
            watches.append(Rungs(run.root, val))
        trainer = build_trainer(config.trainer, directory, built, name, watches, sharded=stage == "flex")
        if stage == "flex":
            of = config.loader
            early = config.flex.close_steps
            loader = StepData(data, gather, batch, steps, module.seed, of.workers, of.order, of.replan, early)
        else:
            loader = StepData(data, gather, batch, steps, module.seed)
        return fit(trainer, module, loader, directory)


def job_of(run: Run, stage: str) -> Job:
    config = run.config
    tags = (config.data.source, config.rule.name, config.gate.name, config.gate.policy)
    return Job(config.name, stage, tags, to_plain(config) | {"versions": versions()}, config.trainer.quiet)


def _check_target(config: Config, table: RolloutTable) -> None:
    least = float(table.cost.flops[:, : len(table.actions)].amin(-1).mean()) / table.mean_full_flops
    if config.reward.target is not None and config.reward.target < least:
        raise UserError(
            f"reward.target={config.reward.target}: the glance alone costs {least:.3f}; allowed: from there "
            "to 1"
        )


def _warn_of_worthless(run: Run, table: RolloutTable, unit: float) -> None:
    """Tell, with the arithmetic, where the reward makes the glance alone the best decision for every question
    type."""
    reward = run.config.reward
    if reward.mode != "target":
        lowest = reward.low if reward.price is None else reward.price
        told = glance_is_best(
            TableEnvironment(table, pyramid_of(run.config), run.config.budget, unit), reward, lowest
        )
        if told is not None:
            run.say(f"warning: {told}")


def _environment(run: Run, table: RolloutTable, unit: float, confidence: bool) -> Environment[Any]:
    if run.config.rule.online:
        model = model_of(run)
        assert isinstance(model, NativeModel), "a config with a served model is refused"
        return ModelEnvironment(model, table.actions, run.config.budget, unit, confidence)
    return TableEnvironment(table, pyramid_of(run.config), run.config.budget, unit)


def _with_closeups(run: Run, data: Samples, vision: VisionEncoder) -> Joined:
    close, share = inputs_of(run, "close", vision), run.config.flex.close_share
    if not len(close):
        raise UserError(
            f"flex.close_share={share}: {run.directory('data')} holds no close-ups; allowed: 0, or "
            "data.scenes.closeups of at "
            "least 1"
        )
    if run.config.loader.order == "shards":
        raise UserError(
            f"flex.close_share={share} needs loader.order=samples; allowed: that, or flex.close_share=0"
        )
    return Joined(close, data)


def _texts(data: Samples) -> list[str]:
    return [text for questions in data.questions() for q in questions or () for text in (q.text, *q.answers)]
