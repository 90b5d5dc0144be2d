"""Claims about whole runs on two ranks: however they are started, they end, and as one rank does with both ranks' batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pyrskip.artifacts import ROLLED
from pyrskip.rollouts.table import RolloutTable
from tests.test_docs import REPOSITORY
from tests.test_stages import TWO_STEPS

# nothing is drawn by rank: prices are fixed, budgets whole, and every question sees
ALIKE = ["reward=fixed", "flex.budget=fixed", "flex.blind_share=0", "rule=supervised", "ablations=[]", "data.cache=run"]
ONE, HALF = ["loader.batch_images=4", "rule.batch=32"], ["loader.batch_images=2", "rule.batch=16"]
SMALL = [override for override in TWO_STEPS if not override.startswith(("loader.batch_images", "rule.batch"))]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(root: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> Path:
    """Train in processes of their own; gives the run's directory."""
    words = [sys.executable, *launcher, str(REPOSITORY / "train.py"), "experiment=easy_vqa", f"root={root}", "name=run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words += [*SMALL, *ALIKE, *overrides]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return root / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank."""
    return run(tmp_path_factory.mktemp("alone"), *ONE)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "ddp_fork", "fsdp", "torchrun"])
def test_two_ranks_end_all_stages_as_one_rank_does(way: str, alone: Path, tmp_path: Path) -> None:
    trainer = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={'ddp' if way == 'torchrun' else way}"]
    two = run(tmp_path, *HALF, *trainer, launcher=tuple(TORCHRUN) if way == "torchrun" else ())
    assert (two / "frontier.json").is_file()
    for part in ("flex/model", "gate/gate/seed-0/gate", *(f"cache/{path.stem}" for path in (alone / "cache").glob("*.safet*"))):
        wanted, got = (safetensors.torch.load_file(of / f"{part}.safetensors") for of in (alone, two))
        assert wanted.keys() == got.keys()
        for name, value in wanted.items():
            assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-5), (part, name)
    for split in ROLLED:
        wanted_table, table = (RolloutTable.load(of / "rollouts" / split) for of in (alone, two))
        assert table.keys == wanted_table.keys and table.score.equal(wanted_table.score)
