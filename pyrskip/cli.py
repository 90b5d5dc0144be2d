"""The command line: `pyrskip <command> key=value ...`; train.py and eval.py are its first two commands."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from pyrskip.errors import UserError
from pyrskip.launch import conf_directory, ended_outside, fail, launch, need_training, quiet

USAGE = """usage: pyrskip <command> [key=value ...]

commands
  train     run the stages data, flex, rollouts, gate, frontier of an experiment, and skip those that are done
  eval      draw the frontier of a finished run again: pyrskip eval run=runs/easy_vqa
  data      run the data stage alone and count what it wrote; or look into it:
            pyrskip data inspect runs/easy_vqa/data [sheet=contact.png]
            or write its shards again: pyrskip data reshard runs/easy_vqa/data <new> [samples_per_shard=500]
            or have a server answer questions that nobody has answered:
            pyrskip data label questions.jsonl images=<folder> out=<file.json> url=http://.../v1 model=<name>
  rollouts  run the stages up to the rollouts, and print what every action scores and costs
  export    write a finished run's gate, and the model that it trained, as a directory that services load:
            pyrskip export run=runs/easy_vqa out=exports/easy_vqa [seed=0] [native=true]
  bench     time a finished run's decisions, phase by phase, beside their FLOPs:
            pyrskip bench run=runs/easy_vqa [device=cuda] [precision=bf16-mixed] [seconds=60] [price=<number>]
            [seed=0] [out=<file>]
  predict   answer questions: pyrskip predict model=<export> input=questions.jsonl out=answers.jsonl
  serve     an HTTP service of an export: pyrskip serve model=exports/easy_vqa [port=8000]
  gateway   a proxy that decides what of each picture is sent to another server:
            pyrskip gateway bundle=exports/my_gate upstream=http://localhost:8001 [port=8000]
            or of a finished run, which is exported first: pyrskip gateway run=runs/my_gate upstream=...
            predict, serve and gateway list their keys with --help; none needs the training stack
  report    write one HTML file of a finished run or a sweep: pyrskip report runs/easy_vqa [out=report.html]
  show      every method of a finished run: pyrskip show runs/easy_vqa
            [method=gate,fixed:*] [type=<question type>] [sort=accuracy, or sort=-accuracy: the other way]
  results   the gate beside what it is held against, a table a run, and a page of them:
            pyrskip results runs/easy_vqa [out=docs/results]
  plot      draw frontiers for a paper: pyrskip plot frontier runs/a runs/b [out=frontier.pdf] [method=gate]
            or a question at every price: pyrskip plot dial runs/a [image=0] [question=0] [out=dial.gif]
  equal     accuracy at equal cost: pyrskip equal runs/a runs/b [method=gate,hull] [type=<name>] [out=<file>]
  above     test whether anything is above the full pyramid: pyrskip above runs/a runs/b [out=above.json]
  compare   rules and policies of a sweep over them: pyrskip compare runs/compare_rules [low=0.2] [high=0.45]
  harness   samples that lmms-eval wrote without a gate and behind the gateway, as a frontier:
            pyrskip harness full.jsonl gated.jsonl metric=<name> [bundle=exports/my_gate] [out=<file>]
  sweep     a sweep's jobs: pyrskip sweep status runs/sweep; one job again: pyrskip sweep rerun <job>
  keys      every key of a config, its default, what is allowed and what it means:
            pyrskip keys [flex] [rule.gumbel]
  doctor    what is installed, what is missing and for what, which device there is, and a self-test
  vlm       what a third-party model makes of pictures, and a pyramid for it:
            pyrskip vlm inspect <folder> [size=1024]
  dashboard build a W&B workspace and report: pyrskip dashboard [entity=<name>] [project=<name>] [--dry-run]

examples
  pyrskip train experiment=easy_vqa
  pyrskip train experiment=easy_vqa rule=gumbel from=runs/easy_vqa name=easy_vqa_gumbel
  pyrskip train -m experiment=scenes from=runs/scenes gate=joint,sequential reward.price=0.02,0.1 seed=0,1

keys
  experiment=<name>      {experiments}
  model=<name>           {models}
  gate=<name>            {gates}
  rule=<name>            {rules}
  trainer=<name>         {trainers}
  logger=<name>          {loggers}
  reward.price=<number>  one price for a gate; without it one gate serves every price
  name=<run>  seed=<n>  seeds=<gates trained>  stages=[data,...]  from=<run to borrow stages from>
  any other key of the config: pyrskip keys; those of an experiment: pyrskip train experiment=<name> --cfg job
  several loggers: logger=[wandb,tensorboard]    --quiet: no progress and no tables
"""


def main(arguments: Sequence[str] | None = None) -> None:
    with ended_outside():
        try:
            _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()


def _run(arguments: Sequence[str]) -> None:
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": train,
        "eval": evaluate,
        "data": data,
        "rollouts": rollouts,
        "export": export,
        "bench": bench,
        "predict": predict,
        "serve": serve,
        "gateway": gateway,
        "sweep": sweep,
        "vlm": vlm,
        "doctor": doctor,
        "keys": keys,
    }
    commands |= {
        name: _guarded(name)
        for name in ("report", "show", "results", "plot", "equal", "above", "compare", "harness", "dashboard")
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    command = commands.get(arguments[0])
    if command is None:
        fail(UserError(f"{arguments[0]!r} is no command of pyrskip; allowed: {', '.join(commands)}"))
    command(arguments[1:])


def train(arguments: Sequence[str]) -> None:
    """Run an experiment's stages."""
    _staged("train", arguments, _train)


def evaluate(arguments: Sequence[str]) -> None:
    """Draw a finished run's frontier again, with other evaluation keys if given."""
    _staged("eval", arguments, _evaluate)


def data(arguments: Sequence[str]) -> None:
    """Run the data stage, then print what there is; or look into a data directory, or write its shards
    again."""
    others = {"inspect": _inspect, "reshard": _reshard, "label": _label}
    if arguments and arguments[0] in others:
        try:
            others[arguments[0]](arguments[1:])
        except UserError as error:
            fail(error)
    else:
        _staged("train", [*arguments, "stages=[data]"], _data)


def rollouts(arguments: Sequence[str]) -> None:
    """Run the stages up to the rollouts, then print what every action scored and cost."""
    _staged("train", [*arguments, "stages=[data,cache,flex,rollouts]"], _rollouts)


def sweep(arguments: Sequence[str]) -> None:
    """Look at a sweep, or run one of its jobs again."""
    if arguments[:1] != ["rerun"] or _helped(arguments, _usage):
        _guarded("sweep")(arguments)
        return
    need_training()
    from pyrskip.sweeps.jobs import read_job

    try:
        if len(arguments) < 2 or not all(a.startswith("hydra") for a in arguments[2:]):
            raise UserError(
                "pyrskip sweep rerun takes one job's directory; allowed beside it: hydra/launcher=<name>"
            )
        job = read_job(Path(arguments[1]))
    except UserError as error:
        fail(error)
    fixed = [*job.fixed, *arguments[2:]]
    launch("train", ["-m", *fixed, *job.varied], _train, [o.split("=")[0] for o in fixed])


def _staged(name: str, arguments: Sequence[str], task: Callable[[Any], None]) -> None:
    """Run a command whose keys are Hydra's. name: of the config in conf/."""
    if not _helped(arguments, _usage):
        launch(name, arguments, task)


def _helped(arguments: Sequence[str], usage: Callable[[], str]) -> bool:
    """Whether help was all that was wanted; then it is printed."""
    wanted = any(a in ("-h", "--help") for a in arguments)
    if wanted:
        print(usage())
    return wanted


def _guarded(name: str) -> Callable[[Sequence[str]], None]:
    """A command of pyrskip.show, whose bad input is one sentence."""

    def run(arguments: Sequence[str]) -> None:
        if _helped(arguments, _usage):
            return
        need_training()
        from pyrskip import show

        try:
            getattr(show, name)(arguments)
        except UserError as error:
            fail(error)

    return run


def export(arguments: Sequence[str]) -> None:
    """Write a finished run's gate as an export, with the model that it trained."""
    _plain(arguments, _usage, _export)


def bench(arguments: Sequence[str]) -> None:
    """Time a finished run's decisions."""
    need_training()
    _plain(arguments, _usage, _bench)


def predict(arguments: Sequence[str]) -> None:
    """Answer questions with an export, as JSON lines."""
    from pyrskip.inference.predict import USAGE, run

    _plain(arguments, lambda: USAGE, run)


def serve(arguments: Sequence[str]) -> None:
    """Serve an export over HTTP."""
    try:
        from pyrskip.serving.serve import USAGE, run
    except ImportError as error:
        _needs_serve(error)
    _plain(arguments, lambda: USAGE, run)


def gateway(arguments: Sequence[str]) -> None:
    """Decide for requests on their way to another server."""
    try:
        from pyrskip.serving.gateway import USAGE, run
    except ImportError as error:
        _needs_serve(error)
    _plain(arguments, lambda: USAGE, lambda given: run(_bundled(given)))


def _bundled(given: dict[str, str]) -> dict[str, str]:
    """Keys with run=, as keys with the bundle that its gate is exported to, unless it is there."""
    if "run" not in given:
        return given
    if "bundle" in given:
        raise UserError("run= and bundle= both name a gate; allowed: one of both")
    run = Path(given["run"])
    bundle, summary = run / "export", run / "summary.json"
    metrics = bundle / "metrics.json"
    there = metrics.exists() and summary.exists()
    if there and json.loads(metrics.read_text())["summary"] != json.loads(summary.read_text()):
        shutil.rmtree(bundle)  # the frontier was drawn again
    if not metrics.exists():
        _export({"run": str(run), "out": str(bundle)})
    return {name: value for name, value in given.items() if name != "run"} | {"bundle": str(bundle)}


def _needs_serve(error: ImportError) -> NoReturn:
    fail(UserError(f"this command needs the extra: pip install 'pyrskip[serve]' ({error})"))


def vlm(arguments: Sequence[str]) -> None:
    """Look into a model of the transformers library."""
    if _helped(arguments, _usage):
        return
    try:
        places = [a for a in arguments[1:] if "=" not in a]
        given = dict(a.split("=", 1) for a in arguments[1:] if "=" in a)
        size = given.pop("size", "1024")
        if arguments[:1] != ["inspect"] or len(places) != 1 or given or not size.isdecimal():
            raise UserError(
                "pyrskip vlm takes inspect and one folder or hub id; allowed beside it: size=<pixels>"
            )
        from pyrskip.models.vlm.inspect import inspect

        quiet()
        print(inspect(places[0], int(size)))
    except UserError as error:
        fail(error)


def keys(arguments: Sequence[str]) -> None:
    """Say what can be configured."""
    if _helped(arguments, _usage):
        return
    need_training()
    from pyrskip.reference import print_keys

    try:
        print_keys(arguments)
    except UserError as error:
        fail(error)


def doctor(arguments: Sequence[str]) -> None:
    """Say what is installed and whether it works."""
    if _helped(arguments, _usage):
        return
    from pyrskip.doctor import doctor as run

    try:
        run(arguments)
    except UserError as error:
        fail(error)


def _plain(
    arguments: Sequence[str], usage: Callable[[], str], task: Callable[[dict[str, str]], None]
) -> None:
    """Run a command whose keys are its own, without Hydra."""
    if _helped(arguments, usage):
        return
    try:
        wrong = [a for a in arguments if "=" not in a]
        if wrong:
            raise UserError(f"{wrong[0]!r} is no key=value; --help lists the keys")
        task(dict(a.split("=", 1) for a in arguments))
    except UserError as error:
        fail(error)


def _export(given: dict[str, str]) -> None:
    from pyrskip.inference.keys import Keys

    keys = Keys(given, ("run", "out", "seed", "native"))
    run, out = Path(keys.text("run")), Path(keys.text("out"))
    seed, native = keys.whole("seed", 0), keys.flag("native", False)
    if (
        find_spec("omegaconf") is None
        or find_spec("pytorch_lightning") is None
        or find_spec("onnxscript") is None
    ):
        raise UserError("this command needs the extras: pip install 'pyrskip[train,export]'")
    from omegaconf import OmegaConf

    from pyrskip.config import read
    from pyrskip.export.export import export_run

    quiet()
    config, _ = read(OmegaConf.create(_saved(run)))
    print(f"exported to {export_run(config, out, seed=seed, native=native, say=_tell)}")


def _bench(given: dict[str, str]) -> None:
    from omegaconf import OmegaConf

    from pyrskip.config import read
    from pyrskip.inference.keys import Keys
    from pyrskip.report.bench import print_bench
    from pyrskip.stages.bench import PRECISIONS, bench_run

    keys = Keys(given, ("run", "device", "precision", "seconds", "price", "seed", "out"))
    run, seconds = Path(keys.text("run")), keys.number("seconds", 60.0)
    if seconds <= 0:
        raise UserError(f"seconds={seconds:g}: allowed: above 0")
    quiet()
    config, _ = read(OmegaConf.create(_saved(run)))
    device, precision = keys.text("device", ""), keys.text("precision", PRECISIONS[0])
    title, rows = bench_run(config, device, precision, seconds, keys.number("price"), keys.whole("seed", 0))
    print_bench(rows, title)
    if "out" in given:
        from dataclasses import asdict

        from pyrskip.files import write_json

        write_json(Path(given["out"]), {"device": title, "rows": [asdict(row) for row in rows]})


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _inspect(arguments: Sequence[str]) -> None:
    from pyrskip.data.inspect import contact_sheet, inspect

    places = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    if len(places) != 1 or given.keys() - {"sheet", "split"}:
        raise UserError(
            "pyrskip data inspect takes one directory; allowed beside it: sheet=<file.png>, split=<name>"
        )
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
        raise UserError(
            "pyrskip data reshard takes two directories; allowed beside them: samples_per_shard=<number>"
        )
    index, faults = reshard(places[0], Path(places[1]), int(number))
    for line in (*counted(index.splits), *(f"broken, left out: {fault}" for fault in faults)):
        print(line)


def _label(arguments: Sequence[str]) -> None:
    from pyrskip.data.label import label
    from pyrskip.models.vlm.remote_config import RemoteConfig

    places = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    known: dict[str, Any] = {n: v for n in ("url", "model", "key", "instruction") if (v := given.pop(n, ""))}
    known |= {n: int(v) for n in ("max_answer", "parallel") if (v := given.pop(n, "")).isdecimal()}
    if len(places) != 1 or given.keys() != {"images", "out"} or not {"url", "model"} <= known.keys():
        raise UserError(
            "pyrskip data label takes one file of JSON lines, images=<folder>, out=<file.json>, "
            "url=http://<host>:<port>/v1 and model=<name>; allowed beside them: key, instruction, "
            "max_answer=<number>, parallel=<number>"
        )
    config = RemoteConfig(**known)
    answered, faults = label(Path(places[0]), Path(given["images"]), Path(given["out"]), config)
    print(f"{given['out']}: {answered} questions, answered by {config.model}")
    for fault in faults:
        print(f"left out: {fault}")


def _train(cfg: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from pyrskip.config import read
    from pyrskip.stages import run_stages
    from pyrskip.sweeps.pruning import MedianPruning

    config, nodes = read(cfg)
    hydra = HydraConfig.get()
    root = run_stages(config, nodes, MedianPruning if hydra.sweeper.get("prune", False) else None)
    if "frontier" in config.stages and hydra.mode == RunMode.RUN:  # of a sweep's jobs a table is printed
        _conclude(root, config.trainer.quiet)


def _conclude(run: Path, quiet: bool) -> None:
    """Write a finished run's report, and say what the run came to."""
    from pyrskip.evaluation.runs import load_runs
    from pyrskip.report.conclusion import REPORT, conclusion
    from pyrskip.report.page import write_report
    from pyrskip.tracking.guard import first_rank

    if first_rank():
        write_report(run, run / REPORT)
        if not quiet:
            print("\n".join(("", *conclusion(load_runs(run)[0]))))


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
    from pyrskip.report.rollouts import print_rollouts
    from pyrskip.stages import run_stages
    from pyrskip.stages.rollouts import rollouts_of

    config, nodes = read(cfg)
    run_stages(config, nodes)
    tables = rollouts_of(config, nodes)
    if tables:
        print_rollouts(tables)


def _evaluate(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from pyrskip.config import read
    from pyrskip.stages.frontier import evaluate_again

    saved = _saved(Path(str(cfg.run)))
    given = {key: value for key, value in cfg.evaluation.items() if value is not None}
    saved.setdefault("trainer", {})["quiet"] = bool(cfg.trainer.quiet)
    saved["evaluation"] |= OmegaConf.to_container(OmegaConf.create(given))
    config, nodes = read(OmegaConf.create(saved))
    evaluate_again(config, nodes)
    _conclude(config.directory, config.trainer.quiet)


def _saved(run: Path) -> dict[str, Any]:
    """The config of a run, wherever it lies now. Raises UserError where there is none."""
    root = run.resolve()
    try:
        saved = json.loads((root / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"run={run} is no run: it holds no config.json; allowed: a directory that train made"
        ) from error
    if not isinstance(saved, dict) or not isinstance(saved.get("evaluation"), dict):
        raise UserError(
            f"run={run} is no run: its config.json has no evaluation; allowed: a directory that train made"
        )
    return saved | {"root": str(root.parent), "name": root.name}


def _usage() -> str:
    def options(group: str) -> str:
        return ", ".join(sorted(path.stem for path in (conf_directory() / group).glob("[!_]*.yaml")))

    groups = ("experiment", "model", "gate", "rule", "trainer", "logger")
    return USAGE.format(**{f"{group}s": options(group) for group in groups})
