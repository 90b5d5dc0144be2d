"""Loggers are Lightning's own; here they are pointed at a stage's directory. CSV is always on."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra.utils
from pytorch_lightning.loggers import CSVLogger, Logger

from pyrskip.errors import UserError

# the only classes that a config may name by import path
LOGGERS = ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")
PREFIX = "pytorch_lightning.loggers."


def check_loggers(nodes: dict[str, Any]) -> None:
    """Refuse a _target_ outside of the allow-list."""
    for name, node in nodes.items():
        target = str(node.get("_target_")) if isinstance(node, dict) else str(node)
        if target not in {PREFIX + logger for logger in LOGGERS}:
            raise UserError(
                f"logger.{name}._target_={target!r} may not be built; allowed: {PREFIX} and one of {', '.join(LOGGERS)}"
            )
        special = [key for key in _keys({k: v for k, v in node.items() if k != "_target_"}) if key.startswith("_")]
        if special:
            raise UserError(f"logger.{name} may not have {special[0]}; allowed: _target_, once, and the logger's arguments")


def _keys(node: Any) -> Iterator[str]:
    """Of nested dicts and lists, every key."""
    if isinstance(node, dict):
        yield from map(str, node)
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _keys(inner)


@contextmanager
def loggers(nodes: dict[str, Any], directory: Path, run: str, stage: str) -> Iterator[list[Logger]]:
    """The loggers of one training: `stage` of `run`, writing below `directory`."""
    built: list[Logger] = [CSVLogger(save_dir=directory, name="csv")]
    for key, node in nodes.items():
        extra: dict[str, Any] = {"save_dir": str(directory)}
        if node["_target_"].endswith("WandbLogger"):
            extra |= {"name": f"{run}/{stage}", "group": run, "job_type": stage.split("/")[0]}
        built.append(_build(key, node | {k: v for k, v in extra.items() if k not in node}))
    try:
        yield built
    finally:
        if any(node["_target_"].endswith("WandbLogger") for node in nodes.values()):
            import wandb

            wandb.finish()


def _build(key: str, node: dict[str, Any]) -> Logger:
    try:
        logger: Logger = hydra.utils.instantiate(node)
        _check_later(logger, node)
    except Exception as error:  # whatever a logger's own package raises
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"logger.{key} cannot be built: {reason}") from error
    return logger


def _check_later(logger: Logger, node: dict[str, Any]) -> None:
    """Raise now what a logger would raise at its first line: an argument that its package lacks, no login."""
    opens: Any = None
    if type(logger).__name__ == "WandbLogger":
        import wandb

        opens = wandb.init
        offline = node.get("offline") or os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared")
        if not offline and not wandb.api.api_key:
            raise ValueError("wandb is not logged in; run `wandb login`, or take logger=wandb_offline")
    elif type(logger).__name__ == "TensorBoardLogger":
        from torch.utils.tensorboard import SummaryWriter

        opens = SummaryWriter
    if opens is not None:
        known = inspect.signature(type(logger)).parameters.keys() | inspect.signature(opens).parameters.keys()
        unknown = sorted(node.keys() - known - {"_target_"})
        if unknown:
            raise TypeError(f"it has no argument {unknown[0]!r}; allowed: {', '.join(sorted(known - {'kwargs', 'self'}))}")
