"""Preemption: a process gets a signal to stop, keeps what it has learnt, and its job is run again.

SIGTERM, SIGUSR1 and SIGUSR2 stop it. A training asks all ranks after every step whether one of them was
signalled, saves, and ends; anything else ends at once, since it goes on from whole files. A job of SLURM is
put back into its queue.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers.launcher import _Launcher
from pytorch_lightning.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessExitedException

from pyrskip.data.workers import SIGNALS

LINGER = 30
"""Seconds that other ranks stay, so that SLURM ends no job of which the first rank is still putting it
back."""


class Preempted(SystemExit):
    """Ends the process with a shell's exit code of the signal: 143 of SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class _Notice:
    """The signal that this process was sent: its number, 0 for none yet. waits: a training will look after
    its step. launchers: of the processes that must get it as well."""

    def __init__(self) -> None:
        self.signum, self.waits = 0, False
        self.launchers: list[_Launcher] = []

    def take(self, signum: int, frame: FrameType | None) -> None:
        """The signals' handler; what follows the first is part of the same end."""
        if self.signum:
            return
        self.signum = signum
        for launcher in self.launchers:
            launcher.kill(signal.Signals(signum))
        if not self.waits:
            raise Preempted(signum)

    def heed(self) -> dict[signal.Signals, Any]:
        """Handle the signals; returns the handlers before."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {signum: signal.signal(signum, self.take) for signum in SIGNALS}


_notice = _Notice()


@contextmanager
def preemptible() -> Iterator[None]:
    """Heed the signals within, and where one has ended it, see to it that the job is run again. Raises
    Preempted."""
    earlier = _notice.heed()
    try:
        yield
    except Preempted as stopped:
        name = signal.Signals(stopped.signum).name
        _say(f"{name}: stopped; what is done is kept, and the same command goes on from there")
        _return_job(stopped.signum, earlier.get(signal.Signals(stopped.signum)))
        raise
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
        _notice.signum = 0


@contextmanager
def after_the_step() -> Iterator[None]:
    """Within, a training looks after its steps whether it was signalled. Raises Preempted, also where it was
    too late for that."""
    _notice.waits = True
    try:
        yield
    except ProcessExitedException as error:  # ranks that this process has forked or spawned
        signum = _notice.signum or (error.exit_code or 0) - 128
        if signum in SIGNALS:
            raise Preempted(signum) from error
        raise
    finally:
        _notice.waits = False
    if _notice.signum:
        raise Preempted(_notice.signum)


def answer_signals(trainer: pl.Trainer) -> None:
    """Leave signals to this module. Lightning's own handler waits for other ranks in whatever line it
    interrupts, which can wait forever, and ends a training without saving."""
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    _notice.launchers = [one for one in _notice.launchers if _runs(one)]
    if trainer.strategy.launcher is not None:
        _notice.launchers.append(trainer.strategy.launcher)


class Stop(Callback):
    """Ends a training after a step before which any rank was signalled, with a checkpoint at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (
            parent_process() is not None and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        ):  # a rank that was spawned
            _notice.heed()
            _notice.waits = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        signum = _notice.signum
        if trainer.world_size > 1:
            highest = torch.tensor(signum, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(highest, reduce_op="max"))
        if signum:
            trainer.save_checkpoint(self.path)
            raise Preempted(signum)


def _runs(launcher: _Launcher) -> bool:
    """Whether any process that it started is still there."""
    codes = [
        p.poll() if isinstance(p, subprocess.Popen) else p.exitcode for p in getattr(launcher, "procs", ())
    ]
    return None in codes


def _nothing() -> None:
    pass


def _return_job(signum: int, earlier: Callable[[int, None], None] | int | None) -> None:
    """Hand the signal on to who handled it before, such as submitit, which returns a job its own way; then
    see to it that SLURM runs the job again."""
    if callable(earlier):
        earlier(signum, None)
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if int(getattr(rank_zero_only, "rank", 0)) > 0:
        time.sleep(LINGER)
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        if "JobState=RUNNING" not in _scontrol("show", "job", job):
            _say(f"job {job} is cancelled or at its time limit, and is not put back into the queue")
            return
        _scontrol("requeue", job)
        _say(f"job {job} is back in the queue")
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _say(f"job {job} cannot be put back into the queue: {' '.join(str(reason).split())}")


def _scontrol(*arguments: str) -> str:
    return subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def _say(line: str) -> None:
    if int(getattr(rank_zero_only, "rank", 0)) == 0:
        print(line, file=sys.stderr, flush=True)
