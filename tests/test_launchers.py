"""Claims about whole runs on two ranks: however they are started, they end, and as one rank does with both
ranks' batches."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.rollouts import ROLLED
from tests.configs import REPOSITORY, TWO_STEPS

# nothing is drawn by rank: prices are fixed, budgets whole, and every question sees
ALIKE = [
    "reward.price=0.1",
    "flex.budget=fixed",
    "flex.blind_share=0",
    "rule=supervised",
    "ablations=[]",
    "data.cache=run",
]
ONE, HALF = ["loader.batch_images=4", "rule.batch=32"], ["loader.batch_images=2", "rule.batch=16"]
SMALL = [override for override in TWO_STEPS if not override.startswith(("loader.batch_images", "rule.batch"))]
WAYS = {
    way: ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.strategy={'ddp' if way == 'torchrun' else way}"]
    for way in ("ddp", "ddp_fork", "fsdp", "torchrun")
}
STEPS, EVERY = 40, 5
LONGER = [f"flex.optimizer.steps={STEPS}", f"trainer.checkpoint_every={EVERY}", "stages=[data,cache,flex]"]
ways = pytest.mark.parametrize("way", WAYS)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def command(root: Path, *overrides: str, launcher: Sequence[str] = ()) -> list[str]:
    words = [
        sys.executable,
        *launcher,
        str(REPOSITORY / "train.py"),
        "experiment=easy_vqa",
        f"root={root}",
        "name=run",
    ]
    return [*words, *SMALL, *ALIKE, *overrides]


def run(words: list[str], root: Path) -> Path:
    """Train in processes of their own; gives the run's directory."""
    done = subprocess.run(words, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return root / "run"


def same(a: Path, b: Path) -> bool:
    wanted, got = (safetensors.torch.load_file(of) for of in (a, b))
    return wanted.keys() == got.keys() and all(
        got[k].allclose(v, rtol=1e-4, atol=1e-5) for k, v in wanted.items()
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank."""
    root = tmp_path_factory.mktemp("alone")
    return run(command(root, *ONE), root)


@pytest.mark.slow
@ways
def test_two_ranks_end_all_stages_as_one_rank_does(way: str, alone: Path, tmp_path: Path) -> None:
    two = run(command(tmp_path, *HALF, *WAYS[way], launcher=TORCHRUN if way == "torchrun" else ()), tmp_path)
    assert (two / "frontier.json").is_file()
    for part in (
        "flex/model",
        "gate/gate/seed-0/gate",
        *(f"cache/{path.stem}" for path in (alone / "cache").glob("*.safet*")),
    ):
        assert same(alone / f"{part}.safetensors", two / f"{part}.safetensors"), part
    for split in ROLLED:
        wanted_table, table = (RolloutTable.load(of / "rollouts" / split) for of in (alone, two))
        assert table.keys == wanted_table.keys and table.score.equal(wanted_table.score)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Runs of two ranks that nothing stops, with FSDP and without."""
    runs = {}
    for fsdp in (False, True):
        root = tmp_path_factory.mktemp("whole")
        runs[fsdp] = run(command(root, *HALF, *WAYS["fsdp" if fsdp else "ddp_fork"], *LONGER), root)
    return runs


@pytest.mark.slow
@ways
def test_a_run_that_is_told_to_stop_goes_on_with_the_same_command_and_ends_the_same(
    way: str, whole: dict[bool, Path], tmp_path: Path
) -> None:
    """SIGTERM to whatever started it; torchrun hands it on, and has an exit code of its own."""
    words = command(tmp_path, *HALF, *WAYS[way], *LONGER, launcher=TORCHRUN if way == "torchrun" else ())
    saved = tmp_path / "run/flex/last.ckpt"
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while not saved.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert "SIGTERM: stopped" in said and process.returncode == (1 if way == "torchrun" else 143), said
    assert EVERY <= torch.load(saved, weights_only=True)["global_step"] < STEPS
    told = run(words, tmp_path)
    assert same(whole[way == "fsdp"] / "flex/model.safetensors", told / "flex/model.safetensors")
