"""What a command line with -m asks for: which jobs, where each is, and whether all of them can be."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from pyrskip.config import read
from pyrskip.errors import UserError
from pyrskip.stages import STAGES
from pyrskip.stages.lending import lend
from pyrskip.stages.run import Run, digest
from pyrskip.sweeps.jobs import Job, name_of
from pyrskip.training.trainer import TrainerConfig

# keys that say where a sweep is
PLACE = ("name", "root")
# jobs that are checked before the first runs; of more, as many as show each value once
CHECKED = 256
# Hydra's launchers and sweepers that are plugins -> the module, and the extra that brings it
PLUGINS = {
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "cluster"),
    "pareto": ("optuna", "cluster"),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "ray_cluster": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


@dataclass(frozen=True)
class Plan:
    """directory: the sweep's. fixed: keys that do not vary. jobs: in order; empty where a sampler chooses
    them."""

    directory: Path
    fixed: frozenset[str]
    jobs: tuple[Job, ...]


def plan_sweep(overrides: Sequence[str], fixed: Sequence[str] | None = None) -> Plan:
    """Compose and check every job of a sweep; of more than CHECKED, as many as show each value once.

    overrides: without flags; fixed: keys that do not vary, where the command line does not tell. Hydra must
    be initialised. Raises UserError, and Hydra's own errors.
    """
    _refuse_plugins(overrides)
    _refuse_ranks()
    OmegaConf.register_new_resolver("gpus_of", _gpus, replace=True)
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    given = Counter(str(o.get_key_element()) for o in parsed)
    for override in parsed:
        if override.is_sweep_override() and override.key_or_group in PLACE:
            raise UserError(
                f"{override.input_line} gives a sweep several places, and its jobs are kept in one; allowed: "
                f"one {override.key_or_group}, below which each job is named by what else varies"
            )
        if override.is_sweep_override() and given[str(override.get_key_element())] > 1:
            raise UserError(
                f"{override.input_line} and another value of {override.get_key_element()}: allowed: one of "
                "them"
            )
    still = [o for o in parsed if not o.is_sweep_override()]
    keys = frozenset(str(o.get_key_element()) for o in still) if fixed is None else frozenset(fixed)
    master = hydra.compose("train", [o.input_line or "" for o in still], return_hydra_config=True)
    sampled = "pareto" in str(master.hydra.runtime.choices["hydra/sweeper"])
    directory = Path(master.hydra.sweep.dir)
    common = [o.input_line or "" for o in still if not o.is_hydra_override() and o.get_key_element() in keys]
    choices = [
        _values(o, sampled) for o in parsed if not o.is_hydra_override() and o.get_key_element() not in keys
    ]
    if sampled and not choices:
        raise UserError(
            "hydra/sweeper=pareto has nothing to choose; allowed: keys with ranges or several values"
        )
    rows = list(product(*choices))
    few = [tuple(of[i % len(of)] for of in choices) for i in range(max(map(len, choices), default=1))]
    _check_jobs(
        common, rows if len(rows) <= CHECKED else few, directory, keys, master.hydra.launcher, sampled
    )
    jobs = [Job(directory / name_of(row), tuple(common), row) for row in rows]
    names = Counter(job.name for job in jobs)
    if len(names) < len(jobs):
        raise UserError(f"the sweep has two jobs {names.most_common(1)[0][0]}; allowed: values that differ")
    return Plan(directory, keys, () if sampled else tuple(jobs))


def _check_jobs(
    common: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    directory: Path,
    fixed: frozenset[str],
    launcher: Mapping[str, Any],
    sampled: bool,
) -> None:
    stages: Counter[tuple[str, str]] = Counter()
    for row in rows:
        overrides = [*common, *row]
        config, nodes = read(in_sweep(hydra.compose("train", overrides), directory, overrides, fixed))
        refuse_replay(config.trainer, launcher)
        if config.directory.resolve() != (directory / name_of(varied_of(overrides, fixed))).resolve():
            raise UserError(
                f"the job {name_of(row)} would run in {config.directory}, and the sweep is in {directory}; "
                "allowed: one name= and one root= for all jobs"
            )
        if sampled and "frontier" not in config.stages:
            raise UserError("hydra/sweeper=pareto compares frontiers; allowed: stages with frontier")
        stages.update(_own_stages(Run(config, nodes)))
    twice = next((stage for (stage, _), count in stages.items() if count > 1), None)
    if twice is not None:
        raise UserError(
            f"{max(stages.values())} jobs of the sweep would each make the same {twice} stage; allowed: "
            f"from=<its run>, or to make it once: python train.py {' '.join(common)}"
        )


def varied_of(overrides: Sequence[str], fixed: frozenset[str]) -> list[str]:
    """Of a job's overrides those that the sweep varies, which name its directory. fixed: keys that do not
    vary."""
    return [override for override in overrides if _key(override) not in fixed]


def in_sweep(cfg: DictConfig, directory: Path, overrides: Sequence[str], fixed: frozenset[str]) -> DictConfig:
    """The config of a sweep's job: in its own directory, with the stages of the run that lies in the sweep's,
    if there is one and no other is named, with the config that these lend, and with one gate where the seed
    varies and their number is not given."""
    varied = varied_of(overrides, fixed)
    with open_dict(cfg):
        cfg.name = f"{cfg.name}/{name_of(varied)}"
        if cfg.get("from") is None and (directory / "config.json").is_file():
            cfg["from"] = str(directory)
        if "seed" in map(_key, varied) and "seeds" not in map(_key, overrides):
            cfg.seeds = 1
    return lend(cfg, overrides)


def refuse_replay(trainer: TrainerConfig, launcher: Mapping[str, Any]) -> None:
    """Lightning's subprocess launcher replays the command line, and with it the sweep, on every rank. SLURM's
    tasks are ranks that exist already."""
    ranks = trainer.devices * trainer.nodes
    if ranks == 1 or trainer.strategy in ("ddp_fork", "ddp_spawn"):
        return
    tasks = (launcher.get("tasks_per_node"), launcher.get("nodes"))
    if str(launcher.get("_target_")).endswith("SlurmLauncher") and tasks == (trainer.devices, trainer.nodes):
        return
    raise UserError(
        f"trainer.strategy={trainer.strategy} with {ranks} ranks in a sweep (-m) would sweep anew on every "
        "rank; allowed: strategy=ddp_fork or ddp_spawn on one machine, or hydra/launcher=slurm with a task a "
        "rank (its default)"
    )


def _key(override: str) -> str:
    return override.split("=")[0]


def _gpus(accelerator: str, devices: int) -> int | None:
    """What SLURM is asked for on a node."""
    return devices if accelerator in ("gpu", "cuda") else None


def _refuse_ranks() -> None:
    for key, by in (("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")):
        if int(os.environ.get(key, "1")) > 1:
            raise UserError(
                f"-m within {by} would sweep once in each of {os.environ[key]} ranks; allowed: one process, "
                "with hydra/launcher=slurm, or trainer.strategy=ddp_fork on one machine"
            )


def _refuse_plugins(overrides: Sequence[str]) -> None:
    for override in overrides:
        group, _, value = override.partition("=")
        if group not in ("hydra/launcher", "hydra/sweeper") or value not in PLUGINS:
            continue
        module, extra = PLUGINS[value]
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:  # of a package that it would be in
            there = False
        if not there:
            raise UserError(f"{override} needs the {extra} extra: pip install 'pyrskip[{extra}]'")


def _values(override: Override, sampled: bool) -> list[str]:
    """The overrides of one key, one a job; of a range that is sampled its ends."""
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    key = override.get_key_element()
    if override.is_interval_sweep():
        if not sampled:
            raise UserError(
                f"{override.input_line} is a range to sample from; allowed: hydra/sweeper=pareto, or values"
            )
        value: Any = override.value()
        return [f"{key}={value.start}", f"{key}={value.end}"]
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override.input_line} sweeps over no value; allowed: one or more")
    return values


def _own_stages(run: Run) -> list[tuple[str, str]]:
    """Stages to be made once that the job would make itself, with their fingerprints."""
    wanted = [s for s in STAGES if s.once and s.applies(run.config) and s.name in run.config.stages]
    return [(s.name, digest(run.fingerprint(s))) for s in wanted if not run.done(s)]
