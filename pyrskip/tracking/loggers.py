"""Loggers are Lightning's own; here they are pointed at a stage's directory. CSV is always on.

However often a training is resumed, it stays one run: a tracker's run id is kept in the training's
trackers.json. A tracker that cannot be reached writes locally if it can (W&B), and is left out if it cannot.
"""

import inspect
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning.loggers as pl_loggers
from pytorch_lightning.loggers import Logger

from pyrskip.errors import UserError
from pyrskip.files import write_json
from pyrskip.tracking.guard import Guard, first_rank, reason, tell
from pyrskip.tracking.rows import Rows

# the only classes that a config may name by import path
LOGGERS = ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")
PREFIX = "pytorch_lightning.loggers."
IDS = "trackers.json"
# seconds that W&B may take to answer, and to upload what is left at the end: what is not uploaded is kept in
# its directory
WANDB_SETTINGS = {"init_timeout": 30.0, "finish_timeout": 120.0, "quiet": True}
LATER = "it is written locally, for `wandb sync` later"
WITHOUT = "training goes on without it, csv/metrics.csv has every line"


@dataclass(frozen=True)
class Job:
    """What a training is, for its trackers. run: the run's name, <sweep>/<job> in a sweep; stage: flex,
    gate/seed-0, ...; quiet: trackers say nothing on the terminal but what goes wrong."""

    run: str
    stage: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    quiet: bool = False

    @property
    def group(self) -> str:
        """The sweep, or the run itself."""
        return self.run.rpartition("/")[0] or self.run

    @property
    def kind(self) -> str:
        """The stage without its seed: W&B's job type."""
        return self.stage.split("/")[0]


def check_loggers(nodes: dict[str, Any]) -> None:
    """Refuse a _target_ outside of the allow-list."""
    for name, node in nodes.items():
        target = str(node.get("_target_")) if isinstance(node, dict) else str(node)
        if target not in {PREFIX + logger for logger in LOGGERS}:
            raise UserError(
                f"logger.{name}._target_={target!r} may not be built; allowed: {PREFIX} and one of "
                f"{', '.join(LOGGERS)}"
            )
        special = [
            key for key in _keys({k: v for k, v in node.items() if k != "_target_"}) if key.startswith("_")
        ]
        if special:
            raise UserError(
                f"logger.{name} may not have {special[0]}; allowed: _target_, once, and the logger's "
                "arguments"
            )


def _keys(node: Any) -> Iterator[str]:
    """Of nested dicts and lists, every key."""
    if isinstance(node, dict):
        yield from map(str, node)
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _keys(inner)


@contextmanager
def loggers(nodes: Mapping[str, Any], directory: Path, job: Job) -> Iterator[list[Guard]]:
    """The loggers of one training, each guarded, writing below `directory`."""
    built = [Guard(Rows(directory), "csv", lasting=True)]
    failed = True
    try:
        for key, node in nodes.items():
            logger = _build(key, node, directory, job)
            built += [Guard(logger, key)] if logger is not None else []
        for guard in built:
            guard.log_hyperparams(dict(job.config))
        yield built
        failed = False
    finally:
        if any(node["_target_"].endswith("WandbLogger") for node in nodes.values()):
            import wandb

            wandb.finish(exit_code=int(failed))


def _build(key: str, node: Mapping[str, Any], directory: Path, job: Job) -> Logger | None:
    """The logger, or None where its tracker cannot be reached. Raises UserError for a missing package or an
    argument that it does not have."""
    kind = node["_target_"].removeprefix(PREFIX)
    ids = _Ids(directory / IDS)
    name = f"{job.run}/{job.stage}"
    try:
        if kind == "WandbLogger":
            own = {"save_dir": str(directory), "name": name, "group": job.group, "job_type": job.kind}
            own["id"] = ids.get(key) or secrets.token_hex(4)
            settings = WANDB_SETTINGS | {"silent": job.quiet, "git_root": str(Path(__file__).parents[2])}
            lists = {
                "tags": [*job.tags, *node.get("tags", ())],
                "settings": settings | dict(node.get("settings", {})),
            }
            return _wandb(key, own | dict(node) | lists, ids)
        if kind == "MLFlowLogger":
            tags = {
                "group": job.group,
                "job_type": job.kind,
                **dict.fromkeys(job.tags, "true"),
                **node.get("tags", {}),
            }
            return _mlflow(key, {"run_name": name, "run_id": ids.get(key)} | dict(node) | {"tags": tags}, ids)
        # an empty version: one directory for every resumption, not one each
        own = {"save_dir": str(directory), "version": ""}
        own |= {"name": key} if kind == "CSVLogger" else {}  # CSV's own default is another package's name
        node = own | dict(node)
        if kind == "TensorBoardLogger":
            from torch.utils.tensorboard import SummaryWriter

            _check_arguments(kind, node, SummaryWriter)
        logger: Logger = hydra.utils.instantiate(node)
        return logger
    except UserError:
        raise
    except Exception as error:  # whatever a logger's own package raises
        raise UserError(f"logger.{key} cannot be built: {reason(error)}") from error


def _wandb(key: str, node: dict[str, Any], ids: "_Ids") -> Logger | None:
    """Its run, started now: the stored one, a new one if that was deleted on the server, a local one without
    network or login, None where not even that can be written."""
    import wandb

    _check_arguments("WandbLogger", node, wandb.init)
    local = bool(node.get("offline")) or os.environ.get("WANDB_MODE", "online") not in (
        "online",
        "run",
        "shared",
    )
    if not local and not wandb.login(prompt=False, verify=False):
        tell(f"logger.{key}: wandb is not logged in; {LATER}")
        node, local = node | {"offline": True}, True
    # Lightning says offline by an environment variable, which wandb has read by now if it ran before
    logger: Logger = hydra.utils.instantiate(node | ({"mode": "offline"} if local else {}), _convert_="all")
    try:
        _ = logger.experiment  # type: ignore[attr-defined]
    except (wandb.errors.Error, OSError) as error:
        if local:
            tell(f"logger.{key} failed ({reason(error)}); {WITHOUT}")
            return None
        wandb.teardown()  # its service holds the run that it failed to begin
        deleted = "deleted" in str(error)
        tell(f"logger.{key} failed ({reason(error)}); {'a new run is started' if deleted else LATER}")
        return _wandb(key, node | ({"id": secrets.token_hex(4)} if deleted else {"offline": True}), ids)
    ids.put(key, str(node["id"]))
    return logger


def _mlflow(key: str, node: dict[str, Any], ids: "_Ids") -> Logger | None:
    """Its run, started now: the stored one, a new one if that was deleted, None where the server cannot be
    reached."""
    # files are enough here, and ask for no database; a server that does not answer must not hold up a
    # training
    for name, value in {
        "ALLOW_FILE_STORE": "true",
        "HTTP_REQUEST_MAX_RETRIES": "1",
        "HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    from mlflow.exceptions import MlflowException

    logger: Any = hydra.utils.instantiate(node, _convert_="all")
    if not first_rank():
        return logger  # type: ignore[no-any-return]
    try:
        if (
            node["run_id"] is not None
            and logger.experiment.get_run(node["run_id"]).info.lifecycle_stage == "deleted"
        ):
            raise MlflowException(f"run {node['run_id']} was deleted")
        ids.put(key, str(logger.run_id))
    except MlflowException as error:
        tell(
            f"logger.{key} failed ({reason(error)}); "
            f"{WITHOUT if node['run_id'] is None else 'a new run is started'}"
        )
        return None if node["run_id"] is None else _mlflow(key, node | {"run_id": None}, ids)
    return logger  # type: ignore[no-any-return]


def _check_arguments(kind: str, node: Mapping[str, Any], opens: Callable[..., Any]) -> None:
    """Refuse now what a logger would hand on to `opens` at its first line: an argument that its package
    lacks."""
    known = (
        inspect.signature(getattr(pl_loggers, kind)).parameters.keys()
        | inspect.signature(opens).parameters.keys()
    )
    unknown = sorted(node.keys() - known - {"_target_"})
    if unknown:
        raise TypeError(
            f"it has no argument {unknown[0]!r}; allowed: {', '.join(sorted(known - {'kwargs', 'self'}))}"
        )


class _Ids:
    """The trackers' run ids of one training, by the logger's key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _all(self) -> dict[str, str]:
        try:
            saved = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return saved if isinstance(saved, dict) else {}

    def get(self, key: str) -> str | None:
        return self._all().get(key)

    def put(self, key: str, value: str) -> None:
        if first_rank() and self.get(key) != value:
            write_json(self.path, self._all() | {key: value})
