"""Claims about checkpoints: whole or not at all."""

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyrskip.data.datamodule import StepData
from pyrskip.reward import RewardConfig
from pyrskip.training.checkpoint import PatientIO
from pyrskip.training.trainer import TrainerConfig
from tests.toys import fit_until, toy_module


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process can grow beyond 64 KB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    small_files: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, path = PatientIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    for _ in range(2):
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(1 << 16)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
    assert (
        capsys.readouterr().err
        == f"{path} cannot be written: File too large; training goes on, and tries again\n"
    )
    writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}


def test_a_rule_that_remembers_by_the_batch_resumes_exactly_where_gradients_accumulate(
    tmp_path: Path,
) -> None:
    """Killed twice: the second time from a checkpoint that the resumed training has saved."""

    def train(folder: str, until: int) -> dict[str, Tensor]:
        module = toy_module("reinforce", "bernoulli", RewardConfig(target=0.4), 8, baseline="running_mean")
        data = StepData(range(200), torch.tensor, 4, 8, 1)  # type: ignore[arg-type]
        return fit_until(
            module,
            data,
            tmp_path / folder,
            until,
            TrainerConfig(accumulate=2, checkpoint_every=1, quiet=True),
        )

    whole = train("whole", 8)
    train("killed", 4)
    train("killed", 5)
    killed = train("killed", 8)
    assert all(killed[name].equal(value) for name, value in whole.items())


def test_a_checkpoint_is_first_written_beside_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move from another disk is a copy, and a kill in its middle leaves neither."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    PatientIO().save_checkpoint({"step": 1}, tmp_path / "run" / "last.ckpt")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True) == {"step": 1}
