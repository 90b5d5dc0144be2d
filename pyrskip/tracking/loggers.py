"""Loggers are Lightning's own; here they are pointed at a stage's directory. CSV is always on."""

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


@contextmanager
def loggers(nodes: dict[str, Any], directory: Path, run: str, stage: str) -> Iterator[list[Logger]]:
    """The loggers of one training: `stage` of `run`, writing below `directory`."""
    built: list[Logger] = [CSVLogger(save_dir=directory, name="csv")]
    for node in nodes.values():
        extra: dict[str, Any] = {"save_dir": str(directory)}
        if node["_target_"].endswith("WandbLogger"):
            extra |= {"name": f"{run}/{stage}", "group": run, "job_type": stage.split("/")[0]}
        built.append(hydra.utils.instantiate(node | {k: v for k, v in extra.items() if k not in node}))
    try:
        yield built
    finally:
        if any(node["_target_"].endswith("WandbLogger") for node in nodes.values()):
            import wandb

            wandb.finish()
