"""Claims about sweeps: where jobs are, what becomes of them, what is refused before the first runs, and what a search asks."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.evaluation.runs import load_runs
from pyrskip.launch import conf_directory
from pyrskip.stages import run_stages
from pyrskip.sweeps import rungs
from pyrskip.sweeps.jobs import LONGEST, Job, Pruned, keep, lock, name_of, plan, read_job, read_jobs, run_job
from pyrskip.sweeps.overview import FIGURE, TABLE, point_of, points_of, rows_of, write_overview
from pyrskip.sweeps.plan import plan_sweep
from pyrskip.sweeps.search import Outcome, search
from pyrskip.sweeps.space import distribution
from tests.runs import write_run
from tests.test_cli import refused
from tests.test_stages import TWO_STEPS, tiny

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ["experiment=easy_vqa", "ablations=[]", *(o for o in TWO_STEPS if not o.startswith("seeds="))]


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs/easy_vqa up to its rollouts."""
    directory = tmp_path_factory.mktemp("work")
    run_stages(tiny(directory / "runs", "stages=[data,flex,rollouts]"), {})
    return directory


def job(directory: Path, *varied: str, state: str = "waiting", why: str = "") -> Job:
    return Job(directory / name_of(varied), ("experiment=easy_vqa",), varied, state, why)


def planned(*overrides: str) -> Any:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return plan_sweep(overrides)


def test_a_jobs_directory_is_a_function_of_what_varies() -> None:
    assert name_of(["gate=joint", "seed=1"]) == "gate=joint,seed=1"
    assert name_of(["vision.weights=a/b"]) == "vision.weights=a-b"
    long = [f"evaluation.prices=[{','.join(str(i) for i in range(200))}]"]
    assert len(name_of(long)) <= LONGEST
    assert name_of(long) == name_of(long) != name_of([long[0].replace("199", "200")])


@pytest.mark.parametrize(
    ("state", "now"), [("done", "done"), ("pruned", "pruned"), ("failed", "waiting"), ("running", "waiting")]
)
def test_a_job_that_is_started_again_waits_again_unless_it_is_over(state: str, now: str, tmp_path: Path) -> None:
    keep(job(tmp_path, "seed=1", state=state, why="because"))
    plan(replace(job(tmp_path, "seed=1"), fixed=("experiment=other",)))
    (kept,) = read_jobs(tmp_path)
    assert (kept.state, kept.fixed) == (now, ("experiment=other",))


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (None, "done", ""),
        (UserError("no such data"), "failed", "no such data"),
        (RuntimeError("boom"), "failed", "boom"),
        (Pruned("behind"), "pruned", "behind"),
    ],
)
def test_a_job_keeps_what_became_of_it(error: Exception | None, state: str, why: str, tmp_path: Path) -> None:
    def task() -> None:
        assert read_job(tmp_path / "seed=1").state == "running"
        if error is not None:
            raise error

    assert run_job(job(tmp_path, "seed=1"), task, str, first=True) == state
    (kept,) = read_jobs(tmp_path)
    assert (kept.state, kept.why, kept.varied) == (state, why, ("seed=1",))


def test_a_job_that_is_interrupted_is_stopped_and_not_failed(tmp_path: Path) -> None:
    def task() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job(tmp_path, "seed=1"), task, str, first=True)
    assert read_jobs(tmp_path)[0].state == "stopped"


def test_other_ranks_of_a_job_write_nothing(tmp_path: Path) -> None:
    def task() -> None:
        raise RuntimeError

    run_job(job(tmp_path, "seed=1"), task, str, first=False)
    assert not list(tmp_path.iterdir())


def test_two_sweeps_of_a_directory_are_refused_and_a_stale_lock_is_not(tmp_path: Path) -> None:
    holder = "import sys, time; from pathlib import Path; from pyrskip.sweeps.jobs import lock\n"
    holder += f"with lock(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="is being swept by another process"), lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/sweep cannot be written: Not a directory"), lock(tmp_path / "file/sweep"):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        keep(job(tmp_path / "file", "seed=1"))


@pytest.mark.parametrize("content", ["{", "[]", '{"fixed": [], "varied": [], "state": "odd", "why": ""}'])
def test_a_job_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1/job.json").write_text(content)
    with pytest.raises(UserError, match="seed=1/job.json cannot be read"):
        read_jobs(tmp_path)


def test_every_combination_is_planned_however_many_are_checked(rolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rolled)
    monkeypatch.setattr("pyrskip.sweeps.plan.CHECKED", 2)
    made = planned(*SMALL, "name=sweep", "from=runs/easy_vqa", "gate=joint,predictor", "seed=range(0,3)", "seeds=1")
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
        (("name=sweep", "seed=0,1"), "2 jobs of the sweep would each make the same flex stage; allowed: from=<its run>"),
        (("name=sweep", "from=runs/easy_vqa", "seed=0,0"), "two jobs seed=0"),
        (("name=sweep", "from=runs/easy_vqa", "reward.price=0.1,-1"), "reward.price=-1.0: allowed: at least 0, or null"),
        (("name=sweep", "from=runs/easy_vqa", "reward.price=0.1,0.2", "reward.target=0.5"), "allowed: one of them"),
        (("name=sweep", "from=runs/easy_vqa", "seed=1", "seed=0,2"), "seed=0,2 and another value of seed"),
        (("name=sweep", "from=runs/easy_vqa", "gate.width=interval(4,8)"), "allowed: hydra/sweeper=pareto"),
        (("from=runs/easy_vqa", "hydra/sweeper=pareto", "stages=[gate]", "seed=1,2"), "stages with frontier"),
        (("from=runs/easy_vqa", "hydra/sweeper=pareto"), "has nothing to choose"),
        (("from=runs/easy_vqa", "trainer.devices=2", "trainer.strategy=ddp", "hydra/sweeper=pareto", "seed=1,2"), "sweep anew"),
        (("from=runs/easy_vqa", "trainer.devices=2", "hydra/launcher=slurm", "hydra.launcher.tasks_per_node=1"), "sweep anew"),
    ],
)
def test_a_sweep_that_cannot_be_right_is_refused(
    overrides: tuple[str, ...], said: str, rolled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rolled)
    small = [override for override in SMALL if override.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    assert said in refused(capsys, "train", "-m", *small, "seeds=1", *overrides)
    assert not (rolled / "runs/sweep").exists()


def test_slurms_tasks_may_be_the_ranks_of_a_search(rolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rolled)
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra/launcher=slurm"]
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
        main(["train", "-m", *SMALL, "name=queueless", "from=runs/easy_vqa", "seeds=1", "seed=0,1", "hydra/launcher=slurm"])
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


def done(sweep: Path, *varied: str) -> Job:
    made = job(sweep, *varied, state="done")
    write_run(made.directory)
    keep(made)
    return made


def test_the_table_pools_seeds_and_marks_what_nothing_beats_on_validation(tmp_path: Path) -> None:
    jobs = [done(tmp_path, f"gate={gate}", f"seed={seed}") for gate in ("joint", "glance") for seed in (0, 1)]
    worse = json.loads((jobs[-1].directory / "frontier.json").read_text())
    for row in worse:  # of the second line's seed 1
        row["accuracy"] -= 0.2
    (jobs[-1].directory / "frontier.json").write_text(json.dumps(worse))
    points = write_overview(tmp_path, read_jobs(tmp_path))
    assert {p.line for p in points} == {"gate=joint", "gate=glance"}
    rows = [r for r in load_runs(jobs[0].directory)[0].rows if r.method == "gate" and r.split == "test"]
    price = rows[0].price
    first, second = (next(p for p in points if p.line == f"gate={g}" and p.price == price) for g in ("joint", "glance"))
    assert first.gates == 2 * sum(r.price == price for r in rows)
    assert second.accuracy == pytest.approx(first.accuracy - 0.1)
    assert {p.line for p in points if p.front} == {"gate=joint"}
    for p in points:
        beaten = any(q.val_accuracy >= p.val_accuracy and q.val_cost < p.val_cost for q in points)
        assert not (p.front and beaten)
    with (tmp_path / TABLE).open() as file:
        assert len(list(csv.DictReader(file))) == len(points)
    assert (tmp_path / FIGURE).stat().st_size > 10_000


def test_jobs_at_one_price_each_are_one_line(tmp_path: Path) -> None:
    for price in (0.1, 0.2):
        made = done(tmp_path, f"reward.price={price}")
        rows = json.loads((made.directory / "frontier.json").read_text())
        own = [row | {"price": price} for row in rows if row["method"] == "gate"][::8]
        own += [own[0] | {"split": "val"}]
        (made.directory / "frontier.json").write_text(json.dumps(own))
    lines = rows_of(read_jobs(tmp_path))
    assert list(lines) == ["gate"]
    assert [p.price for p in sorted(points_of(lines), key=lambda p: p.price)] == [0.1, 0.2]


def test_a_sweeps_status_names_jobs_states_and_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path, "seed=0")
    keep(job(tmp_path, "seed=1", state="failed", why="no room"))
    keep(job(tmp_path, "seed=2", state="running"))
    main(["sweep", "status", str(tmp_path)])
    said = capsys.readouterr().out
    assert "3 jobs: 1 running, 1 done, 1 failed" in said
    assert "no room" in said
    assert "silent for 0 min" in said


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
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "sweep", *arguments)


def test_a_job_is_behind_where_most_others_are_no_dearer_and_no_worse() -> None:
    others = [(0.9, 0.2), (0.8, 0.1), (0.7, 0.4), (0.9, 0.5)]
    assert rungs.is_behind((0.6, 0.6), others)
    assert rungs.is_behind((0.7, 0.45), others)  # three of four
    assert not rungs.is_behind((0.75, 0.3), others)  # two
    assert not rungs.is_behind((0.6, 0.05), others)  # nothing is as cheap
    assert not rungs.is_behind((0.6, 0.6), others[:3])  # too few to tell
    assert not rungs.is_behind((0.5, 0.5), [(0.5, 0.5)] * 4)  # alike


def test_a_gate_that_is_behind_is_given_up_and_others_are_not(rolled: Path) -> None:
    borrow = f"from={rolled / 'runs/easy_vqa'}"
    root = rolled / "runs/pruned"
    config = tiny(root, "name=first", borrow, "stages=[gate]", "ablations=[]", "rule.optimizer.steps=4")
    run_stages(config, {}, prunes=True)
    told = json.loads((root / "first" / rungs.FILE).read_text())
    assert 0 <= told["0.25"][0] <= 1
    assert 0 < told["0.25"][1] <= 1.1
    for i in range(4):  # four that cost nothing and know everything
        (root / f"other{i}").mkdir()
        (root / f"other{i}" / rungs.FILE).write_text('{"0.5": [1.0, 0.0]}')
    with pytest.raises(Pruned, match=r"at 50% of the training .* behind most of 5 others"):
        run_stages(replace(config, name="second"), {}, prunes=True)
    run_stages(replace(config, name="third"), {})


def space(*overrides: str) -> dict[str, Any]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {o.get_key_element(): distribution(o) for o in parsed}


SPACE = ("gate=joint,predictor", "gate.width=range(4,12)", "rule.optimizer.lr=tag(log,interval(0.001,0.1))")


def outcomes(batch: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [Outcome("done", (values["gate.width"] / 12, values["rule.optimizer.lr"])) for values in batch]


def test_a_search_stays_in_its_ranges_and_comes_to_its_number_of_jobs(tmp_path: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    search(tmp_path, space(*SPACE), 10, 4, 0, lambda batch: [asked.extend(batch), *outcomes(batch)][1:])
    assert len(asked) == 10
    assert {values["gate"] for values in asked} == {"joint", "predictor"}
    assert {values["gate.width"] for values in asked} <= set(range(4, 12))
    assert all(0.001 <= values["rule.optimizer.lr"] <= 0.1 for values in asked)


def test_a_search_that_was_killed_goes_on_with_the_jobs_it_had_asked_for(tmp_path: Path) -> None:
    batches: list[Sequence[Mapping[str, Any]]] = []

    def killed(batch: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return outcomes(batch)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, space(*SPACE), 7, 2, 0, killed)
    search(tmp_path, space(*SPACE), 7, 2, 0, killed)
    assert batches[2] == batches[1]
    assert sum(map(len, batches)) - len(batches[1]) == 7
    distinct = {json.dumps(dict(values)) for batch in batches for values in batch}
    assert len(distinct) == 7
    search(tmp_path, space(*SPACE), 7, 2, 0, lambda batch: pytest.fail("nothing is left to ask"))


def test_a_search_goes_on_past_jobs_that_fail_or_are_given_up(tmp_path: Path) -> None:
    states = iter(("failed", "pruned", "running", "done", "done"))

    def launch(batch: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        return [Outcome(state, (0.5, 0.5) if state == "done" else None) for _, state in zip(batch, states, strict=False)]

    search(tmp_path, space(*SPACE), 5, 1, 0, launch)
    assert next(states, None) is None


def test_another_search_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    search(tmp_path, space(*SPACE), 1, 1, 0, outcomes)
    with pytest.raises(UserError, match="in other ranges"):
        search(tmp_path, space("gate.width=range(4,20)"), 2, 1, 0, outcomes)


def sweep(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [str(Path(sys.executable).parent / "pyrskip"), *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other_and_is_run_again_alone(rolled: Path) -> None:
    varied = ["name=fails", "from=runs/easy_vqa", "seeds=1", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
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
    search = ["hydra/sweeper=pareto", "hydra.sweeper.trials=4", "hydra.sweeper.at_once=4", "gate=joint,predictor", "seeds=1"]
    swept = sweep(rolled, "train", "-m", *SMALL, "name=twice", "from=runs/easy_vqa", *search)
    assert swept.returncode == 0, swept.stderr
    assert {job.name for job in read_jobs(rolled / "runs/twice")} <= {"gate=joint", "gate=predictor"}
    assert swept.stdout.count("#") <= 2  # Hydra's lines of jobs
