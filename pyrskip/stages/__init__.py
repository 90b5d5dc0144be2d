"""The stages of a run, one file each: data -> cache -> flex -> pruner -> rollouts -> peers -> gate ->
frontier, each in a directory of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.config import Config
from pyrskip.decision import ActionSet
from pyrskip.models.vision import read_weights
from pyrskip.models.vlm.hf import check_layout
from pyrskip.progress import shown
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.stages.cache import CACHE, check_cache_of, encoder_of, pyramid_of
from pyrskip.stages.data import DATA, check_source, check_splits
from pyrskip.stages.flex import FLEX
from pyrskip.stages.frontier import FRONTIER
from pyrskip.stages.gate import GATE
from pyrskip.stages.memory import check_memory
from pyrskip.stages.peers import PEERS
from pyrskip.stages.pruner import PRUNER
from pyrskip.stages.rollouts import ROLLOUTS
from pyrskip.stages.run import Run
from pyrskip.tracking.guard import first_rank
from pyrskip.training.preemption import preemptible
from pyrskip.training.trainer import check_trainer, rank_failures_as_user_errors

STAGES = (DATA, CACHE, FLEX, PRUNER, ROLLOUTS, PEERS, GATE, FRONTIER)


@preemptible()
def run_stages(
    config: Config, nodes: dict[str, Any], stopper: Callable[[Path, TableEnvironment], Callback] | None = None
) -> Path:
    """Run the config's stages in order; returns the run's directory.

    stopper: as of Run. Raises Pruned then.
    """
    run = Run(config, nodes, stopper)
    stages = [stage for stage in STAGES if stage.applies(config)]
    # what cannot work is refused before any work
    pyramid = pyramid_of(config)
    largest = torch.tensor([[pyramid.size, pyramid.size]])
    check_trainer(config.trainer, [config.flex.optimizer.steps, config.rule.optimizer.steps])
    if config.vision.weights not in ("none", "hub"):
        read_weights(config.vision.weights)
    ActionSet.of(pyramid, config.budget, config.actions).tokens(pyramid.capacity(largest), config.budget)
    if config.model.served:
        config.check_served()
    rolling = [s for s in (ROLLOUTS, PEERS) if s in stages and s.name in config.stages]
    if config.model.name == "hf" and not all(map(run.done, rolling)):
        check_layout(config.model.hf, pyramid, (config.pruner, *config.peers.configs()))
    if DATA.name in config.stages and not run.done(DATA):
        check_source(config.data)
    for stage in stages:
        run.done(stage)
        if stage.name in config.stages:
            run.check_before(stage, config.stages)
    check_memory(run)
    if config.data.cache not in (None, "run"):
        check_cache_of(run, encoder_of(run))
    with run.lock(), rank_failures_as_user_errors(config.trainer), shown(not config.trainer.quiet):
        run.keep_config()
        for stage in stages:
            if stage.name not in config.stages:
                continue
            if run.done(stage):
                run.say(f"{stage.name}: done before, in {run.directory(stage)}")
                continue
            if stage is not DATA:  # all that is to come, before the first of it
                left = [s for s in stages if s.name in config.stages and not run.done(s)]
                check_splits(run, {split: None for s in left for split in s.reads})
                check_memory(run)
            run.say(f"{stage.name}: to {run.root / stage.name}")
            if stage.alone and not first_rank():
                if stage is DATA:  # no work of theirs follows the other ones
                    run.wait_for(stage)
                continue
            run.mark(stage, done=False)
            stage.work(run)
            run.mark(stage, done=True)
            if not stage.alone and torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.barrier()
    return run.root
