"""Claims about trackers: a training goes on whatever they do, loses no row, and is one run however often it
is resumed."""

import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger

from pyrskip.config import read
from pyrskip.data.datamodule import StepData
from pyrskip.launch import conf_directory
from pyrskip.report.figures import heat_map
from pyrskip.reward import RewardConfig
from pyrskip.stages import run_stages
from pyrskip.tracking.guard import PATIENCE, Guard
from pyrskip.tracking.loggers import IDS, Job, loggers
from pyrskip.tracking.media import PICTURES, ROWS, Chart, Histogram, Pictures, Table, send
from pyrskip.tracking.rows import Rows
from pyrskip.tracking.watch import LOOKS, SHARE, Watch
from pyrskip.training.trainer import TrainerConfig, build_trainer
from tests.configs import TWO_STEPS
from tests.offline import history, offline_runs, run_record
from tests.toys import toy_environment, toy_module
from tests.wandb_server import wandb_server

JOB = Job("sweep/seed=1", "gate/seed-1", ("easy_vqa", "supervised"), {"rule": {"name": "supervised"}})
WANDB = {"_target_": "pytorch_lightning.loggers.WandbLogger", "project": "pyrskip"}
SECOND = 1.0


class Broken(DummyLogger):
    """A logger whose tracker is away for a while."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures, self.calls, self.rows = failures, 0, []  # type: ignore[var-annotated]

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("the tracker\n is away")
        self.rows.append(metrics)


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "csv/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, and what W&B keeps in the process and its environment is gone afterwards."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


def test_a_tracker_that_fails_is_told_once_and_the_csv_has_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(failures=2)
    guards = [Guard(Rows(tmp_path), "csv", lasting=True), Guard(broken, "mlflow")]
    for step in range(5):
        for guard in guards:
            guard.log_metrics({"train/loss": 0.5}, step)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "warning: logger.mlflow failed (the tracker is away); training goes on, csv/metrics.csv has every "
        "line"
    ]
    assert len(broken.rows) == 3  # it is asked again
    assert [row["step"] for row in rows(tmp_path)] == list("01234")


def test_a_tracker_that_stays_away_is_left_alone() -> None:
    broken = Broken(failures=100)
    guard = Guard(broken, "mlflow")
    for step in range(20):
        guard.log_metrics({"train/loss": 0.5}, step)
    assert broken.calls == PATIENCE


def test_a_metric_that_is_nan_is_told_once_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = Guard(Rows(tmp_path), "csv", lasting=True)
    for step in range(3):
        guard.log_metrics({"train/loss": float("nan"), "reward/mean": 0.1}, step)
    assert capsys.readouterr().err == "warning: train/loss is nan at step 0; training goes on, said once\n"
    assert [row["train/loss"] for row in rows(tmp_path)] == ["nan"] * 3


def test_a_full_disk_loses_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Guard(Rows(tmp_path), "csv", lasting=True)
    guard.log_metrics({"train/loss": 0.25}, 0)
    file = tmp_path / "csv/metrics.csv"
    before, (soft, hard) = file.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # room for a part of the next row: it must not stay there as half a row
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, hard))
        guard.log_metrics({"train/loss": 0.5}, 1)
        guard.log_metrics({"train/loss": 0.5, "gate/entropy": 1.0}, 2)
        assert file.read_text() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("warning: logger.csv failed") == 1
    guard.log_metrics({"train/loss": 0.5}, 3)
    assert [row["step"] for row in rows(tmp_path)] == list("0123")
    assert [row["gate/entropy"] for row in rows(tmp_path)] == ["", "", "1.0", ""]


def test_a_csv_resumed_twice_is_one_file_with_each_step_once(tmp_path: Path) -> None:
    # each process goes on from a checkpoint before the last row of the one before it, once with another
    # metric
    for began, ended, extra in ((0, 5, {}), (3, 8, {"val/reward": 1.0}), (6, 10, {})):
        writer = Rows(tmp_path)
        for step in range(began, ended):
            writer.log_metrics({"train/loss": float(step)} | extra, step)
    written = rows(tmp_path)
    assert [int(row["step"]) for row in written] == list(range(10))
    assert [float(row["train/loss"]) for row in written] == list(range(10))
    assert [row["val/reward"] for row in written] == [""] * 3 + ["1.0"] * 3 + [""] * 4


def test_a_row_that_was_cut_off_loses_no_other(tmp_path: Path) -> None:
    Rows(tmp_path).log_metrics({"train/loss": 1.0}, 0)
    with (tmp_path / "csv/metrics.csv").open("a") as file:
        file.write("0.")  # killed while it wrote
    Rows(tmp_path).log_metrics({"train/loss": 2.0}, 1)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]


def test_without_a_login_wandb_writes_locally(
    tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with loggers({"wandb": WANDB}, tmp_path, JOB) as built:
        for guard in built:
            guard.log_metrics({"train/loss": 0.5}, 3)
    assert (
        "warning: logger.wandb: wandb is not logged in; it is written locally, for `wandb sync` later"
        in capsys.readouterr().err
    )
    (path,) = offline_runs(tmp_path)
    assert [row["train/loss"] for row in history(path)] == [0.5]
    run = run_record(path)
    assert (run.run_group, run.job_type, list(run.tags)) == ("sweep", "gate", ["easy_vqa", "supervised"])
    assert run.run_id == json.loads((tmp_path / IDS).read_text())["wandb"]


@pytest.mark.slow
def test_without_a_network_wandb_writes_locally(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    node = WANDB | {"settings": {"init_timeout": 3.0}}
    with loggers({"wandb": node}, tmp_path, JOB) as built:
        for guard in built:
            guard.log_metrics({"train/loss": 0.5}, 3)
    assert capsys.readouterr().err.count("it is written locally") == 1
    assert [row["train/loss"] for path in offline_runs(tmp_path) for row in history(path)] == [0.5]


@pytest.mark.slow
def test_a_run_deleted_on_the_server_is_begun_anew_and_others_are_resumed(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def train(step: int) -> str:
        with loggers({"wandb": WANDB}, tmp_path, JOB) as built:
            for guard in built:
                guard.log_metrics({"train/loss": 0.5}, step)
        return str(json.loads((tmp_path / IDS).read_text())["wandb"])

    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        first = train(0)
        assert train(1) == first
        assert [row["trainer/global_step"] for row in server.history(first)] == [0, 1]
        server.deleted.add(first)
        second = train(2)
        assert second != first
        assert [row["trainer/global_step"] for row in server.history(second)] == [2]
    assert "a new run is started" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]


def small(root: Path, logger: str, *overrides: str) -> Any:
    given = ("stages=[data,flex]", "trainer.log_every=1", f"logger={logger}", "flex.optimizer.steps=9")
    kept = [o for o in TWO_STEPS if not o.startswith("flex.optimizer")]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return read(
            compose("train", overrides=["experiment=easy_vqa", f"root={root}", *kept, *given, *overrides])
        )


def killed_twice(root: Path, logger: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training that is killed at two steps, and resumed both times."""
    from pyrskip.training.flex import FlexModule

    step = FlexModule.training_step
    for last in (3, 6, 99):

        def dies(self: Any, batch: Any, batch_idx: int, last: int = last) -> torch.Tensor:
            if batch_idx == last:
                raise RuntimeError("killed")
            return step(self, batch, batch_idx)

        monkeypatch.setattr(FlexModule, "training_step", dies)
        if last == 99:
            return run_stages(*small(root, logger)) / "flex"
        with pytest.raises(RuntimeError, match="killed"):
            run_stages(*small(root, logger))
    raise AssertionError


@pytest.mark.slow
def test_a_run_resumed_twice_is_one_run(tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    tb = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flex = killed_twice(tmp_path, "[wandb_offline,tensorboard,mlflow]", monkeypatch)
    steps = list(range(9))
    assert [int(row["step"]) for row in rows(flex) if row["train/loss"]] == steps

    events = tb.EventAccumulator(str(flex / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps

    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "pyrskip"]
    (run,) = client.search_runs([experiment])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == steps

    paths = offline_runs(flex)
    assert len(paths) == 3 and len({run_record(path).run_id for path in paths}) == 1
    with wandb_server() as server:
        environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        environment.pop("WANDB_MODE", None)
        for path in paths:
            sync = [str(Path(sys.executable).parent / "wandb"), "sync", str(path.parent)]
            assert subprocess.run(sync, env=environment, capture_output=True, timeout=120).returncode == 0
        (uploaded,) = server.files
        told = server.history(uploaded)
    assert [row["trainer/global_step"] for row in told if "train/loss" in row] == steps
    assert [row["_step"] for row in told] == list(range(len(told)))


def test_several_loggers_are_given_as_a_list(tmp_path: Path) -> None:
    _, nodes = small(tmp_path, "[wandb_offline,tensorboard,mlflow]")
    assert set(nodes) == {"wandb", "tensorboard", "mlflow"}


def media() -> dict[str, Any]:
    many = 3 * max(PICTURES, ROWS)
    images = [Image.fromarray(np.full((4, 4, 3), i % 256, dtype=np.uint8)) for i in range(many)]
    return {
        "media/samples": Pictures(images, ["what is it? a"] * many),
        "media/predictions": Table(("kept", "type"), [[image, "color | shape"] for image in images]),
        "media/tokens": Histogram([1.0, 2.0, 2.0]),
        "media/selections_by_type": Chart(heat_map({"color": [0.5, 0.5]}, ["glance", "1"])),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wandb", "tensorboard", "mlflow"])
def test_media_reach_every_tracker_at_a_fixed_cost(
    kind: str, tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(kind)
    targets: dict[str, dict[str, Any]] = {
        "wandb": WANDB | {"offline": True},
        "tensorboard": {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "name": "tensorboard"},
        "mlflow": {
            "_target_": "pytorch_lightning.loggers.MLFlowLogger",
            "save_dir": str(tmp_path / "mlruns"),
        },
    }
    with loggers({kind: targets[kind]}, tmp_path, JOB) as built:
        send(built, media(), 5)
    assert "failed" not in capsys.readouterr().err
    found = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    if kind == "wandb":
        (row,) = history(offline_runs(tmp_path)[0])
        names = {name.split(".")[0] for name in row}
        assert set(media()) <= names
        assert sum(name.startswith("samples_") for name in found) == PICTURES
    elif kind == "tensorboard":
        assert any(name.startswith("events.out") for name in found)
    else:
        assert sum(name.endswith(".png") for name in found) == PICTURES
        assert {"predictions.json", "tokens.json", "selections_by_type.html"} <= set(found)
        table = json.loads(next(tmp_path.rglob("predictions.json")).read_text())
        assert table["columns"] == ["type"] and len(table["data"]) == ROWS


class Training:
    """As much of a Trainer as Watch asks for."""

    num_training_batches = 100
    is_global_zero = True
    global_step = 0


def watched(look_seconds: float, step_seconds: float) -> int:
    """How often a training of 100 steps is looked at while it runs, by a clock that it moves itself."""
    now, looks = [0.0], 0
    watch = Watch(toy_environment(), [], clock=lambda: now[0])

    def look(*_: Any, **__: Any) -> None:
        nonlocal looks
        looks += 1
        now[0] += look_seconds

    watch.look = look  # type: ignore[method-assign]
    module: Any = toy_module("supervised", "utility", RewardConfig())
    watch.on_train_start(Training(), module)  # type: ignore[arg-type]
    for step in range(100):
        now[0] += step_seconds
        watch.on_train_batch_end(Training(), module, None, None, step)  # type: ignore[arg-type]
    spent = looks * look_seconds
    # it may only find out that a look took too long once it was taken
    assert spent <= SHARE * now[0] + look_seconds
    return looks


def test_waiting_for_data_is_told_apart_from_the_step(tmp_path: Path) -> None:
    def slow(index: list[int]) -> torch.Tensor:
        time.sleep(0.02)
        return torch.tensor(index)

    module = toy_module("supervised", "utility", RewardConfig(), steps=10)
    guard = Guard(Rows(tmp_path), "csv", lasting=True)
    trainer = build_trainer(TrainerConfig(log_every=5, quiet=True), tmp_path, [guard])
    trainer.fit(module, StepData(range(100), slow, 16, 10))
    told = [row for row in rows(tmp_path) if row["time/step"]]
    assert [row["step"] for row in told] == ["4", "9"]
    for row in told:
        assert 0.02 <= float(row["time/data_wait"]) < float(row["time/step"])
        assert float(row["time/questions_per_second"]) == pytest.approx(16 / float(row["time/step"]))


def test_a_gate_is_looked_at_a_fixed_number_of_times() -> None:
    assert watched(look_seconds=0.001, step_seconds=SECOND) == LOOKS - 1  # the last is when training is over


def test_looking_takes_no_more_than_its_share_of_the_training() -> None:
    # a look of four steps is 2 % of 200 steps: the first is taken, the next would be too much for the rest of
    # the 100
    assert watched(look_seconds=4.0, step_seconds=SECOND) == 1


def test_looking_changes_no_training_and_logs_what_inference_would_decide(tmp_path: Path) -> None:
    module = toy_module("supervised", "utility", RewardConfig(0.3))
    watch = Watch(toy_environment(), [Guard(Rows(tmp_path), "csv", lasting=True)])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    watch.look(module.train(), 7, last=True)
    assert torch.rand(4).equal(expected)
    assert module.gate.training
    (row,) = rows(tmp_path)
    environment, index = watch.environment, watch.rows
    seen = environment.observe(index, torch.full((len(index),), 0.3))
    asked = module.gate.eval().policy(seen).mode()
    assert float(row["val/accuracy/all"]) == pytest.approx(float(environment.score(index, asked).mean()))
    assert float(row["val/tokens"]) == pytest.approx(float(environment.tokens(index, asked).mean()))
    assert float(row["val/price"]) == pytest.approx(0.3)
    assert {
        "val/accuracy/easy",
        "val/accuracy/hard",
        "val/keep_rate/level_0",
        "val/information",
    } <= row.keys()
