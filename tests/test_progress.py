"""Claims about progress: how fast, how long yet, and never silent for long."""

import re
import sys
from io import StringIO
from time import sleep
from typing import Any

import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader

import pyrskip.progress as told
from pyrskip.progress import duration, each, paced, progress, shown
from pyrskip.reward import RewardConfig
from pyrskip.training.progress import ShowProgress
from tests.toys import batches, toy_module


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only number is what time it is."""
    now = [0.0]
    monkeypatch.setattr(told, "monotonic", lambda: now[0])
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_ten_steps_say_how_long_all_will_take(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("flex", 300, "step") as work:
        for step in range(300):
            clock[0] += 20 if step == 0 else 2  # the first one sets up what all use
            work.advance()
    assert lines(capsys) == [
        "  flex: 10 of 300 steps, 2 s a step: about 10 min in all",
        "  flex: 300 steps in 10 min",
    ]


def test_what_has_been_resumed_counts_its_own_steps_alone(clock: list[float]) -> None:
    with progress("flex", 1000, "step") as work:
        for step in (901, 902, 903):
            clock[0] += 5
            work.reach(step)
        assert work.state() == "903 of 1000 steps, 5 s a step, 8 min left"


def test_a_line_comes_however_long_a_step_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(told, "EVERY", 0.05)
    with progress("flex", 3, "step"):
        sleep(0.4)
    said = lines(capsys)
    assert len(said) >= 3
    assert set(said) == {"  flex: 0 of 3 steps after 0 s"}


def test_brief_and_hidden_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(each(range(50), "data", "file")) == list(range(50))
    with shown(False), progress("flex", 30, "step") as work:
        for _ in range(30):
            clock[0] += 40
            work.advance()
    assert lines(capsys) == []


def test_what_else_is_said_is_looked_at_once_a_second(clock: list[float]) -> None:
    looked = []
    with shown(False), progress("flex", 100, "step") as work:
        for step in range(100):
            clock[0] += 0.1
            work.reach(step + 1, lambda step=step: str(looked.append(step)))
    assert len(looked) == 10


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("gate/seed-0", 20, "step") as work:
        for _ in range(20):
            clock[0] += 3
            work.reach(work.done + 1, lambda: "loss 0.5")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "gate/seed-0 ━" in text
    assert "20 steps in 60 s  loss 0.5" in text


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (89, "89 s"), (600, "10 min"), (5400, "1.5 h"), (90000, "25.0 h")]
)
def test_durations_are_short_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_paces_are_read_without_arithmetic() -> None:
    assert [paced(rate, "batch") for rate in (0.5, 2.55, 1234.0)] == [
        "2 s a batch",
        "2.5 batches/s",
        "1234 batches/s",
    ]


def test_a_training_tells_loss_keep_rate_and_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(told, "BRIEF", 0.0)
    module: Any = toy_module("supervised", "utility", RewardConfig(), steps=20)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[ShowProgress("gate/seed-0")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(batches(module), batch_size=None))  # type: ignore[arg-type]
    assert re.fullmatch(
        r"  gate/seed-0: 20 steps in \d+ s  loss \d\.\d{4}  score \d\.\d{4}  cost \d\.\d{4}  keep \d\.\d{4}",
        lines(capsys)[-1],
    )
