"""Claims about memory: what tiles and selections take is known before any work, and refused where it is more
than there is."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet, count
from pyrskip.errors import UserError
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GATES, GateConfig
from pyrskip.observation import Layout, Observation
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts import rollout
from pyrskip.rollouts.environments import in_parts
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.stages import memory, run_stages
from pyrskip.stages.memory import TOLD, Need, learned, machine, rolled_out
from pyrskip.stages.run import Run
from tests.configs import tiny
from tests.models import tiny_batch, tiny_model

GRID = (4, 4, 1)
FINE = Pyramid(512, 3, 8, (16, 8, 1))


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that tensors hold at once while `work` runs, beside those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_a_pass_of_the_rollouts_takes_as_much_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, drawn = tiny_model(GRID), tiny_batch(), 400

    def scored(
        model: object, batch: object, features: object, asked: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return torch.zeros(asked.shape[:2]), torch.zeros(asked.shape[:2])

    monkeypatch.setattr(rollout, "score_native", scored)
    actions = ActionSet.by_level(model.pyramid)
    module = RolloutModule(model, actions, BudgetRule(), "gate", drawn=drawn)
    config = tiny(tmp_path, f"pyramid.grid={list(GRID)}", f"actions.drawn={drawn}", "loader.rollout_images=1")
    asked, table = rolled_out(config, len(actions), {"gate": (1, len(batch))})
    took = allocated(lambda: module.predict_step(batch, 0))
    assert 0.95 * took < asked.bytes < 1.05 * took
    found = module.predict_step(batch, 0)
    assert found is not None and found.drawn is not None and found.probability is not None
    tensors = (found.score, found.probability, *vars(found.cost).values(), found.drawn)
    assert sum(t.nbytes for t in tensors) * memory.WRITTEN == pytest.approx(table.bytes)


@pytest.mark.slow
def test_a_table_is_held_as_often_as_is_said_while_it_is_written(tmp_path: Path) -> None:
    columns, rows = 2002, 1500
    code = f"""
import sys
from pathlib import Path
from dataclasses import replace
import torch
from pyrskip.cost import Cost
from pyrskip.rollouts.table import COSTS, RolloutTable
from tests.tables import synthetic_table
place = Path({str(tmp_path)!r})
table = synthetic_table(images={rows // 3})
actions = replace(table.actions, selection=table.actions.selection[:1].expand({columns - 2}, -1),
                  names=tuple(map(str, range({columns - 2}))))
if sys.argv[1] == "parts":
    for part in range(4):
        def of():
            return torch.ones({rows}, {columns})
        cost = Cost(*(of().double() for _ in COSTS))
        replace(table, actions=actions, score=of(), probability=of(), cost=cost).save(place / str(part))
else:
    def peak():  # of this process alone: a ru_maxrss begins at that of the process which started it
        return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)
    before = peak()
    RolloutTable.concatenate([RolloutTable.load(place / str(part)) for part in range(4)]).save(place)
    print(peak() - before)
"""
    for step in ("parts", "whole"):
        told = subprocess.run(
            [sys.executable, "-c", code, step], check=True, capture_output=True, text=True
        ).stdout
    held = 4 * rows * columns * TOLD
    assert int(told) / held == pytest.approx(memory.WRITTEN, rel=0.1)


@pytest.mark.parametrize(
    ("name", "policy"), [("region", "evidence"), ("region", "topk"), ("relevance", "quadtree")]
)
def test_a_gates_step_takes_at_least_what_is_said_and_less_than_twice(name: str, policy: str) -> None:
    rows, tiles, cells = 8, FINE.tiles, 8
    actions = ActionSet.by_level(FINE)
    shapes = {"query": (None, 16), "query_mask": (None,), "statistics": (tiles, 4)}
    shapes |= {"glance": (32, cells, cells), "glance_mask": (cells, cells)}
    config = GateConfig(name=name, policy=policy, width=64)
    gate = build_gate(config, Layout(shapes, tiles, actions, BudgetRule(), FINE.grid))
    seen = Observation(
        signals={
            "query": torch.rand(rows, 4, 16),
            "query_mask": torch.ones(rows, 4, dtype=torch.bool),
            "glance": torch.rand(rows, 32, cells, cells),
            "glance_mask": torch.ones(rows, cells, cells, dtype=torch.bool),
            "statistics": torch.rand(rows, tiles, 4),
        },
        capacity=FINE.capacity(torch.tensor([[512, 512]])).expand(rows, -1),
        cost=torch.rand(rows, len(actions)),
        price=torch.rand(rows),
    )
    took = allocated(lambda: gate.policy(seen).marginals().sum().backward())
    said = rows * GATES[name].memory(config, tiles)
    assert said < took < 2 * said


def test_a_gate_decides_on_as_many_rows_at_once_as_have_no_more_tiles() -> None:
    rows = torch.arange(10_000)
    assert [len(part) for part in in_parts(rows, 3)] == [4096, 4096, 1808]
    assert {len(part) for part in in_parts(rows[:4080], 321)} == {408}
    assert len(in_parts(rows[:5], 10**7)) == 5


@pytest.mark.parametrize(
    ("override", "limit", "said", "kept"),
    [
        ("actions.drawn=4000", 10**8, r"loader.rollout_images=(\d+) or less", "loader.rollout_images"),
        ("actions.drawn=4000", 5 * 10**6, r"actions.drawn=(\d+) or less", "actions.drawn"),
        ("actions=regions", 10**4, "fewer tiles", ""),
        ("rule.batch=4000", 2 * 10**7, r"rule.batch=(\d+) or less", "rule.batch"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work_with_a_key_that_makes_it_fit(
    override: str, limit: int, said: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine", lambda: limit)
    scenes = ("data=scenes", "data.scenes.size=512", "pyramid.size=512", "pyramid.levels=3")
    given = ("pyramid.grid=[8,4,1]", "gate=region", "language=cross", *scenes, override)
    with pytest.raises(
        UserError, match=f"not enough memory for .* 81 tiles .*GB; allowed: {said}"
    ) as refused:
        run_stages(tiny(tmp_path, *given), {})
    assert not any(tmp_path.iterdir())
    if kept:
        fits = re.search(said, str(refused.value))
        assert fits is not None
        memory.check_memory(Run(tiny(tmp_path, *given, f"{kept}={fits[1]}"), {}))
        with pytest.raises(UserError, match="not enough memory"):
            memory.check_memory(Run(tiny(tmp_path, *given, f"{kept}={int(fits[1]) + 1}"), {}))


def test_what_a_gate_learns_from_must_fit_the_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (
        "pyramid.grid=[4,4,1]",
        "gate=region",
        "trainer.accelerator=gpu",
        "stages=[gate]",
        "rule.batch=256",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10**6))
    said = (
        "not enough memory for a step of gate.name=region on 33 tiles .*the accelerator has 0.0 GB; allowed: "
    )
    with pytest.raises(UserError, match=said + "rule.batch="):
        memory.check_memory(Run(tiny(tmp_path, *given), {}))
    memory.check_memory(Run(tiny(tmp_path, *given, "trainer.strategy=ddp_fork"), {}))


def test_tables_grow_with_the_questions_that_there_are_and_the_largest_counts(tmp_path: Path) -> None:
    config = tiny(tmp_path, "pyramid.grid=[4,2,1]", "gate=region", "actions.drawn=10")
    splits = {"gate": (100, 700), "val": (20, 100), "test": (90, 800)}
    asked, table = rolled_out(config, 4, splits)
    assert "16 decisions on 21 tiles for each of 700 questions of gate" in table.what
    assert table.bytes == 700 * (16 * TOLD + 10 * 21) * memory.WRITTEN
    assert asked.bytes == pytest.approx(800 / 90 * config.loader.rollout_images * 16 * 21 * memory.REALISED)
    _, table = rolled_out(config, 4, splits | {"test": (90, 4000)})  # of which nothing is drawn
    assert "6 decisions on 21 tiles for each of 4000 questions of test" in table.what
    assert table.bytes == 4000 * 6 * TOLD * memory.WRITTEN
    _, held = learned(config, 4, splits)
    assert held.bytes == 800 * (16 * (TOLD + memory.COMPARED) + 10 * 21)
    assert len(list(rolled_out(config, 4, {}))) == 1  # before there are data


def test_what_a_key_may_be_at_most_counts_what_it_is_added_to() -> None:
    need = Need("it", 1000.0, (("actions.drawn", 4, 6),))
    assert need.fits_with(900) == "actions.drawn=3 or less"
    assert need.fits_with(600) == "fewer tiles (pyramid.grid) or selections (actions)"


def test_memory_is_that_of_the_machine_or_of_the_control_group(tmp_path: Path) -> None:
    own, whole = tmp_path / "own", machine(tmp_path, tmp_path / "none")
    assert 10**8 < whole < 10**15
    own.write_text("0::/slurm/job\n")
    (tmp_path / "slurm" / "job").mkdir(parents=True)
    (tmp_path / "slurm" / "job" / "memory.max").write_text("max\n")
    assert machine(tmp_path, own) == whole
    (tmp_path / "slurm" / "memory.max").write_text("50000000\n")
    assert machine(tmp_path, own) == 50_000_000
    own.write_text("9:cpu:/slurm\n5:memory:/slurm\n")
    (tmp_path / "memory" / "slurm").mkdir(parents=True)
    (tmp_path / "memory" / "slurm" / "memory.limit_in_bytes").write_text("60000000\n")
    assert machine(tmp_path, own) == 60_000_000


def test_more_selections_than_can_be_written_down_are_refused_in_a_sentence(tmp_path: Path) -> None:
    pyramid, tiles = Pyramid(1024, 2, 4, (128, 1)), ActionConfig(unit="tile")
    with pytest.raises(UserError, match=r"gives 2\^16384 selections; at most 4096 can be listed"):
        ActionSet.of(pyramid, BudgetRule(), tiles)
    with pytest.raises(UserError, match=r"needs all 2\^16384 selections of them"):
        tiny(tmp_path, "pyramid.grid=[128,1]", "pyramid.levels=2", "gate.policy=bernoulli", "rule=gumbel")
    for config in (tiles, ActionConfig(unit="level"), ActionConfig(unit="tile", sample=20)):
        small = Pyramid(64, 3, 8, (2, 1, 1))
        assert count(small, BudgetRule(), config) == len(ActionSet.of(small, BudgetRule(), config))
        rungs = replace(BudgetRule(), rungs=(0, 64, 256))
        assert count(small, rungs, config) == len(ActionSet.of(small, rungs, config))
