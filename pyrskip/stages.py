"""The stages of a run: data -> cache -> flex -> rollouts -> gate -> frontier, each in a directory of its own; and compare,
which follows the rollouts.

A stage's stage.json holds its fingerprint: the config keys that it depends on and the digests of the stages before it.
Same fingerprint: a finished stage is skipped, an unfinished one resumed. Changed: refused, naming the key.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from pyrskip.compare import Task, compare
from pyrskip.config import Config, to_plain
from pyrskip.data.cache import CachedDataset, check_cache, fingerprint, write_cache
from pyrskip.data.convert.config import FORMATS
from pyrskip.data.convert.conversion import check_files, convert
from pyrskip.data.datamodule import StepData
from pyrskip.data.faults import FaultLog
from pyrskip.data.gather import gather, read_there
from pyrskip.data.reader import Filled, ShardDataset, collate
from pyrskip.data.sampler import check_shards
from pyrskip.data.shards import SPLITS, WRITTEN, DataConfig, parse_index, prepare, read_index
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.evaluate import evaluate, write_json
from pyrskip.evaluation.runs import load_runs
from pyrskip.gates import build_gate, save_gate
from pyrskip.models.hf import HfVlm
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.models.remote import RemoteModel
from pyrskip.models.served import ServedModel, build_served, file_digest, identity
from pyrskip.models.vision import VisionEncoder, map_stride, read_weights
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import Environment, ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import RolloutTable, check_origin
from pyrskip.tracking.frontier import frontier_media, frontier_metrics
from pyrskip.tracking.loggers import Job, loggers
from pyrskip.tracking.media import send
from pyrskip.tracking.versions import versions
from pyrskip.tracking.watch import Watch
from pyrskip.training import find_rule
from pyrskip.training.flex import FlexModule
from pyrskip.training.health import glance_is_best
from pyrskip.training.trainer import build_trainer, check_trainer, fit

# what each stage depends on, beside the stages before it; the rest of `trainer` is where and how fast, not what
LEARNING = ("trainer.accumulate", "trainer.gradient_clip", "trainer.precision")
KEYS: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "cache": ("pyramid", "vision"),
    "flex": ("pyramid", "vision", "text", "language", "flex", "loader.batch_images", "loader.order", *LEARNING),
    "rollouts": ("actions", "budget", "cost"),
    "gate": ("gate", "rule", "reward", "seed", "seeds", "ablations", *LEARNING),
    "frontier": ("evaluation",),
    "compare": ("compare", "gate", "reward", "seed"),
}
# of the rollouts of a served model, which no flex stage stands behind
SERVED = ("model", "pyramid", "vision", "text")
# where a served model is and how fast it is asked, not what it answers
PLACES = (*(f"model.remote.{k}" for k in ("url", "key", "parallel", "timeout", "retries")), "model.hf.at_once")
# a server's count of prompt tokens may be so far from the cost's before that is said
COUNT_TOLERANCE = 0.2
ROLLED = ("gate", "val", "test")
# keys of a source that another source ignores, and keys that say how, not what; a key at its first default is not told,
# so that a run of before it was there is still the same run
OF_SOURCES = {"scenes": ("scenes",), "files": FORMATS, "shards": (WRITTEN,)}
UNTOLD = ("data.cache", "data.max_bad_fraction", "data.scenes.workers", "data.files.workers")
SINCE = {"loader.order": "samples"}
WAIT_SECONDS = 7200
# directories of gates: the config's own, and the ablations by the gate that they train
METHODS = {"predictor": "query_only", "glance": "glance_only"}


@dataclass(frozen=True)
class Run:
    """A config with its directories. nodes: what the loggers are instantiated from."""

    config: Config
    nodes: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.config.directory

    @cached_property
    def borrowed(self) -> Path | None:
        if self.config.borrow is None:
            return None
        path = Path(self.config.borrow)
        if not (path / "config.json").is_file():
            raise UserError(f"from={self.config.borrow} is no run: it holds no config.json; allowed: a run's directory")
        return path

    def fingerprint(self, stage: str) -> dict[str, Any]:
        """Flat: the stage's config keys, and the digest of the stage before it."""
        plain = to_plain(self.config)
        flat: dict[str, Any] = {}
        keys = KEYS[stage] + SERVED * (stage == "rollouts" and self.config.model.served)
        for key in keys:
            value = plain
            for part in key.split("."):
                value = value[part]
            flat |= _flatten(value, key)
        ignored = tuple(f"data.{group}." for group, sources in OF_SOURCES.items() if self.config.data.source not in sources)
        flat = {k: v for k, v in flat.items() if not f"{k}.".startswith(ignored) and k not in UNTOLD and SINCE.get(k) != v}
        others = tuple(f"model.{name}." for name in ("hf", "remote") if name != self.config.model.name)
        flat = {k: v for k, v in flat.items() if k not in PLACES and not k.startswith(others)}
        # cached maps are what the encoder gives, so nothing depends on the cache
        before = ["data"] if stage == "cache" else [s for s in _before(self.config, stage) if s != "cache"]
        if before:
            flat[f"the {before[-1]} stage"] = _digest(self.fingerprint(before[-1]))
        return flat

    @property
    def cache(self) -> Path | None:
        """The directory of the cached maps, if they are to be used."""
        if self.config.data.cache == "run":
            return self.directory("cache")
        return None if self.config.data.cache is None else Path(self.config.data.cache)

    def directory(self, stage: str) -> Path:
        """Where a stage is: borrowed if another run has it and this one does not."""
        own = self.root / stage
        if self.borrowed is None or (own / "stage.json").exists():
            return own
        state = _read_state(self.borrowed / stage)
        if state is None or not state["done"]:
            return own
        if stage in ("gate", "frontier", "compare"):
            return own
        self._check(stage, state, self.borrowed / stage)
        return self.borrowed / stage

    def done(self, stage: str) -> bool:
        """Whether the stage is finished. Raises UserError where it was made from another config."""
        directory = self.directory(stage)
        state = _read_state(directory)
        if state is None:
            return False
        self._check(stage, state, directory)
        return bool(state["done"])

    def mark(self, stage: str, done: bool) -> None:
        if _first_rank():
            directory = self.root / stage
            directory.mkdir(parents=True, exist_ok=True)
            state = {"fingerprint": self.fingerprint(stage), "done": done}
            part = directory / "stage.json.part"
            part.write_text(json.dumps(state, indent=1))
            part.replace(directory / "stage.json")

    def _check(self, stage: str, state: dict[str, Any], directory: Path) -> None:
        now = json.loads(json.dumps(self.fingerprint(stage)))
        for key in sorted(now.keys() | state["fingerprint"].keys(), key=lambda k: k.startswith("the ")):
            old, new = state["fingerprint"].get(key, SINCE.get(key)), now.get(key, SINCE.get(key))
            if old != new:
                raise UserError(
                    f"{directory} was made with {key}={old}, this config has {key}={new}; "
                    f"keep {old}, or start another run with name=<other>"
                )


def run_stages(config: Config, nodes: dict[str, Any]) -> Path:
    """Run the config's stages in order; returns the run's directory."""
    run = Run(config, nodes)
    # what cannot work is refused before any work
    pyramid = _pyramid(config)
    largest = torch.tensor([[pyramid.size, pyramid.size]])
    check_trainer(config.trainer, [config.flex.optimizer.steps, config.rule.optimizer.steps])
    if config.vision.weights not in ("none", "hub"):
        read_weights(config.vision.weights)
    ActionSet.of(pyramid, config.budget, config.actions).tokens(pyramid.capacity(largest), config.budget)
    if config.model.served:
        config.check_served()
    if "data" in config.stages and not run.done("data"):
        check_source(config.data)
    for stage in config.chain:
        run.done(stage)
        if stage in config.stages:
            _check_before(run, stage, config.stages)
    if run.cache is not None and config.data.cache != "run":
        _check_cache(run, VisionEncoder(config.vision))
    _keep_config(run)
    for stage in config.chain:
        if stage not in config.stages:
            continue
        if run.done(stage):
            _say(run, f"{stage}: done before, in {run.directory(stage)}")
            continue
        _say(run, f"{stage}: to {run.root / stage}")
        if stage == "data" and not _first_rank():
            _await(run, stage)
            continue
        run.mark(stage, done=False)
        RUNNERS[stage](run)
        run.mark(stage, done=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
    return run.root


def _check_before(run: Run, stage: str, wanted: Sequence[str] = ()) -> None:
    """Every earlier stage must be finished, or among the stages that this run will do."""
    for before in _before(run.config, stage):
        if before not in wanted and not run.done(before):
            raise UserError(
                f"stage {stage} needs {run.root / before}, which is not finished; "
                f"add {before} to stages, or borrow it with from=<run>"
            )


def _before(config: Config, stage: str) -> tuple[str, ...]:
    """The stages that a stage stands on: a comparison trains gates of its own, from rollouts."""
    return config.chain[: config.chain.index("gate" if stage == "compare" else stage)]


def check_source(config: DataConfig) -> None:
    """Refuse data that is not there. Raises UserError."""
    if config.source in FORMATS:
        check_files(config)
    if config.source == WRITTEN:
        for path in config.shards.paths:
            read_there(path)


def prepare_data(run: Run) -> None:
    if _first_rank():
        config, directory = run.config.data, run.root / "data"
        if config.source in FORMATS:
            convert(config, directory)
        elif config.source == WRITTEN:
            gather(config.shards, directory)
        else:
            prepare(config, directory)


def cache_maps(run: Run) -> None:
    config, pyramid = run.config, _pyramid(run.config)
    trainer = build_trainer(config.trainer, run.root / "cache", title="cache")
    torch.manual_seed(config.flex.seed)  # weights=none are those that flex will draw
    vision = VisionEncoder(config.vision)
    data = {split: _split(run, split) for split in SPLITS}
    made = fingerprint(config.vision, vision, pyramid, run.directory("data"))
    images, workers = config.loader.rollout_images, config.loader.workers
    write_cache(trainer, vision, pyramid, data, run.root / "cache", made, images, workers)


def train_flex(run: Run) -> None:
    config, directory = run.config, run.root / "flex"
    torch.manual_seed(config.flex.seed)
    data = _maps(run, "train", VisionEncoder(config.vision))
    if config.loader.order == "shards":
        ranks = config.trainer.devices * config.trainer.nodes
        check_shards(data.parts, ranks, config.loader.workers, str(run.directory("data")))
    tokenizer = train_tokenizer(_texts(data), config.language.vocabulary)
    torch.manual_seed(config.flex.seed)
    model = NativeModel(config.native, tokenizer)
    module = FlexModule(config.flex, model, ActionSet.by_level(model.pyramid))
    gather = partial(collate, side=config.pyramid.size)
    _fit(run, module, Filled(data), gather, config.loader.batch_images, directory, "flex")
    _tell_faults(run, "train")
    if _first_rank():
        model.save(directory)


def roll_out_splits(run: Run) -> None:
    config = run.config
    model = _model(run)
    actions = ActionSet.of(model.pyramid, config.budget, config.actions)
    for split, origin in _origins(run, ROLLED).items():
        directory = run.root / "rollouts" / split
        if (directory / "table.json").exists():
            check_origin(RolloutTable.load(directory), origin, directory)
            continue
        trainer = build_trainer(config.trainer, directory)
        module = RolloutModule(model, actions, config.budget, split, origin)
        images, chunk = config.loader.rollout_images, config.loader.chunk_images
        roll_out(trainer, module, _maps(run, split, model.vision), images, chunk, directory, config.trainer.quiet)
        _tell_faults(run, split)
    if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel) and model.box.told:
        off = model.box.taken / model.box.told
        if abs(off - 1) > COUNT_TOLERANCE:
            _say(
                run,
                f"the server counted {model.box.told} prompt tokens, model.remote's sizes say {model.box.taken}: costs are off",
            )


def train_gates(run: Run) -> None:
    config = run.config
    tables = _tables(run, ("gate", "val"))
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
            val = TableEnvironment(tables["val"], _pyramid(config), config.budget, unit)
            watched = None if config.gate.looks else val  # a table has nothing to look at
            if config.rule.online:
                side, data = config.pyramid.size, Filled(_maps(run, "gate", _model(run).vision))
                _fit(
                    run, module, data, partial(collate, side=side), config.loader.batch_images, directory, method, seed, watched
                )
            else:
                _fit(run, module, range(len(tables["gate"])), torch.tensor, config.rule.batch, directory, method, seed, watched)
            if config.reward.target is not None:
                val.to(torch.device("cpu"))
                reached = module.calibrate(val, torch.arange(len(tables["val"])))
                _say(run, f"{method}/seed-{seed}: costs {reached:.3f} on validation, {config.reward.target} wanted")
            if _first_rank():
                save_gate(gate.cpu(), directory)


def show_frontier(run: Run) -> None:
    if _first_rank():
        gates = {
            method: [gate_directory(run.root, method, run.config.seed + i) for i in range(run.config.seeds)]
            for method in methods_of(run.config)
        }
        model = _model(run)
        tables = _tables(run, ROLLED)
        seeds = range(run.config.seed, run.config.seed + run.config.seeds)
        crossed, quiet = _crossed(run, tables), run.config.trainer.quiet
        broken = {split: log.summary() for split in SPLITS if (log := _fault_log(run, split)).read()}
        data = run.directory("data")
        evaluate(run.config.evaluation, model, tables, gates, list(seeds), data, run.root, crossed, broken, quiet)
        with loggers(run.nodes, run.root / "frontier", _job(run, "frontier")) as built:
            drawn = load_runs(run.root)[0]
            for guard in built:
                guard.log_metrics(frontier_metrics(drawn.summary), 0)
                guard.save()
            if len(built) > 1:  # media are costly, and CSV takes none
                send(built, frontier_media(drawn), 0)


def compare_rules(run: Run) -> None:
    if _first_rank():
        model, config = _model(run), run.config
        table = _tables(run, ROLLED)["test"]
        words = table.query_mask.sum(-1)[table.query_of]
        share = model.convention.per_mac / 2
        task = Task(
            config=config.compare,
            gate=config.gate,
            reward=config.reward,
            pyramid=model.pyramid,
            budget=config.budget,
            rollouts=run.directory("rollouts"),
            out=run.root / "compare",
            query_flops=float(model.text.flops(words).mean()) * share,
            glance_flops=float(model.glance_flops(table.size)[table.image_of].mean()) * share,
            flops_share=share,
        )
        compare(task, config.seed)


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
    return _tables(Run(config, nodes), ROLLED) if _first_rank() else {}


def _tables(run: Run, splits: Sequence[str]) -> dict[str, RolloutTable]:
    """The run's rollouts. Raises UserError where they are not what this run would roll out."""
    directory = run.directory("rollouts")
    tables = {split: RolloutTable.load(directory / split) for split in splits}
    for split, origin in _origins(run, splits).items():
        check_origin(tables[split], origin, directory / split)
    return tables


def _crossed(run: Run, tables: Mapping[str, RolloutTable]) -> dict[str, RolloutTable] | None:
    """The rollouts of evaluation.cross: alike in everything but the model's weights."""
    if run.config.evaluation.cross is None:
        return None
    directory = Path(run.config.evaluation.cross) / "rollouts"
    crossed = {split: RolloutTable.load(directory / split) for split in tables}
    for split, table in crossed.items():
        own = tables[split].origin
        if table.origin.get("model") == own["model"]:
            raise UserError(
                f"evaluation.cross={run.config.evaluation.cross} holds rollouts of this run's own model; allowed: a run with "
                "another flex.seed on the same data"
            )
        check_origin(table, {**own, "model": table.origin.get("model", "none")}, directory / split)
    return crossed


def _origins(run: Run, splits: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each split's rollouts depend on, in words that a refusal can name."""
    config = run.config
    index = read_index(run.directory("data"))
    pyramid = _pyramid(config)
    actions = ActionSet.of(pyramid, config.budget, config.actions)
    if config.model.served:
        model, longest = identity(config.model), config.model.max_answer
        sight = f"{config.vision.backbone} map {config.vision.out_index} {config.vision.weights}, {config.text.name}"
    else:
        model, longest = f"native {file_digest(run.directory('flex') / 'model.safetensors')}", config.language.max_answer
        sight = f"the model's own, {config.text.name}"
    common = {
        "model": model,
        "layout": f"{pyramid.size} px, {pyramid.levels} levels, grid {list(pyramid.grid)}, stride {pyramid.stride}",
        "action set": f"{len(actions)} actions {_digest({'names': actions.names, 'ladder': actions.ladder})}",
        "budget": json.dumps(to_plain(config.budget)),
        "cost": json.dumps(to_plain(config.cost)),
        "metric": "each question's own",
        "decoding": f"greedy, at most {longest} tokens",
        "sight of the gate": sight,
    }
    shards = {split: _digest({"shards": [shard.sha256 for shard in index.splits[split]]}) for split in splits}
    return {split: common | {"split": split, "data": f"{index.source} {shards[split]}"} for split in splits}


def gate_directory(root: Path, method: str, seed: int) -> Path:
    return root / "gate" / method.replace(":", "-") / f"seed-{seed}"


def methods_of(config: Config) -> dict[str, str]:
    """The frontier's name of each gate that is trained -> the gate. An ablation that is the run's own gate is not."""
    ablations = {f"gate:{METHODS[name]}": name for name in config.ablations if name != config.gate.name}
    return {"gate": config.gate.name} | ablations


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
) -> None:
    """val: what a gate is watched on while it trains."""
    config = run.config
    steps = module.optimizer_config.steps
    name = stage if stage == "flex" else f"{stage}/seed-{seed}"
    with loggers(run.nodes, directory, _job(run, name)) as built:
        watches = [Watch(val, built)] if val is not None else []
        trainer = build_trainer(config.trainer, directory, built, name, watches)
        if stage == "flex":
            of = config.loader
            loader = StepData(data, gather, batch, steps, module.seed, of.workers, of.order, of.replan)
        else:
            loader = StepData(data, gather, batch, steps, module.seed)
        fit(trainer, module, loader, directory)


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
    lowest = {"sampled": reward.low, "fixed": reward.price}.get(reward.mode)
    if lowest is not None:
        told = glance_is_best(TableEnvironment(table, _pyramid(run.config), run.config.budget, unit), reward, lowest)
        if told is not None:
            _say(run, f"warning: {told}")


def _environment(run: Run, table: RolloutTable, unit: float) -> Environment[Any]:
    if run.config.rule.online:
        model = _model(run)
        assert isinstance(model, NativeModel), "a config with a served model is refused"
        return ModelEnvironment(model, table.actions, run.config.budget, unit)
    return TableEnvironment(table, _pyramid(run.config), run.config.budget, unit)


def _split(run: Run, split: str) -> ShardDataset:
    data = ShardDataset(run.directory("data"), split, run.config.pyramid.size, _fault_log(run, split))
    if data.faults:
        _tell_faults(run, split)
    return data


def _maps(run: Run, split: str, vision: VisionEncoder) -> ShardDataset | CachedDataset:
    """A split's samples, with their maps where those are cached."""
    data = _split(run, split)
    if run.cache is None:
        return data
    _check_cache(run, vision)
    return CachedDataset(data, run.cache, split, _pyramid(run.config))


def _check_cache(run: Run, vision: VisionEncoder) -> None:
    data = run.directory("data") if run.done("data") else None
    assert run.cache is not None
    check_cache(run.cache, fingerprint(run.config.vision, vision, _pyramid(run.config), data))


def _pyramid(config: Config) -> Pyramid:
    p = config.pyramid
    return Pyramid(p.size, p.levels, map_stride(config.vision), tuple(p.grid))


def _model(run: Run) -> NativeModel | ServedModel:
    c = run.config
    if c.model.served:
        model = build_served(c.model, c.pyramid, c.vision, c.text, c.cost)
        if isinstance(model.box, HfVlm) and c.trainer.accelerator in ("gpu", "cuda"):
            model.box.to("cuda")  # the frontier asks it without a Trainer, and on a CPU it may not even fit
        return model
    # costs may be counted anew without training anew
    return NativeModel.load(run.directory("flex"), c.cost)


def _fault_log(run: Run, split: str) -> FaultLog:
    images = sum(shard.samples for shard in parse_index(run.directory("data")).splits[split])
    return FaultLog(run.root / "faults" / split, images, run.config.data.max_bad_fraction)


def _tell_faults(run: Run, split: str) -> None:
    told = _fault_log(run, split).summary()
    for line in told["first"]:
        _say(run, f"broken, left out: {line}")
    if told["lost"]:
        _say(run, f"{split}: {told['lost']} of {told['images']} images lost; {run.root / 'faults' / split} lists them")


def _texts(data: ShardDataset | CachedDataset) -> list[str]:
    return [text for questions in data.questions() for q in questions or () for text in (q.text, *q.answers)]


def _keep_config(run: Run) -> None:
    if _first_rank():
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            borrow = run.borrowed and str(run.borrowed.resolve())
            (run.root / "config.json").write_text(json.dumps(to_plain(run.config) | {"borrow": borrow}, indent=1))
            write_json(run.root / "versions.json", versions())
        except OSError as error:
            raise UserError(f"root={run.config.root} cannot be written: {error}") from error


def _read_state(directory: Path) -> dict[str, Any] | None:
    path = directory / "stage.json"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(state, dict) or not isinstance(state.get("fingerprint"), dict) or "done" not in state:
            raise ValueError("no fingerprint in it")
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); delete {directory} to run that stage again") from error
    return state


def _say(run: Run, line: str) -> None:
    if _first_rank() and not run.config.trainer.quiet:
        Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)


def _await(run: Run, stage: str) -> None:
    """Wait for the first rank, which alone runs this stage; there is no process group yet."""
    for _ in range(int(WAIT_SECONDS / 0.5)):
        if run.done(stage):
            return
        time.sleep(0.5)
    raise UserError(f"{run.root / stage} was not finished by the first rank within {WAIT_SECONDS} s")


def _first_rank() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flatten(inner, f"{key}.{name}").items()}
    return {key: value}


def _digest(fingerprint: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]


def evaluate_again(config: Config, nodes: dict[str, Any]) -> None:
    """Draw the frontier of a run whose gates are trained, whatever its frontier was drawn with."""
    run = Run(config, nodes)
    _check_before(run, "frontier")
    run.mark("frontier", done=False)
    show_frontier(run)
    run.mark("frontier", done=True)
    _keep_config(run)
