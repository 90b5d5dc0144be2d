"""Claims about preemption: a signal costs a training nothing, and its job comes back."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pyrskip.data.datamodule import StepData
from pyrskip.data.workers import SIGNALS, ignore_signals
from pyrskip.training import preemption
from pyrskip.training.preemption import Preempted, preemptible
from pyrskip.training.trainer import CHECKPOINT, TrainerConfig, build_trainer, fit
from tests.test_resume_data import STEPS, Numbers, Recorder

signals = pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)


class Told(Recorder):
    """Is sent `signum` within batch `at`, on rank `rank`."""

    def __init__(self, signum: int, at: int, rank: int = 0) -> None:
        super().__init__()
        self.signum, self.at, self.rank = signum, at, rank

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.at and self.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)
        return super().training_step(batch, batch_idx)


def train(module: Recorder, directory: Path, workers: int = 0, **options: Any) -> Recorder:
    trainer = build_trainer(TrainerConfig(quiet=True, **options), directory)
    fit(trainer, module, StepData(Numbers(), torch.tensor, 2, STEPS, 5, workers), directory)
    return module


@signals
@pytest.mark.parametrize(("at", "accumulate"), [(0, 1), (3, 1), (STEPS - 1, 1), (2, 2), (3, 2)])
def test_a_signal_ends_a_training_after_its_step_and_the_next_run_goes_on_from_there(
    signum: int, at: int, accumulate: int, tmp_path: Path
) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    told = Told(signum, at)
    with pytest.raises(Preempted) as ended, preemptible():
        train(told, tmp_path / "told", accumulate=accumulate)
    assert ended.value.code == 128 + signum
    assert before == [signal.getsignal(s) for s in SIGNALS]
    whole, resumed = (train(Recorder(), tmp_path / name, accumulate=accumulate) for name in ("whole", "told"))
    assert told.seen + resumed.seen == whole.seen
    assert len(told.seen) == at + accumulate - at % accumulate
    assert torch.equal(resumed.weight, whole.weight)


@signals
def test_outside_of_a_training_a_signal_ends_the_process_at_once(signum: int) -> None:
    def work() -> None:
        with preemptible():
            os.kill(os.getpid(), signum)
            pytest.fail("the signal was not heard")

    with pytest.raises(Preempted):
        work()


def test_a_signal_after_the_last_step_still_ends_the_process(tmp_path: Path) -> None:
    class Late(Recorder):
        def on_fit_end(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted), preemptible():
        train(Late(), tmp_path)


class Workers(Numbers):
    """Each worker is sent every signal before it loads anything."""

    def __getitem__(self, index: int) -> int:
        assert get_worker_info() is not None
        for signum in SIGNALS:
            os.kill(os.getpid(), signum)
        return index


def test_workers_outlive_the_signals_that_a_whole_job_gets(tmp_path: Path) -> None:
    module = Recorder()
    with preemptible():
        fit(
            build_trainer(TrainerConfig(quiet=True), tmp_path),
            module,
            StepData(Workers(), torch.tensor, 2, 3, 5, 2),
            tmp_path,
        )
    assert len(module.seen) == 3


def test_a_worker_that_is_deaf_to_others_ends_when_its_parent_ends_it(tmp_path: Path) -> None:
    def wait() -> None:
        ignore_signals(0)
        os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "ignore_signals").touch()
        time.sleep(60)

    worker = get_context("fork").Process(target=wait, daemon=True)  # type: ignore[attr-defined]
    worker.start()
    while not (tmp_path / "ignore_signals").exists():
        time.sleep(0.01)
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


class Leaving(Recorder):
    """Once it is pickled, notes whether the process group is there when the interpreter ends."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        atexit.register(self.note)

    def note(self) -> None:
        (self.folder / f"{self.global_rank}").write_text(str(torch.distributed.is_initialized()))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "rank"), [("ddp_fork", 1), ("ddp_spawn", 0)])
def test_all_ranks_stop_after_the_same_step_whichever_was_told(
    strategy: str, rank: int, tmp_path: Path
) -> None:
    ranks: dict[str, Any] = {"strategy": strategy, "devices": 2}
    with pytest.raises(Preempted), preemptible():
        train(Told(signal.SIGUSR1, 3, rank), tmp_path / "told", **ranks)
    saved = torch.load(tmp_path / "told" / CHECKPOINT, weights_only=True)
    assert saved["global_step"] == 4
    whole = train(Leaving(tmp_path), tmp_path / "whole", **ranks)
    resumed = train(Recorder(), tmp_path / "told", **ranks)
    assert torch.equal(resumed.weight, whole.weight)
    if strategy == "ddp_spawn":
        assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["False"] * 2


@pytest.mark.slow
def test_ranks_that_this_process_has_forked_are_told_by_it(tmp_path: Path) -> None:
    class Parent(Recorder):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 3 and self.global_rank == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)
            return super().training_step(batch, batch_idx)

    with pytest.raises(Preempted), preemptible():
        train(Parent(), tmp_path, strategy="ddp_fork", devices=2)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["global_step"] in (4, 5)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes this process a job of SLURM, in a state: gives the list of what scontrol is asked for."""

    def job(state: str) -> Path:
        asked = tmp_path / "asked"
        asked.touch()
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(
            f'#!{sys.executable}\nimport sys\nopen("{asked}", "a").write(" ".join(sys.argv[1:]) + "\\n")\n'
        )
        with open(scontrol, "a") as file:
            file.write(f"if sys.argv[1] == 'show': print('   JobState={state} Reason=None')\n")
            file.write("elif sys.argv[2].startswith('8'): sys.exit('Requested operation is\\n disabled')\n")
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "71")
        return asked

    return job


def told() -> None:
    with pytest.raises(Preempted), preemptible():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_running_job_is_put_back_into_the_queue(
    slurm: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = slurm("RUNNING")
    told()
    assert asked.read_text().splitlines() == ["show job 71", "requeue 71"]
    assert capfd.readouterr().err.splitlines() == [
        "SIGTERM: stopped; what is done is kept, and the same command goes on from there",
        "job 71 is back in the queue",
    ]


def test_a_job_of_an_array_is_put_back_alone(
    slurm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    asked = slurm("RUNNING")
    told()
    assert asked.read_text().splitlines()[-1] == "requeue 70_3"


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING"])
def test_a_job_that_is_meant_to_end_is_not_put_back(state: str, slurm: Callable[[str], Path]) -> None:
    asked = slurm(state)
    told()
    assert "requeue" not in asked.read_text()


def test_a_job_that_may_not_be_put_back_says_so(
    slurm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm("RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "81")
    told()
    assert capfd.readouterr().err.splitlines()[-1] == (
        "job 81 cannot be put back into the queue: Requested operation is disabled"
    )


def test_other_ranks_put_nothing_back_and_stay_until_the_first_has(
    slurm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, slept = slurm("RUNNING"), []
    monkeypatch.setattr(preemption.rank_zero_only, "rank", 1)
    monkeypatch.setattr(preemption.time, "sleep", slept.append)
    told()
    assert asked.read_text() == "" and slept == [preemption.LINGER]


def test_a_launcher_that_handled_the_signal_before_returns_its_job_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def submitit(signum: int, frame: object) -> None:
        sys.exit(f"returned at {signum}")

    before = signal.signal(signal.SIGUSR2, submitit)
    try:
        with pytest.raises(SystemExit, match=f"returned at {signal.SIGUSR2}"), preemptible():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is submitit
    finally:
        signal.signal(signal.SIGUSR2, before)
