"""Claims about `pyrskip compare`: rules and policies of a sweep side by side, from its jobs' frontiers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pyrskip.cli import main
from pyrskip.config import Config
from pyrskip.evaluation.comparison import Entry, band, entries_of, standings
from pyrskip.evaluation.frontier import hull_at
from pyrskip.evaluation.runs import load_runs
from pyrskip.groups import store_groups
from pyrskip.launch import conf_directory
from pyrskip.stages import STAGES, run_stages
from pyrskip.stages.run import Run
from pyrskip.sweeps.jobs import keep, read_job, read_jobs
from pyrskip.training.rules import valid_pairs
from tests.configs import TWO_STEPS, tiny
from tests.runs import done, job, write_run
from tests.test_cli import refused
from tests.test_frontier import computed
from tests.test_sweeps import planned

ENTRY = Entry("exact", "categorical", 0.1, 0, 0, 0.8, (0.7, 0.9), 0.9, 0.3, 0.6, 0.7, 0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("finished") / "run")


def add(sweep: Path, finished: Path, pair: str, flex_seed: int = 0, cheaper: float = 1.0) -> Path:
    """A finished job of three gates, which cost less than those of `finished`."""
    made = job(sweep, f"from=runs/{flex_seed}", f"pair={pair}", state="done")
    shutil.copytree(finished, made.directory)
    keep(made)
    config = json.loads((made.directory / "config.json").read_text())
    config["rule"]["name"], config["gate"]["policy"] = pair.split("-")
    config["flex"]["seed"] = flex_seed
    (made.directory / "config.json").write_text(json.dumps(config))
    rows = json.loads((made.directory / "frontier.json").read_text())
    for row in rows:
        row["relative_flops"] *= cheaper if row["method"] == "gate" else 1.0
    (made.directory / "frontier.json").write_text(json.dumps(rows))
    return made.directory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """Three pairs on two flex seeds."""
    root = tmp_path_factory.mktemp("sweep") / "compare_rules"
    for flex_seed in (0, 1):
        add(root, finished, "exact-categorical", flex_seed)
        add(root, finished, "supervised-utility", flex_seed, 0.9)
        add(root, finished, "exact-bernoulli", flex_seed, 0.01)
    return root


def test_a_gates_figures_are_those_of_its_own_frontier(sweep: Path) -> None:
    (run,) = load_runs(sweep / "from=runs-1,pair=exact-categorical")
    entries = {(e.seed, e.price): e for e in entries_of([run])}
    test = [row for row in run.rows if row.split == "test"]
    gates = {(row.seed, row.price): row for row in test if row.method == "gate"}
    random = {(row.seed, row.price): row.accuracy for row in test if row.method == "random"}
    assert entries.keys() == gates.keys() and len(gates) == 3 * len(computed().inputs.prices)
    for key, entry in entries.items():
        row = gates[key]
        assert (entry.rule, entry.policy, entry.flex_seed) == ("exact", "categorical", 1)
        assert (entry.accuracy, entry.accuracy_ci95) == (row.accuracy, row.accuracy_ci95)
        assert (entry.retention, entry.relative_flops) == (row.retention, row.relative_flops)
        assert (entry.random, entry.hull) == (random[key], hull_at(run.rows, "test", row.relative_flops))
    for chosen in run.summary["targets"]["0.98"]["gate"]["seeds"]:
        entry = entries[chosen["seed"], chosen["price"]]
        assert entry.regret == chosen["regret_to_oracle_type"]
        assert entry.accuracy - entry.random == chosen["gain_over_random"]


def test_a_pairs_standing_is_of_its_gates_and_of_the_costs_asked_for_alone() -> None:
    gates = [
        replace(ENTRY, price=0.1, accuracy=0.8),
        replace(ENTRY, price=0.2, accuracy=0.7, hull=None),
        replace(ENTRY, price=0.1, accuracy=0.9, seed=1),
        replace(ENTRY, price=0.1, accuracy=0.8, flex_seed=1),
        replace(ENTRY, price=0.3, accuracy=0.0, flex_seed=1, relative_flops=0.1),
    ]
    (found,) = standings(gates, 0.2, 0.45)
    assert found.points == 4
    assert found.above_random is not None and found.above_hull is not None and found.retention is not None
    # a gate's own mean first: .15, .3 and .2 above random, .1, .2 and .1 above the hull
    assert found.above_random.mean == pytest.approx(0.65 / 3)
    assert found.above_random.deviation == pytest.approx(0.0763763)
    assert found.above_hull.mean == pytest.approx(0.4 / 3)
    assert (found.retention.mean, found.retention.deviation) == (pytest.approx(0.9), pytest.approx(0))


def test_the_pair_farthest_above_random_comes_first_and_one_that_never_costs_as_much_last() -> None:
    dear = replace(ENTRY, rule="gumbel", relative_flops=0.9)
    better = replace(ENTRY, rule="reinforce", random=0.5)
    found = standings([dear, ENTRY, better], 0.2, 0.45)
    assert [s.rule for s in found] == ["reinforce", "exact", "gumbel"]
    assert found[2].points == 0 and found[2].above_random is found[2].regret is None


def test_a_line_is_the_mean_of_gates_at_equal_cost_and_its_band_their_range() -> None:
    def at(seed: int, *points: tuple[float, float]) -> list[Entry]:
        return [replace(ENTRY, seed=seed, relative_flops=cost, retention=kept) for cost, kept in points]

    both = at(0, (0.1, 0.5), (0.5, 0.9)) + at(1, (0.2, 0.7), (0.3, 0.8), (0.6, 0.8))
    found = band(both)
    assert (found[0][0], found[-1][0]) == pytest.approx((0.2, 0.5))
    assert found[0][1:] == pytest.approx((0.65, 0.6, 0.7))
    assert found[-1][1:] == pytest.approx((0.85, 0.8, 0.9))
    assert band(at(0, (0.1, 0.5)) + at(1, (0.2, 0.7))) == []


def test_compare_prints_a_line_a_pair_and_keeps_figures_and_picture_beside_the_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", str(sweep), "high=0.9"])
    said = capsys.readouterr().out
    lines = [line.replace("│", " ").split() for line in said.splitlines() if line.startswith("│")]
    assert [line[:2] for line in lines][2:] == [["exact", "bernoulli"]]
    assert {tuple(line[:2]) for line in lines[:2]} == {("exact", "categorical"), ("supervised", "utility")}
    assert lines[2][2:] == ["0"]  # too cheap: no figures, no points
    assert "Rules at 0.2 to 0.9 of full's FLOPs, test split; gates a pair: 6, flex seeds: 2" in said
    entries = json.loads((sweep / "comparison.json").read_text())
    assert len(entries) == 2 * 3 * 3 * len(computed().inputs.prices)
    assert set(entries[0]) == set(vars(ENTRY))
    assert (sweep / "comparison.png").stat().st_size > 20_000


def test_the_picture_names_every_pair_and_what_is_behind_them_once(sweep: Path, tmp_path: Path) -> None:
    main(["compare", str(sweep), f"out={tmp_path}/new/rules.svg"])
    text = (tmp_path / "new/rules.svg").read_text()
    for label in ("exact, categorical", "supervised, utility", "exact, bernoulli", "hull", "oracle:type"):
        assert text.count(f">{label}</text>") == 1
    assert (tmp_path / "new/rules.json").is_file()


def test_jobs_of_several_sweeps_are_one_comparison(finished: Path, tmp_path: Path) -> None:
    add(tmp_path / "a", finished, "exact-categorical", 0)
    add(tmp_path / "b", finished, "exact-categorical", 1)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    entries = json.loads((tmp_path / "a/comparison.json").read_text())
    assert {entry["flex_seed"] for entry in entries} == {0, 1}


def test_sweeps_that_hold_the_same_gates_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        add(tmp_path / name, finished, "exact-categorical")
    said = refused(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "both hold a gate of exact, categorical with seed=0 and flex.seed=0 at price" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "takes one or more sweeps"),
        (("nowhere",), "nowhere is no sweep"),
        (("{sweep}", "low=much"), "low=much: allowed: a number"),
        (("{sweep}", "low=0.5"), "low=0.5, high=0.45: allowed: FLOPs over full's, 0 <= low < high"),
        (("{sweep}", "out=rules.txt"), "out=rules.txt is no picture that can be drawn"),
        (("{sweep}", "method=gate"), "method"),
        (("{sweep}", "{sweep}"), "is given twice; allowed: each run once"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{sweep}", str(sweep)) for argument in arguments]
    assert said in refused(capsys, "compare", *given)


def test_jobs_that_are_not_done_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path, finished, "exact-categorical")
    for pair, state in (("gumbel-bernoulli", "failed"), ("gumbel-categorical", "running")):
        keep(replace(read_job(add(tmp_path, finished, pair)), state=state))
    said = refused(capsys, "compare", str(tmp_path))
    assert f"{tmp_path}/from=runs-0,pair=gumbel-bernoulli is failed, " in said
    assert "pair=gumbel-categorical is running; allowed: sweeps of which every job is done" in said


def test_jobs_of_other_questions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path, "pair=exact-categorical")
    frontier = computed()
    test = frontier.inputs.tables["test"]
    others = replace(test, keys=tuple(f"other-{key}" for key in test.keys))
    inputs = replace(frontier.inputs, tables={**frontier.inputs.tables, "test": others})
    made = job(tmp_path, "pair=gumbel-bernoulli", state="done")
    write_run(made.directory, "gumbel", replace(frontier, inputs=inputs))
    keep(made)
    said = refused(capsys, "compare", str(tmp_path))
    assert "pair=gumbel-bernoulli was tested on other questions than" in said


def test_a_sweep_over_all_pairs_has_a_job_for_each_that_a_rule_can_train(tmp_path: Path) -> None:
    lender = Config(name="lender", root=str(tmp_path))
    Run(lender, {}).keep_config()
    for stage in STAGES:
        Run(lender, {}).mark(stage, done=True)
    store_groups(conf_directory())
    made = planned(
        "experiment=compare_rules",
        f"root={tmp_path}",
        f"from={tmp_path}/lender",
        "pair=glob(*,exclude=*-rungs)",
    )
    assert {job.name for job in made.jobs} == {
        f"pair={rule}-{policy}" for rule, policy in valid_pairs(online=False) if policy != "rungs"
    }


@pytest.mark.slow
def test_pairs_on_two_flex_seeds_are_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lenders' config is typed for them alone."""
    monkeypatch.chdir(tmp_path)
    run_stages(tiny(Path("runs"), "stages=[data,flex,rollouts]"), {})
    second = ("name=easy_vqa_1", "flex.seed=1", "from=runs/easy_vqa", "stages=[flex,rollouts]")
    run_stages(tiny(Path("runs"), *second), {})
    of_gates = [o for o in TWO_STEPS if o.startswith(("gate.", "rule.", "seeds=", "evaluation.", "trainer."))]
    of_gates.remove("evaluation.timing_seconds=0.001")
    lenders = "from=runs/easy_vqa,runs/easy_vqa_1"
    main(
        [
            "train",
            "-m",
            "experiment=compare_rules",
            lenders,
            "pair=supervised-utility,exact-sequential",
            *of_gates,
        ]
    )
    jobs = read_jobs(Path("runs/compare_rules"))
    assert {job.name for job in jobs} == {
        f"from=runs-{lender},pair={pair}"
        for lender in ("easy_vqa", "easy_vqa_1")
        for pair in ("supervised-utility", "exact-sequential")
    }
    for made in jobs:
        assert {path.name for path in made.directory.iterdir() if path.is_dir()} == {"gate", "frontier"}
        (run,) = load_runs(made.directory)
        both = {"gate:safe", "gate:shuffled_query"}
        assert {row.method for row in run.rows if row.method.startswith("gate:")} == both
        assert all(row.total_ms is None for row in run.rows)
    capsys.readouterr()
    main(["compare", "runs/compare_rules", "low=0", "high=2"])
    assert "gates a pair: 2, flex seeds: 2" in capsys.readouterr().out
    entries = json.loads(Path("runs/compare_rules/comparison.json").read_text())
    assert {(e["rule"], e["policy"], e["flex_seed"], e["price"]) for e in entries} == {
        (*pair, flex_seed, price)
        for pair in (("supervised", "utility"), ("exact", "sequential"))
        for flex_seed in (0, 1)
        for price in (0.05, 0.5)
    }
