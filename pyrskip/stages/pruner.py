"""Stage pruner: what pruner `visionselector` learns, for a run that prunes by it or is held against it."""

from dataclasses import replace
from functools import partial
from typing import Any

import safetensors.torch
from safetensors.torch import load_file

from pyrskip.config import Config
from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import Filled, collate
from pyrskip.decision import ActionSet
from pyrskip.files import write_whole
from pyrskip.identity import identity
from pyrskip.models.native import NativeModel
from pyrskip.pruners import Pruner, PrunerConfig, build_pruner
from pyrskip.pruners.visionselector import Scorer, SelectorConfig, VisionSelector
from pyrskip.stages.cache import inputs_of
from pyrskip.stages.data import report_faults
from pyrskip.stages.flex import FLEX
from pyrskip.stages.run import Run, Stage, select
from pyrskip.tracking.guard import first_rank
from pyrskip.tracking.loggers import loggers
from pyrskip.training.selector import SelectorModule
from pyrskip.training.trainer import build_trainer, fit

SCORER = "scorer.safetensors"


def train_pruner(run: Run) -> None:
    """Train a pruner on images that flex never saw, as gates are."""
    config, directory, learned = run.config, run.root / PRUNER.name, learned_by(run.config)
    assert learned is not None
    model = NativeModel.load(run.directory(FLEX), config.cost)
    actions = ActionSet.of(model.pyramid, config.budget, config.actions)
    module = SelectorModule(learned, model, actions, config.budget)
    data, gather = Filled(inputs_of(run, "gate", model.vision)), partial(collate, side=config.pyramid.size)
    batches = StepData(data, gather, config.loader.batch_images, learned.steps, module.seed)
    with loggers(run.nodes, directory, run.job(PRUNER.name)) as built:
        state = fit(build_trainer(config.trainer, directory, built, PRUNER.name), module, batches, directory)
    report_faults(run, "gate")
    if first_rank():
        own = {n.removeprefix("scorer."): of.cpu() for n, of in state.items() if n.startswith("scorer.")}
        write_whole(directory / SCORER, safetensors.torch.save(own))


def pruner_of(run: Run, config: PrunerConfig) -> Pruner | None:
    """A pruner with what it has learned; None where every token stays."""
    pruner = build_pruner(config)
    if isinstance(pruner, VisionSelector):
        state = load_file(run.directory(PRUNER) / SCORER)
        pruner.scorer = Scorer(len(state["query"])).requires_grad_(False)
        pruner.scorer.load_state_dict(state)
    return pruner


def learned_by(config: Config) -> SelectorConfig | None:
    """How a run's own pruner learns, or the peer that it is held against, whatever is then kept; None where
    none does."""
    if isinstance(config.pruner, SelectorConfig):
        return replace(config.pruner, ratio=1.0, tokens=0)
    return SelectorConfig("visionselector") if "visionselector" in config.peers.pruners else None


def _identity(run: Run) -> dict[str, Any]:
    learned = learned_by(run.config)
    own = {} if learned is None else identity(learned, 1, "visionselector.")
    return own | select(run.config, "actions", "budget", "loader.batch_images")


def _is_whole(run: Run) -> bool:
    return (run.directory(PRUNER) / SCORER).exists()


PRUNER = Stage(
    "pruner",
    train_pruner,
    keys=("trainer",),
    after=FLEX,
    more=_identity,
    passes=True,  # what else a run holds is made without it
    applies=lambda config: learned_by(config) is not None,
    once=True,
    reads=("gate",),
    whole=_is_whole,
)
