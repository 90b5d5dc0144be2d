"""Claims about sweeps: what is refused before the first job runs, and what becomes of jobs that fail or are
given up."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest

from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.launch import conf_directory
from pyrskip.stages import run_stages
from pyrskip.sweeps import pruning
from pyrskip.sweeps.jobs import Pruned, read_job, read_jobs
from pyrskip.sweeps.overview import point_of
from pyrskip.sweeps.plan import plan_sweep
from tests.configs import REPOSITORY, TWO_STEPS, tiny
from tests.test_cli import refused

SMALL = ["experiment=easy_vqa", "ablations=[]", *(o for o in TWO_STEPS if not o.startswith("seeds="))]


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs/easy_vqa up to its rollouts."""
    directory = tmp_path_factory.mktemp("work")
    run_stages(tiny(directory / "runs", "stages=[data,flex,rollouts]"), {})
    return directory


def planned(*overrides: str) -> Any:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return plan_sweep(overrides)


def test_every_combination_is_planned_however_many_are_checked(
    rolled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rolled)
    monkeypatch.setattr("pyrskip.sweeps.plan.CHECKED", 2)
    made = planned(
        *SMALL, "name=sweep", "from=runs/easy_vqa", "gate=joint,predictor", "seed=range(0,3)", "seeds=1"
    )
    assert [job.name for job in made.jobs] == [
        f"gate={gate},seed={seed}" for gate in ("joint", "predictor") for seed in range(3)
    ]
    assert made.directory == Path("runs/sweep")
    assert "from=runs/easy_vqa" in made.jobs[0].fixed
    with pytest.raises(UserError, match="seed=-1"):  # the third value, of which one combination is composed
        planned(*SMALL, "name=sweep", "from=runs/easy_vqa", "gate=joint,predictor", "seed=0,1,-1", "seeds=1")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("name=sweep", "seed=0,1"),
            "2 jobs of the sweep would each make the same flex stage; allowed: from=<its run>",
        ),
        (("name=sweep", "from=runs/easy_vqa", "seed=0,0"), "two jobs seed=0"),
        (
            ("name=sweep", "from=runs/easy_vqa", "reward.price=0.1,-1"),
            "reward.price=-1.0: allowed: at least 0, or null",
        ),
        (
            ("name=sweep", "from=runs/easy_vqa", "reward.price=0.1,0.2", "reward.target=0.5"),
            "allowed: one of them",
        ),
        (("name=sweep", "from=runs/easy_vqa", "seed=1", "seed=0,2"), "seed=0,2 and another value of seed"),
        (("name=sweep", "from=runs/easy_vqa", "gate.width=interval(4,8)"), "allowed: hydra/sweeper=pareto"),
        (("from=runs/easy_vqa", "hydra/sweeper=pareto", "stages=[gate]", "seed=1,2"), "stages with frontier"),
        (("from=runs/easy_vqa", "hydra/sweeper=pareto"), "has nothing to choose"),
        (("from=runs/easy_vqa", "name=a,b", "seed=0,1"), "name=a,b gives a sweep several places"),
        (("from=runs/easy_vqa", "root=a,b"), "root=a,b gives a sweep several places"),
        (("from=runs/easy_vqa", "++name=choice(a,b)"), "++name=choice(a,b) gives a sweep several places"),
        (
            ("from=runs/easy_vqa", "experiment=easy_vqa,scenes"),
            "would run in runs/easy_vqa/experiment=easy_vqa, and the sweep is in runs/run",
        ),
        (
            (
                "from=runs/easy_vqa",
                "trainer.devices=2",
                "trainer.strategy=ddp",
                "hydra/sweeper=pareto",
                "seed=1,2",
            ),
            "sweep anew",
        ),
        (
            (
                "from=runs/easy_vqa",
                "trainer.devices=2",
                "hydra/launcher=slurm",
                "hydra.launcher.tasks_per_node=1",
            ),
            "sweep anew",
        ),
    ],
)
def test_a_sweep_that_cannot_be_right_is_refused(
    overrides: tuple[str, ...],
    said: str,
    rolled: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(rolled)
    small = [
        override for override in SMALL if override.split("=")[0] not in {o.split("=")[0] for o in overrides}
    ]
    assert said in refused(capsys, "train", "-m", *small, "seeds=1", *overrides)
    assert not (rolled / "runs/sweep").exists()


def test_slurms_tasks_may_be_the_ranks_of_a_search(rolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rolled)
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra/launcher=slurm"]
    ranks.append("loader.batch_images=1")  # flex, which is borrowed, saw as many images a step on one rank
    planned(*SMALL, "name=sweep", "from=runs/easy_vqa", *ranks, "hydra/sweeper=pareto", "seed=1,2", "seeds=1")


@pytest.mark.parametrize(("variable", "by"), [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")])
def test_a_sweep_that_every_rank_would_start_is_refused(
    variable: str, by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "2")
    assert f"-m within {by} would sweep once in each of 2 ranks" in refused(capsys, "train", "-m", "seed=0,1")


@pytest.mark.parametrize(
    ("given", "extra"),
    [("hydra/launcher=slurm", "cluster"), ("hydra/sweeper=pareto", "cluster"), ("hydra/launcher=ray", "ray")],
)
def test_what_is_not_installed_is_named_with_its_extra(
    given: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyrskip.sweeps.plan.find_spec", lambda name: None)
    assert f"pip install 'pyrskip[{extra}]'" in refused(capsys, "train", "-m", "seed=0,1", given)


def test_a_launcher_that_fails_is_one_line(
    rolled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rolled)
    monkeypatch.setenv("PATH", "/nowhere")  # no sbatch
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "train",
                "-m",
                *SMALL,
                "name=queueless",
                "from=runs/easy_vqa",
                "seeds=1",
                "seed=0,1",
                "hydra/launcher=slurm",
            ]
        )
    assert exit_.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "are you indeed on a slurm cluster?" in said[0]
    assert said[1:] == [f"error: runs/queueless/seed={seed} is waiting" for seed in (0, 1)]


@pytest.mark.parametrize(("accelerator", "gpus"), [("gpu", 4), ("cpu", None)])
def test_slurm_is_asked_for_the_trainers_gpus(accelerator: str, gpus: int | None) -> None:
    planned("experiment=easy_vqa", "stages=[data]")  # registers the resolver
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        ranks = [f"trainer.accelerator={accelerator}", "trainer.devices=4", "hydra/launcher=slurm"]
        launcher = hydra.compose("train", ranks, return_hydra_config=True).hydra.launcher
        assert (launcher.gpus_per_node, launcher.tasks_per_node) == (gpus, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "takes status and a sweep's directory"),
        (("status",), "takes status and a sweep's directory"),
        (("rerun",), "takes one job's directory"),
        (("status", "nowhere"), "nowhere is no sweep"),
        (("rerun", "nowhere"), "nowhere is no job of a sweep"),
        (("rerun", "nowhere", "seed=2"), "allowed beside it: hydra/launcher=<name>"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "sweep", *arguments)


def test_a_gate_that_is_behind_is_given_up_and_others_are_not(rolled: Path) -> None:
    borrow = f"from={rolled / 'runs/easy_vqa'}"
    root = rolled / "runs/pruned"
    config = tiny(root, "name=first", borrow, "stages=[gate]", "ablations=[]", "rule.optimizer.steps=4")
    run_stages(config, {}, pruning.MedianPruning)
    kept = json.loads((root / "first" / pruning.FILE).read_text())
    assert 0 <= kept["0.25"][0] <= 1
    assert 0 < kept["0.25"][1] <= 1.1
    for i in range(4):  # four that cost nothing and know everything
        (root / f"other{i}").mkdir()
        (root / f"other{i}" / pruning.FILE).write_text('{"0.5": [1.0, 0.0]}')
    with pytest.raises(Pruned, match=r"at 50% of the training .* behind most of 5 others"):
        run_stages(replace(config, name="second"), {}, pruning.MedianPruning)
    run_stages(replace(config, name="third"), {})


def sweep(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [str(Path(sys.executable).parent / "pyrskip"), *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other_and_is_run_again_alone(rolled: Path) -> None:
    varied = [
        "name=fails",
        "from=runs/easy_vqa",
        "seeds=1",
        "seed=0,1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    blocked = rolled / "runs/fails/seed=0/gate"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a directory belongs")
    swept = sweep(rolled, "train", "-m", *SMALL, *varied)
    assert swept.returncode == 1
    said = swept.stderr.strip().splitlines()[-1]
    assert said.startswith("error: runs/fails/seed=0 is failed: ")
    first, second = read_jobs(rolled / "runs/fails")
    assert (first.state, second.state) == ("failed", "done")
    assert (first.directory / "error.txt").read_text().startswith("Traceback")
    before = (second.directory / "frontier.json").stat().st_mtime_ns
    blocked.unlink()
    again = sweep(rolled, "sweep", "rerun", "runs/fails/seed=0")
    assert again.returncode == 0, again.stderr
    assert [job.state for job in read_jobs(rolled / "runs/fails")] == ["done", "done"]
    assert (second.directory / "frontier.json").stat().st_mtime_ns == before
    assert point_of(read_job(rolled / "runs/fails/seed=0")) is not None


@pytest.mark.slow
def test_a_search_makes_what_is_chosen_twice_once(rolled: Path) -> None:
    search = [
        "hydra/sweeper=pareto",
        "hydra.sweeper.trials=4",
        "hydra.sweeper.at_once=4",
        "gate=joint,predictor",
        "seeds=1",
    ]
    swept = sweep(rolled, "train", "-m", *SMALL, "name=twice", "from=runs/easy_vqa", *search)
    assert swept.returncode == 0, swept.stderr
    assert {job.name for job in read_jobs(rolled / "runs/twice")} <= {"gate=joint", "gate=predictor"}
    assert swept.stdout.count("#") <= 2  # Hydra's lines of jobs
