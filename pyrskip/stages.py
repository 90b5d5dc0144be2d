"""The stages of a run: data -> cache -> flex -> rollouts -> gate -> frontier, each in a directory of its own; and compare,
which follows the rollouts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.artifacts import (
    ROLLED,
    check_cache_of,
    crossed_tables,
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
from pyrskip.config import Config, read_saved, to_plain
from pyrskip.data.cache import fingerprint, write_cache
from pyrskip.data.convert.config import FORMATS
from pyrskip.data.convert.conversion import check_files, convert
from pyrskip.data.datamodule import StepData
from pyrskip.data.gather import gather, read_there
from pyrskip.data.reader import Filled, Joined, Samples, collate
from pyrskip.data.sampler import check_shards
from pyrskip.data.shards import SPLITS, WRITTEN, DataConfig, prepare
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.evaluate import evaluate, write_json
from pyrskip.evaluation.needs import lists_levels, needs_of, print_needs
from pyrskip.evaluation.runs import load_runs
from pyrskip.gates import build_gate, save_gate
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.models.remote import RemoteModel
from pyrskip.models.served import ServedModel
from pyrskip.models.vision import VisionEncoder, read_weights
from pyrskip.rollouts.environments import Environment, ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import RolloutTable, check_origin
from pyrskip.run import Run, first_rank
from pyrskip.sample import Batch, Sample
from pyrskip.sweeps.rungs import Rungs
from pyrskip.tracking.frontier import frontier_media, frontier_metrics
from pyrskip.tracking.loggers import Job, loggers
from pyrskip.tracking.media import send
from pyrskip.tracking.versions import versions
from pyrskip.tracking.watch import Watch
from pyrskip.training import find_rule
from pyrskip.training.flex import FlexModule
from pyrskip.training.health import glance_is_best
from pyrskip.training.preemption import preemptible
from pyrskip.training.trainer import build_trainer, check_trainer, fit, together

# a server's count of prompt tokens may be so far from the cost's before that is said
COUNT_TOLERANCE = 0.2
# images that the statistics of features are taken from
WHITENING = 300
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
        check_cache_of(run, VisionEncoder(config.vision))
    with run.held(), together(config.trainer):
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
    torch.manual_seed(config.flex.seed)  # weights=none are those that flex will draw
    vision = VisionEncoder(config.vision)
    data = {split: samples_of(run, split) for split in SPLITS}
    made = fingerprint(config.vision, vision, pyramid, run.directory("data"))
    images, workers = config.loader.rollout_images, config.loader.workers
    write_cache(trainer, vision, pyramid, data, run.root / "cache", made, images, workers)


def train_flex(run: Run) -> None:
    config, directory = run.config, run.root / "flex"
    torch.manual_seed(config.flex.seed)
    vision = VisionEncoder(config.vision)
    train = inputs_of(run, "train", vision)
    data = _with_closeups(run, train, vision) if config.flex.close_steps else train
    if config.loader.order == "shards":
        ranks = config.trainer.devices * config.trainer.nodes
        check_shards(train.parts, ranks, config.loader.workers, str(run.directory("data")))
    tokenizer = train_tokenizer(_texts(data), config.language.vocabulary)
    torch.manual_seed(config.flex.seed)
    model = NativeModel(config.native, tokenizer)
    module = FlexModule(config.flex, model, ActionSet.by_level(model.pyramid))
    gather = partial(collate, side=config.pyramid.size)
    model.whiten(_first_batches(train, config.loader.rollout_images, gather))
    state = _fit(run, module, Filled(data), gather, config.loader.batch_images, directory, "flex")
    tell_faults(run, "train")
    if first_rank():
        whole = NativeModel(config.native, tokenizer)
        whole.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        whole.save(directory)


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
        roll_out(trainer, module, inputs_of(run, split, model.vision), images, chunk, directory, config.trainer.quiet)
        tell_faults(run, split)
    if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel) and model.box.told:
        off = model.box.taken / model.box.told
        if abs(off - 1) > COUNT_TOLERANCE:
            told = f"the server counted {model.box.told} prompt tokens, model.remote's sizes say {model.box.taken}"
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


def train_gates(run: Run) -> None:
    config = run.config
    tables = tables_of(run, ("gate", "val"))
    unit = tables["gate"].mean_full_flops
    _check_target(config, tables["gate"])
    _warn_of_worthless(run, tables["gate"], unit)
    methods = methods_of(config)
    for method, name in methods.items():
        for seed in range(config.seed, config.seed + config.seeds):
            directory = gate_directory(run.root, method, seed)
            if (directory / "gate.json").exists():
                continue
            environment = _environment(run, tables["gate"], unit)
            torch.manual_seed(seed)
            gate = build_gate(replace(config.gate, name=name), environment.layout)
            module = find_rule(config.rule.name)(config.rule, gate, environment, config.reward, seed)
            val = TableEnvironment(tables["val"], pyramid_of(config), config.budget, unit)
            watched = None if config.gate.looks else val  # a table has nothing to look at
            if config.rule.online:
                side, data = config.pyramid.size, Filled(inputs_of(run, "gate", model_of(run).vision))
                _fit(
                    run, module, data, partial(collate, side=side), config.loader.batch_images, directory, method, seed, watched
                )
            else:
                _fit(run, module, range(len(tables["gate"])), torch.tensor, config.rule.batch, directory, method, seed, watched)
            if config.reward.target is not None:
                val.to(torch.device("cpu"))
                reached = module.calibrate(val, torch.arange(len(tables["val"])))
                run.say(f"{method}/seed-{seed}: costs {reached:.3f} on validation, {config.reward.target} wanted")
            if first_rank():
                save_gate(gate.cpu(), directory)


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
        evaluate(run.config.evaluation, model, tables, gates, list(seeds), data, run.root, crossed, broken, quiet)
        with loggers(run.nodes, run.root / "frontier", _job(run, "frontier")) as built:
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
            raise UserError(f"compare.others={place}: another run of flex.seed={seed}; allowed: one run of each flex seed")
        places[seed] = Path(place)
    return places


def compare_rules(run: Run) -> None:
    if first_rank():
        model, config = model_of(run), run.config
        tables = tables_of(run, ROLLED)
        table, others = tables["test"], other_seeds(config)
        for place in others.values():
            other_tables(tables, str(place), "compare.others")
        places = {config.flex.seed: run.directory("rollouts")} | {seed: place / "rollouts" for seed, place in others.items()}
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
            flops_share=share,
        )
        compare([replace(task, flex_seed=seed, rollouts=place) for seed, place in places.items()], config.seed)


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
    with loggers(run.nodes, directory, _job(run, name)) as built:
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


def _job(run: Run, stage: str) -> Job:
    config = run.config
    tags = (config.data.source, config.rule.name, config.gate.name, config.gate.policy)
    return Job(config.name, stage, tags, to_plain(config) | {"versions": versions()}, config.trainer.quiet)


def _check_target(config: Config, table: RolloutTable) -> None:
    least = float(table.cost.flops[:, : len(table.actions)].amin(-1).mean()) / table.mean_full_flops
    if config.reward.target is not None and config.reward.target < least:
        raise UserError(f"reward.target={config.reward.target}: the glance alone costs {least:.3f}; allowed: from there to 1")


def _warn_of_worthless(run: Run, table: RolloutTable, unit: float) -> None:
    """Tell, with the arithmetic, where the reward makes the glance alone the best decision for every question type."""
    reward = run.config.reward
    if reward.mode != "target":
        lowest = reward.low if reward.price is None else reward.price
        told = glance_is_best(TableEnvironment(table, pyramid_of(run.config), run.config.budget, unit), reward, lowest)
        if told is not None:
            run.say(f"warning: {told}")


def _environment(run: Run, table: RolloutTable, unit: float) -> Environment[Any]:
    if run.config.rule.online:
        model = model_of(run)
        assert isinstance(model, NativeModel), "a config with a served model is refused"
        return ModelEnvironment(model, table.actions, run.config.budget, unit)
    return TableEnvironment(table, pyramid_of(run.config), run.config.budget, unit)


def _with_closeups(run: Run, data: Samples, vision: VisionEncoder) -> Joined:
    close, share = inputs_of(run, "close", vision), run.config.flex.close_share
    if not len(close):
        raise UserError(
            f"flex.close_share={share}: {run.directory('data')} holds no close-ups; allowed: 0, or data.scenes.closeups of at "
            "least 1"
        )
    if run.config.loader.order == "shards":
        raise UserError(f"flex.close_share={share} needs loader.order=samples; allowed: that, or flex.close_share=0")
    return Joined(close, data)


def _first_batches(data: Samples, images: int, gather: Callable[[list[Sample | None]], Batch]) -> Iterator[Batch]:
    """The first images of the data, WHITENING of them at most, each of them without what cannot be read."""
    for low in range(0, min(WHITENING, len(data)), images):
        batch = gather(data.__getitems__(range(low, min(low + images, len(data)))))
        if len(batch):
            yield batch


def _texts(data: Samples) -> list[str]:
    return [text for questions in data.questions() for q in questions or () for text in (q.text, *q.answers)]


def evaluate_again(config: Config, nodes: dict[str, Any]) -> None:
    """Draw the frontier of a run whose gates are trained, whatever its frontier was drawn with."""
    run = Run(config, nodes)
    run.check_before("frontier")
    run.mark("frontier", done=False)
    show_frontier(run)
    run.mark("frontier", done=True)
    run.keep_config()
