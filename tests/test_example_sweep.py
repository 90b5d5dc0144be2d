"""Claims about the sweep that docs/sweeps.md shows: gates by prices by seeds, on the model of a run that is
there."""

import csv
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import pytest

from pyrskip.cli import main
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.runs import load_runs
from pyrskip.export.describe import prices_of
from pyrskip.inference.bundle import Prices
from pyrskip.launch import conf_directory
from pyrskip.report.plots import plot_runs
from pyrskip.reward import RewardConfig
from pyrskip.stages import run_stages
from pyrskip.sweeps.jobs import Job, keep, name_of, read_jobs
from pyrskip.sweeps.overview import FIGURE, TABLE
from pyrskip.sweeps.plan import in_sweep
from tests.configs import TWO_STEPS, tiny
from tests.runs import write_run
from tests.test_config import composed
from tests.toys import toy_module

SMALL = [
    *(o for o in TWO_STEPS if not o.startswith(("seeds=", "data.limit="))),
    *("data.scenes.size=256", "pyramid.size=256", "pyramid.levels=3", "data.limit=6", "ablations=[]"),
]
GATES, PRICES, SEEDS = ("joint", "sequential"), (0.02, 0.05, 0.1), (0, 1)


@pytest.mark.slow
def test_gates_by_prices_by_seeds_are_two_lines_of_one_frontier_and_nothing_before_them_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lender = run_stages(tiny(Path("runs"), "stages=[data,cache,flex,rollouts]", experiment="scenes"), {})
    before = {path: path.stat().st_mtime_ns for path in lender.glob("*/**/*") if path.is_file()}
    drawn: dict[str, Sequence[Row]] = {}

    def draw(runs: Mapping[str, Sequence[Row]], *rest: Any) -> None:
        drawn.update(runs)
        plot_runs(runs, *rest)

    monkeypatch.setattr("pyrskip.sweeps.overview.plot_runs", draw)
    varied = [
        f"{key}={','.join(map(str, of))}"
        for key, of in (("gate", GATES), ("reward.price", PRICES), ("seed", SEEDS))
    ]
    main(["train", "-m", "experiment=scenes", "from=runs/scenes", *varied, *SMALL])

    jobs = read_jobs(lender)
    assert {job.name for job in jobs} == {
        f"gate={gate},reward.price={price},seed={seed}" for gate, price, seed in product(GATES, PRICES, SEEDS)
    }
    assert {job.state for job in jobs} == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for job in jobs:
        assert {path.name for path in job.directory.iterdir() if path.is_dir()} == {"gate", "frontier"}
        (trained,) = job.directory.glob("gate/*/*/gate.json")
        assert f"seed={trained.parent.name.removeprefix('seed-')}" in job.varied
    with (lender / TABLE).open() as file:
        table = {(line["line"], float(line["price"])): int(line["gates"]) for line in csv.DictReader(file)}
    assert table == {(f"gate={gate}", price): len(SEEDS) for gate, price in product(GATES, PRICES)}
    assert (lender / FIGURE).stat().st_size > 10_000
    for gate in GATES:
        points = [
            (row.price, row.seed)
            for row in drawn[f"gate={gate}"]
            if row.method == "gate" and row.split == "test"
        ]
        assert sorted(points) == sorted(product(PRICES, SEEDS))


def test_the_trainings_of_a_run_are_its_own_and_not_those_of_a_sweep_in_its_directory(tmp_path: Path) -> None:
    write_run(tmp_path / "scenes")
    write_run(tmp_path / "scenes/seed=0")
    assert list(load_runs(tmp_path / "scenes")[0].trainings) == ["gate/seed-0"]


def test_status_has_a_column_for_each_key_that_varies_and_names_what_failed_by_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    why = "NotADirectoryError: [Errno 20] Not a directory: 'gate/gate/seed-0/csv'"
    for gate, price, seed in product(GATES, PRICES, SEEDS):
        varied = (f"gate={gate}", f"reward.price={price}", f"seed={seed}")
        failed = (gate, price, seed) == ("sequential", 0.05, 1)
        keep(
            Job(
                tmp_path / name_of(varied),
                (),
                varied,
                "failed" if failed else "waiting",
                why if failed else "",
            )
        )
    main(["sweep", "status", str(tmp_path)])
    title, _, columns, _, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == "12 jobs: 11 waiting, 1 failed"
    assert columns.replace("┃", "").split()[:4] == ["gate", "reward.price", "seed", "state"]
    assert rows[9].replace("│", "").split() == ["sequential", "0.05", "1", "failed"]
    assert f"{tmp_path}/gate=sequential,reward.price=0.05,seed=1 failed: {why}" in rows


def test_a_sequential_gate_brings_a_rule_that_trains_it_unless_one_is_given() -> None:
    for given, rule in (((), "exact"), (("rule=reinforce",), "reinforce"), (("experiment=scenes",), "exact")):
        config = composed("gate=sequential", *given)
        assert (config.gate.name, config.gate.policy, config.rule.name) == ("joint", "sequential", rule)
    assert composed("gate=joint").rule.name == "supervised"


@pytest.mark.parametrize(
    ("overrides", "seeds"), [(("seed=1",), 1), (("seed=1", "seeds=2"), 2), (("gate.width=8",), 3)]
)
def test_a_job_of_one_seed_trains_one_gate_unless_their_number_is_given(
    overrides: tuple[str, ...], seeds: int
) -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        cfg = hydra.compose("train", list(overrides))
    assert in_sweep(cfg, Path("runs/sweep"), overrides, frozenset({"seeds"})).seeds == seeds


@pytest.mark.parametrize(("rule", "policy"), [("supervised", "utility"), ("exact", "sequential")])
def test_a_gate_of_one_price_is_asked_and_exported_at_it_alone(rule: str, policy: str) -> None:
    reward = RewardConfig(0.3)
    module = toy_module(rule, policy, reward)
    module.on_fit_end()
    assert module.gate.prices([0.1, 0.5]) == [0.3]
    assert prices_of(module.gate, reward, default=0.1) == Prices(0.3, 0.3, 0.3)
