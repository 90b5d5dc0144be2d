"""The stages of a run: data -> cache -> flex -> rollouts -> gate -> frontier, each in a directory of its own;
and compare, which follows the rollouts."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyrskip.artifacts import (
    ROLLED,
    check_cache_of,
    crossed_tables,
    encoder_of,
    fault_log,
    gate_directory,
    inputs_of,
    methods_of,
    model_of,
    origins_of,
    other_tables,
    pyramid_of,
    samples_of,
    tables_of,
    tell_faults,
)
from pyrskip.compare import Task, compare
from pyrskip.config import Config, read_saved
from pyrskip.data.cache import fingerprint, write_cache
from pyrskip.data.convert.config import FORMATS
from pyrskip.data.convert.conversion import check_files, convert
from pyrskip.data.gather import gather, read_there
from pyrskip.data.shards import SPLITS, WRITTEN, DataConfig, prepare
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.evaluate import evaluate
from pyrskip.evaluation.needs import lists_levels, needs_of, print_needs
from pyrskip.evaluation.runs import load_runs
from pyrskip.files import write_json
from pyrskip.models.native import NativeModel
from pyrskip.models.remote import RemoteModel
from pyrskip.models.served import ServedModel
from pyrskip.models.vision import read_weights
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import RolloutTable, check_origin
from pyrskip.run import Run, first_rank
from pyrskip.tracking.frontier import frontier_media, frontier_metrics
from pyrskip.tracking.loggers import loggers
from pyrskip.tracking.media import send
from pyrskip.training.preemption import preemptible
from pyrskip.training.trainer import build_trainer, check_trainer, together
from pyrskip.trainings import job_of, train_flex, train_gates

# a server's count of prompt tokens may be so far from the cost's before that is said
COUNT_TOLERANCE = 0.2
# stages of the first rank; the others wait for data, and have done their part when the last two begin
ALONE = ("data", "frontier", "compare")


@preemptible()
def run_stages(config: Config, nodes: dict[str, Any], prunes: bool = False) -> Path:
    """Run the config's stages in order; returns the run's directory.

    prunes: as of Run. Raises Pruned then.
    """
    run = Run(config, nodes, prunes)
    # what cannot work is refused before any work
    pyramid = pyramid_of(config)
    largest = torch.tensor([[pyramid.size, pyramid.size]])
    check_trainer(config.trainer, [config.flex.optimizer.steps, config.rule.optimizer.steps])
    if config.vision.weights not in ("none", "hub"):
        read_weights(config.vision.weights)
    ActionSet.of(pyramid, config.budget, config.actions).tokens(pyramid.capacity(largest), config.budget)
    if config.model.served:
        config.check_served()
    if "compare" in config.stages:
        other_seeds(config)
    if "data" in config.stages and not run.done("data"):
        check_source(config.data)
    for stage in config.chain:
        run.done(stage)
        if stage in config.stages:
            run.check_before(stage, config.stages)
    if run.cache is not None and config.data.cache != "run":
        check_cache_of(run, encoder_of(run))
    with run.lock(), together(config.trainer):
        run.keep_config()
        for stage in config.chain:
            if stage not in config.stages:
                continue
            if run.done(stage):
                run.say(f"{stage}: done before, in {run.directory(stage)}")
                continue
            run.say(f"{stage}: to {run.root / stage}")
            if stage in ALONE and not first_rank():
                if stage == "data":
                    run.wait_for(stage)
                continue
            run.mark(stage, done=False)
            RUNNERS[stage](run)
            run.mark(stage, done=True)
            if stage not in ALONE and torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.barrier()
    return run.root


def check_source(config: DataConfig) -> None:
    """Refuse data that is not there. Raises UserError."""
    if config.source in FORMATS:
        check_files(config)
    if config.source == WRITTEN:
        for path in config.shards.paths:
            read_there(path)


def prepare_data(run: Run) -> None:
    if first_rank():
        config, directory = run.config.data, run.root / "data"
        if config.source in FORMATS:
            convert(config, directory)
        elif config.source == WRITTEN:
            gather(config.shards, directory)
        else:
            prepare(config, directory)


def cache_maps(run: Run) -> None:
    config, pyramid = run.config, pyramid_of(run.config)
    # maps serve runs of any precision
    trainer = build_trainer(replace(config.trainer, precision="32-true"), run.root / "cache", title="cache")
    vision = encoder_of(run)
    data = {split: samples_of(run, split) for split in SPLITS}
    made = fingerprint(config.vision, vision, pyramid, run.directory("data"))
    images, workers = config.loader.rollout_images, config.loader.workers
    write_cache(trainer, vision, pyramid, data, run.root / "cache", made, images, workers)


def roll_out_splits(run: Run) -> None:
    config = run.config
    model = model_of(run)
    actions = ActionSet.of(model.pyramid, config.budget, config.actions)
    for split, origin in origins_of(run, ROLLED).items():
        directory = run.root / "rollouts" / split
        if (directory / "table.json").exists():
            check_origin(RolloutTable.load(directory), origin, directory)
            continue
        # scores are those of inference, which knows of no autocast
        trainer = build_trainer(replace(config.trainer, precision="32-true"), directory)
        module = RolloutModule(model, actions, config.budget, split, origin)
        images, chunk = config.loader.rollout_images, config.loader.chunk_images
        roll_out(
            trainer,
            module,
            inputs_of(run, split, model.vision),
            images,
            chunk,
            directory,
            config.trainer.quiet,
        )
        tell_faults(run, split)
    if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel) and model.box.told:
        off = model.box.taken / model.box.told
        if abs(off - 1) > COUNT_TOLERANCE:
            told = (
                f"the server counted {model.box.told} prompt tokens, model.remote's sizes say "
                f"{model.box.taken}"
            )
            run.say(f"{told}: costs are off")
    _tell_needs(run)


def _tell_needs(run: Run) -> None:
    """What each type of test question loses without a level."""
    if not first_rank():
        return
    table = tables_of(run, ("test",))["test"]
    if lists_levels(table.actions):
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question in (q for questions in samples_of(run, "test").questions() for q in questions or ()):
            answers[question.type].update(question.answers)
        needs = needs_of(table, answers)
        write_json(run.root / "rollouts" / "needs.json", [vars(need) for need in needs])
        if not run.config.trainer.quiet:
            print_needs(needs)


def show_frontier(run: Run) -> None:
    if first_rank():
        gates = {
            method: [gate_directory(run.root, method, run.config.seed + i) for i in range(run.config.seeds)]
            for method in methods_of(run.config)
        }
        model = model_of(run)
        tables = tables_of(run, ROLLED)
        seeds = range(run.config.seed, run.config.seed + run.config.seeds)
        crossed, quiet = crossed_tables(run, tables), run.config.trainer.quiet
        broken = {split: log.summary() for split in SPLITS if (log := fault_log(run, split)).read()}
        data = run.directory("data")
        evaluate(
            run.config.evaluation, model, tables, gates, list(seeds), data, run.root, crossed, broken, quiet
        )
        with loggers(run.nodes, run.root / "frontier", job_of(run, "frontier")) as built:
            drawn = load_runs(run.root)[0]
            for guard in built:
                guard.log_metrics(frontier_metrics(drawn.summary), 0)
                guard.save()
            if len(built) > 1:  # media are costly, and CSV takes none
                send(built, frontier_media(drawn), 0)


def other_seeds(config: Config) -> dict[int, Path]:
    """Flex seed -> directory of each of compare.others. Raises UserError where two runs are of one seed."""
    places: dict[int, Path] = {}
    for place in config.compare.others:
        seed = int(read_saved(place, "compare.others")["flex"]["seed"])
        if seed == config.flex.seed or seed in places:
            raise UserError(
                f"compare.others={place}: another run of flex.seed={seed}; allowed: one run of each flex seed"
            )
        places[seed] = Path(place)
    return places


def compare_rules(run: Run) -> None:
    if first_rank():
        model, config = model_of(run), run.config
        tables = tables_of(run, ROLLED)
        table, others = tables["test"], other_seeds(config)
        for place in others.values():
            other_tables(tables, str(place), "compare.others")
        places = {config.flex.seed: run.directory("rollouts")} | {
            seed: place / "rollouts" for seed, place in others.items()
        }
        words = table.query_mask.sum(-1)[table.query_of]
        share = model.convention.per_mac / 2
        task = Task(
            config=config.compare,
            gate=config.gate,
            reward=config.reward,
            pyramid=model.pyramid,
            budget=config.budget,
            rollouts=places[config.flex.seed],
            flex_seed=config.flex.seed,
            out=run.root / "compare",
            query_flops=float(model.text.flops(words).mean()) * share,
            glance_flops=float(model.glance_flops(table.size)[table.image_of].mean()) * share,
            confidence_flops=_confidence_flops(model, table) if config.gate.confidence else 0.0,
            flops_share=share,
        )
        compare(
            [replace(task, flex_seed=seed, rollouts=place) for seed, place in places.items()], config.seed
        )


def _confidence_flops(model: NativeModel | ServedModel, table: RolloutTable) -> float:
    """Of asking how sure the model is after the glance, a question of the table."""
    assert isinstance(model, NativeModel)
    texts = [table.texts[i] for i in table.query_of.tolist()]
    return float(model.confidence_flops(texts, table.size[table.image_of]).mean())


RUNNERS: dict[str, Callable[[Run], None]] = {
    "data": prepare_data,
    "cache": cache_maps,
    "flex": train_flex,
    "rollouts": roll_out_splits,
    "gate": train_gates,
    "frontier": show_frontier,
    "compare": compare_rules,
}


def rollouts_of(config: Config, nodes: dict[str, Any]) -> dict[str, RolloutTable]:
    """A finished run's rollouts by split, on the first rank; nothing on others."""
    return tables_of(Run(config, nodes), ROLLED) if first_rank() else {}


def evaluate_again(config: Config, nodes: dict[str, Any]) -> None:
    """Draw the frontier of a run whose gates are trained, whatever its frontier was drawn with."""
    run = Run(config, nodes)
    run.check_before("frontier")
    run.mark("frontier", done=False)
    show_frontier(run)
    run.mark("frontier", done=True)
    run.keep_config()
