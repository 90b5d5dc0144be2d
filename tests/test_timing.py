"""Claims about measured times: bounded, and of as many decisions as can be timed well."""

from itertools import pairwise

import pytest
import torch

from pyrskip.evaluation import timing
from pyrskip.evaluation.timing import GATED, ROUNDS, Timing, measure, spread
from tests.exports import UNIT, tiny_gate
from tests.models import tiny_batch, tiny_model


def test_few_decisions_are_all_timed_and_many_at_equal_steps_of_their_flops() -> None:
    assert spread([3.0, 1.0, 2.0], 3) == [1, 2, 0]
    assert spread([float(i) for i in range(101)], 5) == [0, 25, 50, 75, 100]
    assert spread([1.0] * 50 + [10.0], 5) == [0, 50]


def timed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> tuple[Timing, int]:
    """A tiny model's times with two of its four decisions timed, and the rounds at batch 1. Every look at the
    clock is a second later."""
    model = tiny_model()
    gate = tiny_gate(model)
    rounds, now = 0, 0.0

    def encode(*arguments: object) -> object:
        nonlocal rounds
        rounds += 1
        return glance(*arguments)  # type: ignore[arg-type]

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    glance = timing.encode_glance
    monkeypatch.setattr(timing, "TIMED", 2)
    monkeypatch.setattr(timing, "perf_counter", tick)
    monkeypatch.setattr(timing.Scripted, "glance", lambda self, rows: glance(self.model, rows))
    monkeypatch.setattr(timing, "encode_glance", encode)
    actions = gate.layout.actions
    flops = torch.tensor([float(i) for i in range(len(actions))], dtype=torch.float64)
    found = measure(model, {"gate": gate}, tiny_batch(), actions, gate.layout.budget, UNIT, flops, seconds)
    return found, rounds


def test_no_round_begins_when_the_time_is_over_and_one_is_always_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timed(monkeypatch, 0.001)[1] == 2 * 2
    monkeypatch.undo()
    assert timed(monkeypatch, 1e9)[1] == 2 * (1 + ROUNDS)


def test_decisions_between_two_that_are_timed_take_times_between_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for clock in vars(timed(monkeypatch, 0.001)[0]).values():
        for prefix in ("", GATED):
            times = [clock.total[prefix + name] for name in tiny_gate(tiny_model()).layout.actions.names]
            steps = [b - a for a, b in pairwise(times)]
            assert len(times) == 4 and steps == pytest.approx([steps[0]] * 3)
