"""Batches for a training run that is counted in steps, and that resumes at the very batch it was stopped
at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from pyrskip.data.sampler import ORDERS, Parts, StepSampler
from pyrskip.data.workers import ignore_signals
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import HOW, PER_RANK


@dataclass(frozen=True)
class LoaderConfig:
    """How samples are loaded. batch_images: images a rank and step; rollout_images: a pass of the rollouts
    (on a CPU, activations that stay in its cache are faster); chunk_images: rolled out before they are
    written, so what a kill can cost; workers: processes that load samples, 0 for none.

    order: 'samples' shuffles all of them, 'shards' gives each rank and worker shards of its own, read a few
    at a time. replan: go on from a checkpoint of another batch x ranks, at the sample that it had come to.
    """

    batch_images: int = field(default=16, metadata=PER_RANK)
    rollout_images: int = field(default=6, metadata=HOW)
    chunk_images: int = field(default=96, metadata=HOW)
    workers: int = field(default=0, metadata=HOW)
    order: str = "samples"
    replan: bool = field(default=False, metadata=HOW)

    def __post_init__(self) -> None:
        for name in ("batch_images", "rollout_images", "chunk_images"):
            if getattr(self, name) < 1:
                raise UserError(f"loader.{name}={getattr(self, name)} is too small; allowed: at least 1")
        if self.workers < 0:
            raise UserError(f"loader.workers={self.workers} is negative; allowed: at least 0")
        if self.order not in ORDERS:
            raise unknown_name("loader.order", self.order, ORDERS)


class StepData(pl.LightningDataModule):
    """`steps` batches of any map-style dataset, as the one epoch of a Trainer.

    The Trainer must have `max_epochs=1`, `max_steps=-1` and, with several ranks,
    `use_distributed_sampler=False` (samples are shared out here). `fit(ckpt_path=...)` then goes on with the
    batch after the last that the restored weights have learnt from, wherever the checkpoint was saved, and
    ends after `steps` batches in all. The number of workers may change between runs; images, seed and batch x
    ranks may not, as the order of samples depends on them. With replan, batch x ranks may: the run goes on
    with the sample that it had come to. With order=shards ranks, batch and workers must all stay.

    dataset: sized, indexed from 0, with `parts` where it is made of several shards, and `early` where the
    first `early_steps` steps have samples of their own (`pyrskip.data.reader.Joined`). collate: list of its
    items -> batch. batch: items a rank and step. Fitting raises UserError where steps is no multiple of
    accumulate_grad_batches, or where a checkpoint has another order of samples.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        batch: int,
        steps: int,
        seed: int = 0,
        workers: int = 0,
        order: str = "samples",
        replan: bool = False,
        early_steps: int = 0,
    ) -> None:
        super().__init__()
        self._early_steps = early_steps
        self._dataset, self._collate = dataset, collate
        self._batch, self._steps, self._seed, self._workers = batch, steps, seed, workers
        self._order, self._replan = order, replan

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None, "StepData is for a Trainer's fit"
        if self._steps % trainer.accumulate_grad_batches:
            raise UserError(
                f"steps={self._steps} would end within an accumulated batch; "
                f"allowed: multiples of accumulate_grad_batches={trainer.accumulate_grad_batches}"
            )
        images, world, start = len(self._dataset), trainer.world_size, _resumed_step(trainer)  # type: ignore[arg-type]
        parts: Parts = getattr(self._dataset, "parts", Parts(((images,),)))
        early = self._early_steps, getattr(self._dataset, "early", 0)
        sampler = StepSampler(
            parts,
            self._batch,
            self._steps,
            start,
            self._seed,
            trainer.global_rank,
            world,
            self._order,
            self._workers,
            early,
        )
        depends: dict[str, Any] = {
            "images": images,
            "seed": self._seed,
            "order": self._order,
            "batch x ranks": self._batch * world,
        }
        if len(parts.weights) > 1:
            depends["weights"] = list(parts.weights)
        if any(early):
            depends["early steps"] = self._early_steps
        if self._order == "shards":
            depends |= {"ranks": world, "workers": max(1, self._workers)}
        return _StepLoader(
            depends,
            self._steps,
            sampler,
            self._replan and self._order == "samples",
            dataset=self._dataset,
            batch_sampler=sampler,
            collate_fn=self._collate,
            num_workers=self._workers,
            worker_init_fn=ignore_signals,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            # a loader draws its workers' seed, by default from the global generator, which would differ after
            # a resume
            generator=torch.Generator().manual_seed(self._seed),
        )


class _StepLoader(DataLoader[Any]):
    """The rest of a run. Its length is that of the whole run, for Lightning counts resumed batches from the
    first.

    depends: what the order of samples depends on; it goes into checkpoints, and one with another order is
    refused, or with replan gone on from at the sample that it had come to. waited: seconds that the training
    has waited for batches.
    """

    def __init__(
        self, depends: dict[str, Any], steps: int, sampler: StepSampler, replan: bool, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.waited = 0.0
        self._depends, self._steps, self._sampler, self._replan = depends, steps, sampler, replan

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            start = perf_counter()
            try:
                batch = next(batches, None)
            except UserError as error:  # a worker's comes with its traceback in front
                raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from error
            self.waited += perf_counter() - start
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self._depends | {"origin": list(self._sampler.origin)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.origin = tuple(state.get("origin", (0, 0)))
        for name, value in self._depends.items():
            saved = state.get(name, value)
            if saved == value:
                continue
            if name == "batch x ranks" and self._replan:
                self._sampler.replan(saved)
                continue
            also = (
                ", loader.replan=true to go on at the next sample"
                if name == "batch x ranks" and "ranks" not in state
                else ""
            )
            raise UserError(
                f"the checkpoint was trained with {name} = {saved}, this run has {value}; allowed: "
                f"{saved}{also}, or a new run"
            )


def _resumed_step(trainer: pl.Trainer) -> int:
    """How many batches the restored weights have learnt from; 0 in a new run.

    Lightning has restored its own count by now. `processed` alone is right wherever a checkpoint was saved:
    `completed` is one behind in on_train_batch_end, and `ready` one ahead when a training step raises.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    processed = int(progress.state_dict()["current"]["processed"])
    step = processed - processed % trainer.accumulate_grad_batches
    if step != processed:
        # saved before accumulated gradients were used: no checkpoint holds them, so their batches are run
        # again
        for counts in (progress.total, progress.current):
            counts.reset()
            counts.increment_by(step)
    return step
