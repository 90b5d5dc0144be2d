"""Hand a command over to Hydra. The whole config is checked first, of a sweep every job's: what is wrong is
one sentence."""

import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from pyrskip.errors import UserError, unknown_key
from pyrskip.files import run_lock

if TYPE_CHECKING:
    from pyrskip.sweeps.jobs import Job
    from pyrskip.sweeps.plan import Plan

# Hydra's flags that are passed on; --cfg=job is --cfg job
FLAGS = (
    *(
        "-m",
        "--multirun",
        "--cfg",
        "--resolve",
        "--info",
        "--hydra-help",
        "--config-dir",
        "--config-path",
        "--version",
    ),
    *("-p", "--package"),
)
# advice of Lightning's that does not apply: loaders are told how many workers, checkpoints are resumed in
# their directory, a frozen encoder is in eval mode on purpose, rollouts are written by chunk, of which a rank
# may have none left; LeafSpec is of its own making; keys and values are views, and are not written to; a
# sweep is started on a login node
QUIET = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",
    ".*treespec, LeafSpec.*",
    ".*custom batch sampler `ChunkSampler`.*",
    ".*predict returned None.*",
    ".*Total length of `.*DataLoader.* across ranks is zero.*",
    ".*`srun` command is available on your system but is not used.*",
    ".*FSDP2-wrapped module .* returned a view tensor.*",
)
# Lightning's, which say at every start what no user asked
CHATTY = (
    *("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"),
    *("pytorch_lightning.accelerators.cuda", "lightning_fabric.utilities.distributed"),
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)


def conf_directory() -> Path:
    """conf/ inside of an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def launch(
    name: str, arguments: Sequence[str], task: Callable[[Any], None], fixed: Sequence[str] | None = None
) -> None:
    """Check the whole config first, so that what is wrong is one sentence, then hand over to Hydra.

    fixed: of a sweep with -m the keys that name no directory, where they are not those that have one value.
    """
    need_training()
    arguments = ["trainer.quiet=true" if a == "--quiet" else a for a in arguments]
    # threads that wait without spinning: a busy machine is then slower by its share, not many times over.
    # Before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import hydra

    quiet()
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pyrskip.overrides import literal

    _plug_in(arguments)
    typed = sys.argv
    flags = [a for a in arguments if a in ("-m", "--multirun")]  # Hydra wants them first

    def guarded(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        from pyrskip.stages.lending import lend

        sys.argv = typed  # what Lightning starts other ranks with
        try:
            with ended_outside():
                task(lend(cfg, HydraConfig.get().overrides.task))
        except UserError as error:
            fail(error)
        except OmegaConfBaseException as error:
            fail(UserError(_sentence(error)))

    for argument in arguments:
        if argument.startswith("-") and argument.split("=")[0] not in FLAGS:
            fail(
                UserError(
                    f"{argument!r} is no flag of this command; allowed: "
                    f"{', '.join(('--help', '--quiet', *FLAGS))}"
                )
            )
    try:
        arguments = literal(arguments, sweep=bool(flags))
    except UserError as error:
        fail(error)
    plan = None
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what it cannot print, rather than trace it
    else:
        plan = _check(name, [a for a in arguments if not a.startswith("-")], bool(flags), fixed)
    sys.argv = [typed[0], *flags, *(a for a in arguments if a not in flags)]
    main = hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=name)
    if plan is None:
        try:
            main(guarded)()
        except (HydraException, OmegaConfBaseException) as error:
            fail(UserError(_sentence(error)))
    else:
        _sweep(plan, main(_of_job(task, plan.fixed, typed)), quiet="trainer.quiet=true" in arguments)


def _plug_in(arguments: Sequence[str]) -> None:
    """Import the modules that plugins= names, so that config groups know what they register."""
    from pyrskip.registry import load_plugins

    values = [a.partition("=")[2].strip("[]") for a in arguments if a.lstrip("+").startswith("plugins=")]
    try:
        load_plugins([name.strip() for value in values for name in value.split(",") if name.strip()])
        from pyrskip.groups import store_groups

        store_groups(conf_directory())
    except UserError as error:
        fail(error)


def _of_job(task: Callable[[Any], None], fixed: frozenset[str], typed: list[str]) -> Callable[[Any], str]:
    """A task as a job of a sweep, perhaps in another process or on another machine; gives the job's state.

    fixed: keys that do not vary. typed: the command line, as Lightning starts other ranks with it.
    """
    here = Path.cwd()

    def job(cfg: Any) -> str:
        from hydra.core.hydra_config import HydraConfig

        from pyrskip.config import read
        from pyrskip.sweeps.jobs import name_of, read_job, run_job
        from pyrskip.sweeps.plan import in_sweep, refuse_replay, varied_of
        from pyrskip.tracking.guard import first_rank

        sys.argv = typed
        os.chdir(here)  # a Ray cluster's workers start where the cluster was started
        quiet()
        overrides, sweep = HydraConfig.get().overrides.task, Path(HydraConfig.get().sweep.dir)

        def run() -> None:
            own = in_sweep(cfg, sweep, overrides, fixed)
            refuse_replay(read(own)[0].trainer, HydraConfig.get().launcher)
            with ended_outside():
                task(own)

        return run_job(read_job(sweep / name_of(varied_of(overrides, fixed))), run, _line, first_rank())

    return job


def _sweep(plan: "Plan", main: Callable[[], Any], quiet: bool) -> None:
    """Run a sweep's jobs, then show what all came to. Exits with 1 where one is not done."""
    from pyrskip.sweeps import jobs as kept

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what a launcher fails with, rather than print it
    try:
        with run_lock(plan.directory), ended_outside():
            for job in plan.jobs:
                kept.plan(job)
            try:
                main()
            except UserError:
                raise
            except Exception as error:  # a launcher's: a job died, or a queue refused it
                print(f"error: {_line(error)}", file=sys.stderr)
        left = _show(plan, quiet)
    except UserError as error:
        fail(error)
    for job in left:
        print(f"error: {job.directory} is {job.state}{': ' * bool(job.why)}{job.why}", file=sys.stderr)
    if left:
        sys.exit(1)


def _show(plan: "Plan", quiet: bool) -> "list[Job]":
    """Write the sweep's table and figure, and print them; returns the plan's jobs that are not done. Where a
    sampler chose the jobs, all in the directory are the plan's."""
    from rich.console import Console

    from pyrskip.sweeps.jobs import read_jobs
    from pyrskip.sweeps.overview import print_points, print_status, write_overview

    every, own = read_jobs(plan.directory), {job.name for job in plan.jobs}
    jobs = [job for job in every if not own or job.name in own]
    points = write_overview(plan.directory, every)
    if not quiet:
        console = Console(soft_wrap=True)
        print_status(jobs, console)
        print_points(points, console)
    return [job for job in jobs if job.state not in ("done", "pruned")]


def _check(name: str, overrides: Sequence[str], sweep: bool, fixed: Sequence[str] | None) -> "Plan | None":
    """Compose and read the config; of a sweep every job's. Returns the sweep's plan."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pyrskip.config import read
    from pyrskip.stages.lending import lend
    from pyrskip.sweeps.plan import plan_sweep

    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
            if sweep and name == "train":
                return plan_sweep(overrides, fixed)
            cfg = hydra.compose(config_name=name, overrides=list(overrides))
            if name == "train":
                read(lend(cfg, overrides))
            elif "???" in str(cfg.get("run", "???")):
                raise UserError(
                    "run= is missing; allowed: a directory that train made, such as run=runs/easy_vqa"
                )
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        fail(UserError(_sentence(error)))
    return None


def _line(error: Exception) -> str:
    """What a job or its launcher failed with: a sentence, or the last line of what was raised."""
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError | OmegaConfBaseException):
        return _sentence(error)
    return ": ".join((type(error).__name__, *str(error).strip().splitlines()[-1:]))


def _sentence(error: Exception) -> str:
    """Hydra's message on one line, what is allowed included."""
    from omegaconf import DictConfig
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key}: {str(error).splitlines()[0]}; allowed: as a text, ${{ is written \\${{"
    cause = error.__cause__  # of a key that the command line gives a value and the config does not have
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        node = cause.parent_node
        keys = (str(key) for key in node if key != "hydra")
        return str(unknown_key(str(cause.full_key), keys, node.get("name")))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Config search path", "provider=", "See https", "full_key", "object_type")
    kept = [line for line in lines if not line.startswith(noise)]
    options = [i for i, line in enumerate(kept) if line.startswith("Available options")]
    if options:
        head, title, tail = kept[: options[0]], kept[options[0]], kept[options[0] + 1 :]
        from pyrskip.groups import GROUPS

        group = title.split("'")[1]
        page = f" ({GROUPS[group].page} says how to register another)" if group in GROUPS else ""
        return f"{' '.join(head)}; allowed: {', '.join(t for t in tail if not t.startswith('_'))}{page}"
    return " ".join(kept)


def need_training() -> None:
    if find_spec("hydra") is None or find_spec("pytorch_lightning") is None:
        fail(UserError("this command needs the training extra: pip install 'pyrskip[train]'"))


def quiet() -> None:
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def ended_outside() -> Iterator[None]:
    """What is ended from outside ends without a traceback, with a shell's exit codes: 130 after Ctrl-C, 141
    where nobody reads what is printed or logged any more, as behind `| head`."""
    logging.Handler.handleError = _unless_closed  # type: ignore[method-assign,assignment]
    try:
        yield
    except KeyboardInterrupt:
        interrupted()
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]
        if not unread:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:  # Python flushes them once more as it exits
            os.dup2(nowhere, stream.fileno())
        sys.exit(141)
    except SystemExit as error:  # Lightning's, of a training that was interrupted
        if isinstance(error.__context__, KeyboardInterrupt) and error.code != 130:
            interrupted()
        raise


def _unless_closed(handler: logging.Handler, record: logging.LogRecord) -> None:
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        raise  # from where logging caught it
    _HANDLE(handler, record)


_HANDLE = logging.Handler.handleError


def _unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # an error or a hang-up, which are always told
    return bool(poll.poll(0))


def interrupted() -> NoReturn:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(130)
