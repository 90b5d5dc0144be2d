"""Claims about a run's directory: one process writes to it, a dead one keeps nobody out, and what the disk
refuses is said."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrskip import files
from pyrskip.config import Config
from pyrskip.errors import UserError
from pyrskip.stages import run_stages
from pyrskip.stages.frontier import evaluate_again
from pyrskip.stages.run import Run
from tests.configs import tiny
from tests.tables import synthetic_table


@pytest.fixture
def other(tmp_path: Path) -> Callable[[], int]:
    """Starts a process that holds the run's directory; gives its id."""

    def start() -> int:
        process = os.fork()
        if not process:
            try:
                with Run(Config(name="run", root=str(tmp_path)), {}).lock():
                    (tmp_path / "held").touch()
                    time.sleep(600)
            finally:
                os._exit(0)
        while not (tmp_path / "held").exists():
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "the process has ended"
            time.sleep(0.01)
        return process

    return start


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_run_that_another_process_is_at_is_refused(
    other: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    process = other()
    try:
        with pytest.raises(
            UserError,
            match=rf"run is in use by process {process} on .*; allowed: wait for its end, or another",
        ):
            run_stages(tiny(tmp_path, "name=run"), {})
        assert not (tmp_path / "run" / "data").exists()
    finally:
        end(process)


def test_no_frontier_is_drawn_again_while_another_process_is_at_the_run(
    other: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    process = other()
    try:
        with pytest.raises(UserError, match=rf"run is in use by process {process} on .*; allowed: wait for"):
            evaluate_again(tiny(tmp_path, "name=run"), {})
    finally:
        end(process)


def test_what_a_killed_process_has_locked_is_free(other: Callable[[], int], tmp_path: Path) -> None:
    end(other())
    assert (tmp_path / "run" / ".lock").exists()
    run_stages(tiny(tmp_path, "name=run", "stages=[data]"), {})


def test_a_run_waits_for_what_is_left_of_a_killed_one(other: Callable[[], int], tmp_path: Path) -> None:
    process = other()
    if not os.fork():
        time.sleep(0.5)
        os.kill(process, signal.SIGKILL)
        os._exit(0)
    run_stages(tiny(tmp_path, "name=run", "stages=[data]"), {})
    assert (tmp_path / "run" / "data" / "stage.json").exists()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be written: Not a directory"):
        run_stages(tiny(tmp_path / "file", "name=run"), {})


def test_a_table_that_does_not_fit_the_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        with pytest.raises(UserError, match="table.safetensors cannot be written: .*File too large"):
            synthetic_table(images=300).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 1 << 18])
def test_a_disk_that_is_full_is_one_sentence_and_the_run_goes_on_once_there_is_room(
    size: int, tmp_path: Path
) -> None:
    """No file can grow beyond `size`, which stops another stage each."""
    config = tiny(tmp_path, "name=run", "stages=[data,flex,rollouts]", "data.limit=6")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: .*File too large"):
            run_stages(config, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run_stages(config, {})
