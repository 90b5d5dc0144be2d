"""The command line: `pyrskip train|eval|data|rollouts key=value ...`; train.py and eval.py are its first two."""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from pyrskip.errors import UserError

USAGE = """usage: pyrskip <command> [key=value ...]

commands
  train     run the stages data, flex, rollouts, gate, frontier of an experiment, and skip those that are done
  eval      draw the frontier of a finished run again: pyrskip eval run=runs/easy_vqa
  data      run the data stage alone and count what it wrote; or look into it:
            pyrskip data inspect runs/easy_vqa/data [sheet=contact.png]
            or write its shards again: pyrskip data reshard runs/easy_vqa/data <new directory> [samples_per_shard=500]
  rollouts  run the stages up to the rollouts, and print what every action scores and costs
  export    write the gate and the model of a finished run as a directory that services load:
            pyrskip export run=runs/easy_vqa out=exports/easy_vqa [seed=0] [native=true]
  predict   answer questions with an export: pyrskip predict model=exports/easy_vqa input=questions.jsonl out=answers.jsonl
  serve     an HTTP service of an export: pyrskip serve model=exports/easy_vqa [port=8000]
            predict and serve list their keys with --help; neither needs the training stack
  report    write one HTML file of a finished run or a sweep: pyrskip report runs/easy_vqa [out=report.html]
  plot      draw frontiers for a paper: pyrskip plot frontier runs/a runs/b [out=frontier.pdf] [method=gate]
  dashboard build a W&B workspace and report: pyrskip dashboard [entity=<name>] [project=<name>] [--dry-run]

examples
  pyrskip train experiment=easy_vqa
  pyrskip train experiment=easy_vqa rule=gumbel from=runs/easy_vqa name=easy_vqa_gumbel
  pyrskip train -m experiment=easy_vqa from=runs/easy_vqa gate=joint,predictor ablations=[] seed=0,3

keys
  experiment=<name>      {experiments}
  model=<name>           {models}
  gate=<name>            {gates}
  rule=<name>            {rules}
  reward=<name>          {rewards}
  trainer=<name>         {trainers}
  logger=<name>          {loggers}
  name=<run>  seed=<n>  seeds=<gates trained>  stages=[data,...]  from=<run to borrow stages from>
  any other key of the config: pyrskip train experiment=<name> --cfg job  prints them all
  several loggers: logger=[wandb,tensorboard]    --quiet: no progress and no tables
"""


# the keys that a sweep's command line fixes, for its jobs: they may run in other processes, on other machines
SWEEP = "PYRSKIP_SWEEP"
# Hydra's flags that are passed on; --cfg=job is --cfg job
FLAGS = (
    *("-m", "--multirun", "--cfg", "--resolve", "--info", "--hydra-help", "--config-dir", "--config-path", "--version"),
    *("-p", "--package"),
)
# jobs of a sweep that are checked before the first runs; of more, as many as show each value once
CHECKED = 256
# advice of Lightning's that does not apply: loaders are told how many workers, checkpoints are resumed in their directory,
# a frozen encoder is in eval mode on purpose, rollouts are written by chunk, of which a rank may have none left; LeafSpec is
# of its own making
QUIET = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",
    ".*treespec, LeafSpec.*",
    ".*custom batch sampler `ChunkSampler`.*",
    ".*predict returned None.*",
    ".*Total length of `.*DataLoader.* across ranks is zero.*",
)


def conf_directory() -> Path:
    """conf/ inside of an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": train,
        "eval": evaluate,
        "data": data,
        "rollouts": rollouts,
        "export": export,
        "predict": predict,
        "serve": serve,
    }
    commands |= {name: _guarded(name) for name in ("report", "plot", "dashboard")}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    command = commands.get(arguments[0])
    if command is None:
        _fail(UserError(f"{arguments[0]!r} is no command of pyrskip; allowed: {', '.join(commands)}"))
    command(arguments[1:])


def train(arguments: Sequence[str]) -> None:
    """Run an experiment's stages."""
    _hydra("train", arguments, _train)


def evaluate(arguments: Sequence[str]) -> None:
    """Draw a finished run's frontier again, with other evaluation keys if given."""
    _hydra("eval", arguments, _evaluate)


def data(arguments: Sequence[str]) -> None:
    """Run the data stage, then print what there is; or look into a data directory, or write its shards again."""
    others = {"inspect": _inspect, "reshard": _reshard}
    if arguments and arguments[0] in others:
        try:
            others[arguments[0]](arguments[1:])
        except UserError as error:
            _fail(error)
    else:
        _hydra("train", [*arguments, "stages=[data]"], _data)


def rollouts(arguments: Sequence[str]) -> None:
    """Run the stages up to the rollouts, then print what every action scored and cost."""
    _hydra("train", [*arguments, "stages=[data,flex,rollouts]"], _rollouts)


def _guarded(name: str) -> Callable[[Sequence[str]], None]:
    """A command of pyrskip.show, whose bad input is one sentence."""

    def run(arguments: Sequence[str]) -> None:
        if any(a in ("-h", "--help") for a in arguments):
            print(_usage())
            return
        _need_training()
        from pyrskip import show

        try:
            getattr(show, name)(arguments)
        except UserError as error:
            _fail(error)

    return run


def export(arguments: Sequence[str]) -> None:
    """Write a finished run's gate and model as an export."""
    _plain(arguments, _usage(), _export)


def predict(arguments: Sequence[str]) -> None:
    """Answer questions with an export, as JSON lines."""
    from pyrskip.inference.predict import USAGE, run

    _plain(arguments, USAGE, run)


def serve(arguments: Sequence[str]) -> None:
    """Serve an export over HTTP."""
    try:
        from pyrskip.inference.serve import USAGE, run
    except ImportError as error:
        _fail(UserError(f"this command needs the extra: pip install 'pyrskip[serve]' ({error})"))
    _plain(arguments, USAGE, run)


def _plain(arguments: Sequence[str], usage: str, task: Callable[[dict[str, str]], None]) -> None:
    """Run a command whose keys are its own, without Hydra."""
    if any(a in ("-h", "--help") for a in arguments):
        print(usage)
        return
    try:
        wrong = [a for a in arguments if "=" not in a]
        if wrong:
            raise UserError(f"{wrong[0]!r} is no key=value; --help lists the keys")
        task(dict(a.split("=", 1) for a in arguments))
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        _interrupted()


def _export(given: dict[str, str]) -> None:
    from pyrskip.inference.keys import Keys

    keys = Keys(given, ("run", "out", "seed", "native"))
    run, out = Path(keys.text("run")), Path(keys.text("out"))
    seed, native = keys.whole("seed", 0), keys.flag("native", False)
    if find_spec("omegaconf") is None or find_spec("pytorch_lightning") is None or find_spec("onnxscript") is None:
        raise UserError("this command needs the extras: pip install 'pyrskip[train,export]'")
    from omegaconf import OmegaConf

    from pyrskip.config import read
    from pyrskip.export.export import export_run

    _quiet()
    config, _ = read(OmegaConf.create(_saved(run)))
    print(f"exported to {export_run(config, out, seed=seed, native=native, say=_tell)}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _inspect(arguments: Sequence[str]) -> None:
    from pyrskip.data.inspect import contact_sheet, inspect

    places = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if len(places) != 1 or given.keys() - {"sheet", "split"}:
        raise UserError("pyrskip data inspect takes one directory; allowed beside it: sheet=<file.png>, split=<name>")
    directory = Path(places[0])
    print(inspect(directory))
    if "sheet" in given:
        contact_sheet(directory, Path(given["sheet"]), split=given.get("split", "train"))
        print(f"contact sheet: {given['sheet']}")


def _reshard(arguments: Sequence[str]) -> None:
    from pyrskip.data.reshard import reshard
    from pyrskip.data.shards import counted

    places = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    number = given.pop("samples_per_shard", "500")
    if len(places) != 2 or given or not number.isdecimal():
        raise UserError("pyrskip data reshard takes two directories; allowed beside them: samples_per_shard=<number>")
    index, faults = reshard(places[0], Path(places[1]), int(number))
    for line in (*counted(index.splits), *(f"broken, left out: {fault}" for fault in faults)):
        print(line)


def _train(cfg: Any) -> None:
    from pyrskip.config import read
    from pyrskip.stages import run_stages

    config, nodes = read(cfg)
    if _sweeping():
        _refuse_rank_sweeps(config.trainer.strategy, config.trainer.devices * config.trainer.nodes)
        config = replace(config, name=f"{config.name}/{_job_name()}")
    run_stages(config, nodes)


def _data(cfg: Any) -> None:
    from pyrskip.config import read
    from pyrskip.data.shards import read_index
    from pyrskip.stages import run_stages

    config, nodes = read(cfg)
    directory = run_stages(config, nodes) / "data"
    for split, shards in read_index(directory).splits.items():
        images, questions = sum(s.samples for s in shards), sum(s.questions for s in shards)
        print(f"{split:6} {images:7} images {questions:8} questions  {len(shards)} shards")


def _rollouts(cfg: Any) -> None:
    from pyrskip.config import read
    from pyrskip.evaluation.report import print_rollouts
    from pyrskip.stages import rollouts_of, run_stages

    config, nodes = read(cfg)
    run_stages(config, nodes)
    tables = rollouts_of(config, nodes)
    if tables:
        print_rollouts(tables)


def _evaluate(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from pyrskip.config import read
    from pyrskip.stages import evaluate_again

    saved = _saved(Path(str(cfg.run)))
    given = {key: value for key, value in cfg.evaluation.items() if value is not None}
    saved.setdefault("trainer", {})["quiet"] = bool(cfg.trainer.quiet)
    saved["evaluation"] |= OmegaConf.to_container(OmegaConf.create(given))
    config, nodes = read(OmegaConf.create(saved))
    evaluate_again(config, nodes)


def _saved(run: Path) -> dict[str, Any]:
    """The config of a run, wherever it lies now. Raises UserError where there is none."""
    root = run.resolve()
    try:
        saved = json.loads((root / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"run={run} is no run: it holds no config.json; allowed: a directory that train made") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("evaluation"), dict):
        raise UserError(f"run={run} is no run: its config.json has no evaluation; allowed: a directory that train made")
    return saved | {"root": str(root.parent), "name": root.name}


def _hydra(name: str, arguments: Sequence[str], task: Callable[[Any], None]) -> None:
    """Check the whole config first, so that what is wrong is one sentence, then hand over to Hydra."""
    _need_training()
    arguments = ["trainer.quiet=true" if a == "--quiet" else a for a in arguments]
    if any(a in ("-h", "--help") for a in arguments):
        print(_usage())
        return
    # threads that wait without spinning: a busy machine is then slower by its share, not many times over. Before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import hydra

    _quiet()
    from omegaconf.errors import OmegaConfBaseException

    typed = sys.argv
    flags = [a for a in arguments if a in ("-m", "--multirun")]  # Hydra wants them first

    def guarded(cfg: Any) -> None:
        sys.argv = typed  # what Lightning starts other ranks with
        try:
            task(cfg)
        except UserError as error:
            _fail(error)
        except OmegaConfBaseException as error:
            _fail(UserError(_sentence(error)))
        except KeyboardInterrupt:
            _interrupted()
        except SystemExit as error:  # Lightning's, of a training that was interrupted
            if isinstance(error.__context__, KeyboardInterrupt):
                _interrupted()
            raise

    for argument in arguments:
        if argument.startswith("-") and argument.split("=")[0] not in FLAGS:
            _fail(UserError(f"{argument!r} is no flag of this command; allowed: {', '.join(('--help', '--quiet', *FLAGS))}"))
    if not any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        _check(name, [a for a in arguments if not a.startswith("-")], sweep=bool(flags))
    sys.argv = [typed[0], *flags, *(a for a in arguments if a not in flags)]
    if flags:
        os.environ[SWEEP] = json.dumps(_fixed_keys(sys.argv[1 + len(flags) :]))
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=name)(guarded)()


def _fixed_keys(overrides: Sequence[str]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [str(o.get_key_element()) for o in parsed if not o.is_sweep_override()]


def _check(name: str, overrides: Sequence[str], sweep: bool) -> None:
    """Compose and read the config; of a sweep every job's."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pyrskip.config import read

    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
            for job in _jobs(overrides, sweep):
                cfg = hydra.compose(config_name=name, overrides=job)
                if name == "train":
                    config, _ = read(cfg)
                    if sweep:
                        _refuse_rank_sweeps(config.trainer.strategy, config.trainer.devices * config.trainer.nodes)
                elif "???" in str(cfg.get("run", "???")):
                    raise UserError("run= is missing; allowed: a directory that train made, such as run=runs/easy_vqa")
    except UserError as error:
        _fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        _fail(UserError(_sentence(error)))


def _jobs(overrides: Sequence[str], sweep: bool) -> list[list[str]]:
    """The overrides of the one job, or of every job of a sweep; Hydra's own are left out."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: list[list[str]] = []
    for override in OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides)):
        if override.is_hydra_override():
            continue
        if sweep and override.is_sweep_override():
            key = (override.input_line or "").split("=")[0]
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            if not choices[-1]:
                raise UserError(f"{override.input_line} sweeps over no value; allowed: one or more")
        else:
            choices.append([override.input_line or ""])
    if math.prod(map(len, choices)) <= CHECKED:
        return [list(job) for job in product(*choices)]
    return [[of[i % len(of)] for of in choices] for i in range(max(len(of) for of in choices))]


def _sentence(error: Exception) -> str:
    """Hydra's message on one line, what is allowed included."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Config search path", "provider=", "See https", "full_key", "object_type")
    kept = [line for line in lines if not line.startswith(noise)]
    options = [i for i, line in enumerate(kept) if line.startswith("Available options")]
    if options:
        head, tail = kept[: options[0]], kept[options[0] + 1 :]
        return f"{' '.join(head)}; allowed: {', '.join(tail)}"
    return " ".join(kept)


def _sweeping() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _job_name() -> str:
    """What the sweep varies, as a directory's name: a function of the overrides, never of the clock."""
    from hydra.core.hydra_config import HydraConfig

    fixed = set(json.loads(os.environ.get(SWEEP, "[]")))
    varied = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] not in fixed]
    return ",".join(varied).replace("/", "-") or "0"


def _refuse_rank_sweeps(strategy: str, ranks: int) -> None:
    """Lightning's subprocess launcher replays the command line, and with it the sweep, on every rank."""
    if ranks > 1 and strategy not in ("ddp_fork", "ddp_spawn", "ddp_notebook"):
        raise UserError(
            f"trainer.strategy={strategy} with {ranks} ranks in a sweep (-m) would sweep anew on every rank; "
            "allowed: strategy=ddp_fork or ddp_spawn on one machine, or one job a run on a cluster"
        )


def _need_training() -> None:
    if find_spec("hydra") is None or find_spec("pytorch_lightning") is None:
        _fail(UserError("this command needs the training extra: pip install 'pyrskip[train]'"))


def _quiet() -> None:
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)


def _usage() -> str:
    def options(group: str) -> str:
        return ", ".join(sorted(path.stem for path in (conf_directory() / group).glob("*.yaml")))

    groups = ("experiment", "model", "gate", "rule", "reward", "trainer", "logger")
    return USAGE.format(**{f"{group}s": options(group) for group in groups})


def _fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _interrupted() -> NoReturn:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(130)
