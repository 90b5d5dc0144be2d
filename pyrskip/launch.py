"""Hand a command over to Hydra. The whole config is checked first, of a sweep every job's: what is wrong is one sentence."""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from pyrskip.errors import UserError

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
# of its own making; keys and values are views, and are not written to
QUIET = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",
    ".*treespec, LeafSpec.*",
    ".*custom batch sampler `ChunkSampler`.*",
    ".*predict returned None.*",
    ".*Total length of `.*DataLoader.* across ranks is zero.*",
    ".*FSDP2-wrapped module .* returned a view tensor.*",
)


def conf_directory() -> Path:
    """conf/ inside of an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def launch(name: str, arguments: Sequence[str], task: Callable[[Any], None]) -> None:
    """Check the whole config first, so that what is wrong is one sentence, then hand over to Hydra."""
    need_training()
    arguments = ["trainer.quiet=true" if a == "--quiet" else a for a in arguments]
    # threads that wait without spinning: a busy machine is then slower by its share, not many times over. Before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import hydra

    quiet()
    from omegaconf.errors import OmegaConfBaseException

    typed = sys.argv
    flags = [a for a in arguments if a in ("-m", "--multirun")]  # Hydra wants them first

    def guarded(cfg: Any) -> None:
        sys.argv = typed  # what Lightning starts other ranks with
        try:
            task(cfg)
        except UserError as error:
            fail(error)
        except OmegaConfBaseException as error:
            fail(UserError(_sentence(error)))
        except KeyboardInterrupt:
            interrupted()
        except SystemExit as error:  # Lightning's, of a training that was interrupted
            if isinstance(error.__context__, KeyboardInterrupt):
                interrupted()
            raise

    for argument in arguments:
        if argument.startswith("-") and argument.split("=")[0] not in FLAGS:
            fail(UserError(f"{argument!r} is no flag of this command; allowed: {', '.join(('--help', '--quiet', *FLAGS))}"))
    if not any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        _check(name, [a for a in arguments if not a.startswith("-")], sweep=bool(flags))
    sys.argv = [typed[0], *flags, *(a for a in arguments if a not in flags)]
    if flags:
        os.environ[SWEEP] = json.dumps(_fixed_keys(sys.argv[1 + len(flags) :]))
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=name)(guarded)()


def job_name() -> str:
    """What the sweep varies, as a directory's name: a function of the overrides, never of the clock."""
    from hydra.core.hydra_config import HydraConfig

    fixed = set(json.loads(os.environ.get(SWEEP, "[]")))
    varied = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] not in fixed]
    return ",".join(varied).replace("/", "-") or "0"


def sweeping() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def refuse_rank_sweeps(strategy: str, ranks: int) -> None:
    """Lightning's subprocess launcher replays the command line, and with it the sweep, on every rank."""
    if ranks > 1 and strategy not in ("ddp_fork", "ddp_spawn", "ddp_notebook"):
        raise UserError(
            f"trainer.strategy={strategy} with {ranks} ranks in a sweep (-m) would sweep anew on every rank; "
            "allowed: strategy=ddp_fork or ddp_spawn on one machine, or one job a run on a cluster"
        )


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
                        refuse_rank_sweeps(config.trainer.strategy, config.trainer.devices * config.trainer.nodes)
                elif "???" in str(cfg.get("run", "???")):
                    raise UserError("run= is missing; allowed: a directory that train made, such as run=runs/easy_vqa")
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        fail(UserError(_sentence(error)))


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


def need_training() -> None:
    if find_spec("hydra") is None or find_spec("pytorch_lightning") is None:
        fail(UserError("this command needs the training extra: pip install 'pyrskip[train]'"))


def quiet() -> None:
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)


def fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def interrupted() -> NoReturn:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(130)
