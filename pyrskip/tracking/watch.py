"""Watches a gate while it trains: now and then it decides a fixed sample of the validation rollouts.

What it costs is bounded: it is skipped while it has taken more than SHARE of the
training's time, but for the last look, when training is over. It draws no random numbers, so it changes no
training.
"""

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from pyrskip.report.figures import selections_by_type
from pyrskip.reward import Price
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.health import health
from pyrskip.tracking.guard import Guard
from pyrskip.tracking.media import Chart, Histogram, Media, send

LOOKS, QUESTIONS, SHARE = 10, 512, 0.02


class Watch(Callback):
    """environment: the validation rollouts. clock: seconds."""

    def __init__(
        self,
        environment: TableEnvironment,
        loggers: Sequence[Guard],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.environment, self.loggers, self.clock = environment, loggers, clock
        rows = len(environment.table)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
        self.rows = order[:QUESTIONS].sort().values
        self.began = self.spent = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.environment.to(pl_module.device)
        self.rows = self.rows.to(pl_module.device)
        self.began = self.clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total, now = int(trainer.num_training_batches), batch_idx + 1
        due = now * LOOKS // total > batch_idx * LOOKS // total and now < total
        if trainer.is_global_zero and due and self.spent <= SHARE * (self.clock() - self.began):
            start = self.clock()
            self.look(pl_module, max(trainer.global_step - 1, 0), last=False)
            self.spent += self.clock() - start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.look(pl_module, max(trainer.global_step - 1, 0), last=True)

    @torch.no_grad()
    def look(self, module: Any, step: int, last: bool) -> None:
        """Log val/* and media. module: a GateModule. step: the last one taken, from 0, as Lightning logs.
        last: with the chart that takes longer to draw."""
        environment, rows, table = self.environment, self.rows, self.environment.table
        price = torch.full((len(rows),), watched_price(module.price), device=rows.device)
        training = module.gate.training
        module.gate.eval()
        decision = environment.decide(rows, module.gate.policy(environment.observe(rows, price)))
        module.gate.train(training)
        action, score = environment.action(decision), environment.score(rows, decision)
        cost, tokens = environment.cost(rows, decision), environment.tokens(rows, decision)
        types = [table.types[i] for i in rows.tolist()]
        found = health(table.steps(rows, action).cpu(), types, environment.tile_level)
        metrics = {
            "val/accuracy/all": float(score.mean()),
            "val/relative_flops": float(cost.mean()),
            "val/tokens": float(tokens.mean()),
            "val/reward": float(module.price.config.reward(score, cost, price).mean()),
            "val/price": float(price[0]),
            "val/distinct_decisions": float(found["distinct"]),
            "val/entropy_of_decisions": found["entropy"],
            "val/information": found["mutual_information"],
        }
        metrics |= {
            f"val/keep_rate/level_{level}": rate for level, rate in list(found["keep_rate"].items())[:-1]
        }
        for kind in sorted(set(types)):
            of_kind = torch.tensor([t == kind for t in types], device=score.device)
            metrics[f"val/accuracy/{kind.replace('/', '-')}"] = float(score[of_kind].mean())
        media: dict[str, Media] = {"media/tokens": Histogram(tokens.tolist())}
        if last:
            touched = table.actions.touched(decision.selection, environment.tile_level).cpu()
            media["media/selections_by_type"] = Chart(selections_by_type(touched, types, table.actions.names))
        for guard in self.loggers:
            guard.log_metrics(metrics, step)
        send(self.loggers, media, step)


def watched_price(price: Price) -> float:
    """The price itself where there is one, the geometric middle of the range where it is sampled."""
    if price.config.mode == "sampled":
        return math.sqrt(price.config.low * price.config.high)
    return float(price.sample(1)[0])
