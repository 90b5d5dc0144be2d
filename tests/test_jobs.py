"""Claims about jobs of a sweep: where they are, what becomes of them, and what is told of them all."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pyrskip import files
from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.evaluation.runs import load_runs
from pyrskip.files import run_lock
from pyrskip.sweeps import pruning
from pyrskip.sweeps.jobs import LONGEST, Pruned, keep, name_of, plan, read_job, read_jobs, run_job
from pyrskip.sweeps.overview import FIGURE, TABLE, points_of, rows_of, write_overview
from tests.configs import REPOSITORY
from tests.runs import done, job


def test_a_jobs_directory_is_a_function_of_what_varies() -> None:
    assert name_of(["gate=joint", "seed=1"]) == "gate=joint,seed=1"
    assert name_of(["vision.weights=a/b"]) == "vision.weights=a-b"
    long = [f"evaluation.prices=[{','.join(str(i) for i in range(200))}]"]
    assert len(name_of(long)) <= LONGEST
    assert name_of(long) == name_of(long) != name_of([long[0].replace("199", "200")])


@pytest.mark.parametrize(
    ("state", "now"), [("done", "done"), ("pruned", "pruned"), ("failed", "waiting"), ("running", "waiting")]
)
def test_a_job_that_is_started_again_waits_again_unless_it_is_over(
    state: str, now: str, tmp_path: Path
) -> None:
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


def test_two_sweeps_of_a_directory_are_refused_and_a_stale_lock_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    holder = "import time; from pathlib import Path; from pyrskip.files import run_lock\n"
    holder += f"with run_lock(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    said = rf"{tmp_path} is in use by process {process.pid} on .*; allowed: wait for its end"
    with pytest.raises(UserError, match=said), run_lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run_lock(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="file/sweep cannot be written: Not a directory"),
        run_lock(tmp_path / "file/sweep"),
    ):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        keep(job(tmp_path / "file", "seed=1"))


@pytest.mark.parametrize("content", ["{", "[]", '{"fixed": [], "varied": [], "state": "odd", "why": ""}'])
def test_a_job_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1/job.json").write_text(content)
    with pytest.raises(UserError, match="seed=1/job.json cannot be read"):
        read_jobs(tmp_path)


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
    first, second = (
        next(p for p in points if p.line == f"gate={g}" and p.price == price) for g in ("joint", "glance")
    )
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


def test_a_sweeps_status_names_jobs_states_and_last_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(tmp_path, "seed=0")
    keep(job(tmp_path, "seed=1", state="failed", why="no room"))
    keep(job(tmp_path, "seed=2", state="running"))
    main(["sweep", "status", str(tmp_path)])
    said = capsys.readouterr().out
    assert "3 jobs: 1 running, 1 done, 1 failed" in said
    assert "no room" in said
    assert "silent for 0 min" in said


def test_a_job_is_behind_where_most_others_are_no_dearer_and_no_worse() -> None:
    others = [(0.9, 0.2), (0.8, 0.1), (0.7, 0.4), (0.9, 0.5)]
    assert pruning.is_behind((0.6, 0.6), others)
    assert pruning.is_behind((0.7, 0.45), others)  # three of four
    assert not pruning.is_behind((0.75, 0.3), others)  # two
    assert not pruning.is_behind((0.6, 0.05), others)  # nothing is as cheap
    assert not pruning.is_behind((0.6, 0.6), others[:3])  # too few to tell
    assert not pruning.is_behind((0.5, 0.5), [(0.5, 0.5)] * 4)  # alike
