"""Claims about clusters, on a real SLURM of two nodes on this machine: make test-slurm."""

import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrskip.sweeps.jobs import read_jobs
from pyrskip.sweeps.overview import TABLE
from tests.configs import REPOSITORY, TWO_STEPS, same
from tests.slurm import Cluster, cluster, until

pytestmark = pytest.mark.slurm
TRAIN = [sys.executable, str(REPOSITORY / "train.py")]
TINY = ["experiment=easy_vqa", "ablations=[]", *(o for o in TWO_STEPS if not o.startswith("seeds="))]
QUEUED = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def trained(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs/easy_vqa, whose rollouts are there to borrow."""
    directory = tmp_path_factory.mktemp("work")
    slurm.run(*TRAIN, *TINY, "seeds=1", "stages=[data,flex,rollouts]", cwd=directory, seconds=300)
    return directory


def test_a_sweep_is_an_array_of_jobs_that_ends_in_one_table(slurm: Cluster, trained: Path) -> None:
    varied = ["gate=joint,predictor", "seed=0,1", "seeds=1"]
    slurm.run(
        *TRAIN, "-m", *TINY, "name=sweep", *varied, "from=runs/easy_vqa", *QUEUED, cwd=trained, seconds=300
    )
    jobs = read_jobs(trained / "runs/sweep")
    assert [job.name for job in jobs] == [
        f"gate={gate},seed={seed}" for gate in ("joint", "predictor") for seed in (0, 1)
    ]
    assert {job.state for job in jobs} == {"done"}
    queued = sorted(
        path.name for path in (trained / "runs/sweep/.submitit").iterdir() if path.name[0].isdigit()
    )
    array = {name.split("_")[0] for name in queued}
    assert len(array) == 1
    slurm.wait(
        array.pop(), "\n".join(["COMPLETED"] * 4)
    )  # results are there a moment before their jobs have ended
    with (trained / "runs/sweep" / TABLE).open() as file:
        assert {(row["line"], row["gates"]) for row in csv.DictReader(file)} == {
            ("gate=joint", "2"),
            ("gate=predictor", "2"),
        }


def test_ranks_of_a_sweeps_job_are_slurms_tasks(slurm: Cluster, trained: Path) -> None:
    ranks = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "loader.batch_images=1",
        "seeds=1",
        "stages=[gate,frontier]",
    ]
    slurm.run(
        *TRAIN, "-m", *TINY, "name=ranks", "from=runs/easy_vqa", *ranks, *QUEUED, cwd=trained, seconds=300
    )
    (job,) = read_jobs(trained / "runs/ranks")
    assert job.state == "done"
    assert len(list((trained / "runs/ranks/.submitit").glob("*/*_log.out"))) == 2


def test_two_nodes_train_one_model(slurm: Cluster, trained: Path) -> None:
    nodes = ["srun", "--nodes=2", "--ntasks-per-node=1"]
    ddp = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.nodes=2",
        "stages=[data,flex]",
        "seeds=1",
    ]
    slurm.run(*nodes, *TRAIN, *TINY, "name=nodes", *ddp, "loader.batch_images=1", cwd=trained, seconds=300)
    assert json.loads((trained / "runs/nodes/flex/stage.json").read_text())["done"]


# srun in the background, so that the shell hears signals and hands them on
SCRIPT = """#!/bin/sh
srun {command} &
child=$!
trap 'kill -TERM $child' TERM
wait $child
wait $child
"""


STEPS = ["flex.optimizer.steps=120", "trainer.checkpoint_every=20", "stages=[data,flex]", "seeds=1"]
LONGER = [*(o for o in TINY if o.split("=")[0] not in {step.split("=")[0] for step in STEPS}), *STEPS]


def test_a_job_that_gives_way_to_another_ends_with_the_same_weights(slurm: Cluster, trained: Path) -> None:
    nodes = ["--nodes=2", "--ntasks-per-node=1"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=2"]
    command = [*TRAIN, *LONGER, *ddp]
    script, flex = trained / "job.sh", trained / "runs/moved/flex"
    script.write_text(SCRIPT.format(command=shlex.join([*command, "name=moved"])))
    job = slurm.run(
        "sbatch", "--parsable", "--requeue", *nodes, "--output=job.log", str(script), cwd=trained
    ).strip()
    until(lambda: (flex / "last.ckpt").exists(), 120)
    urgent = ["--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    slurm.wait(slurm.run("sbatch", "--parsable", *urgent, cwd=trained).strip(), "COMPLETED")
    assert not (flex / "model.safetensors").exists()
    slurm.wait(job, "COMPLETED", 240)
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)
    slurm.run("srun", *nodes, *command, "name=straight", cwd=trained, seconds=300)
    assert same(flex / "model.safetensors", trained / "runs/straight/flex/model.safetensors")


def test_a_sweeps_job_that_is_told_to_go_is_queued_again_and_ends(slurm: Cluster, trained: Path) -> None:
    told = trained / "runs/told"
    sweep = subprocess.Popen(
        [*TRAIN, "-m", *LONGER, "name=told", *QUEUED], cwd=trained, env=dict(slurm.environment)
    )
    until((told / "0/flex/last.ckpt").exists, 120)
    (job,) = (path.name for path in (told / ".submitit").iterdir() if path.name[0].isdigit())
    slurm.run("scancel", "--signal=USR2", job)
    until(lambda: read_jobs(told)[0].state == "stopped", 60)
    assert sweep.wait(300) == 0
    assert read_jobs(told)[0].state == "done"
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)


def test_a_search_for_the_front_runs_in_the_queue(slurm: Cluster, trained: Path) -> None:
    search = [
        "hydra/sweeper=pareto",
        "hydra.sweeper.trials=2",
        "hydra.sweeper.at_once=2",
        "gate=joint,predictor",
        "seeds=1",
    ]
    chosen = "rule.optimizer.lr=tag(log,interval(0.0001,0.01))"
    command = [*TRAIN, "-m", *TINY, "name=pareto", "from=runs/easy_vqa", *search, chosen, *QUEUED]
    slurm.run(*command, cwd=trained, seconds=300)
    jobs = read_jobs(trained / "runs/pareto")
    assert [job.state for job in jobs] == ["done"] * 2
