"""Gives up a sweep's job whose gate falls behind the others'.

At a quarter and at half of its training a job's first gate decides the validation rollouts, and its accuracy
and cost are kept in the job's directory. Where more than half of the jobs that were there before it are both
no dearer and no worse, it is given up: the median rule of one objective, for two. Jobs share nothing but the
sweep's directory.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.files import write_json
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.sweeps.jobs import Pruned
from pyrskip.tracking.watch import watched_price

FILE, SHARES, LEAST = "pruning.json", (0.25, 0.5), 4
"""SHARES: of the training, at which jobs are compared. LEAST: jobs that must have come as far before another
is given up there."""


class MedianPruning(Callback):
    """directory: the job's, beside those of others. environment: the validation rollouts."""

    def __init__(self, directory: Path, environment: TableEnvironment) -> None:
        self.directory, self.environment = directory, environment

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total, now = int(trainer.num_training_batches), batch_idx + 1
        for share in SHARES:
            if now == max(1, round(share * total)):
                behind = self._behind(pl_module, share) if trainer.is_global_zero else None
                behind = trainer.strategy.broadcast(behind)
                if behind is not None:
                    raise Pruned(behind)

    def _behind(self, module: Any, share: float) -> str | None:
        own = reached(module, self.environment)
        path, name = self.directory / FILE, f"{share:g}"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, earlier | {name: own})
        found = [json.loads(p.read_text()) for p in self.directory.parent.glob(f"*/{FILE}") if p != path]
        others = [tuple(points[name]) for points in found if name in points]
        if not is_behind(own, others):
            return None
        return (
            f"at {share:.0%} of the training {own[0]:.3f} right at cost {own[1]:.3f}, behind most of "
            f"{len(others)} others"
        )


def is_behind(own: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether more than half of the others, of at least LEAST, dominate it. Points are (accuracy, cost)."""
    better = sum(a >= own[0] and c <= own[1] and (a, c) != own for a, c in others)
    return len(others) >= LEAST and 2 * better > len(others)


@torch.no_grad()
def reached(module: Any, environment: TableEnvironment) -> tuple[float, float]:
    """(accuracy, relative FLOPs) of a GateModule's `mode` on all rollouts, at the middle of its prices."""
    environment.to(module.device)
    rows = torch.arange(len(environment.table), device=module.device)
    price = torch.full((len(rows),), watched_price(module.price), device=module.device)
    training = module.gate.training
    module.gate.eval()
    decision = module.gate.policy(environment.observe(rows, price)).mode()
    module.gate.train(training)
    return float(environment.score(rows, decision).mean()), float(environment.cost(rows, decision).mean())
