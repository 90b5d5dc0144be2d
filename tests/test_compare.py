"""Claims about the stage compare: every rule and policy on the same rollouts, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pyrskip.compare import CompareConfig
from pyrskip.errors import UserError
from pyrskip.evaluation.comparison import Entry
from pyrskip.launch import conf_directory
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages import run_stages
from pyrskip.training import RULES, valid_pairs
from tests.configs import tiny


def test_a_comparison_trains_and_evaluates_every_valid_pair(copied_run: Path) -> None:
    config = tiny(copied_run, f"from={copied_run / 'done'}", experiment="compare_rules")
    root = run_stages(config, {})
    entries = json.loads((root / "compare/comparison.json").read_text())
    asked = {
        "rule",
        "policy",
        "price",
        "seed",
        "accuracy",
        "retention",
        "relative_flops",
        "regret",
        "seconds",
    }
    assert all(asked <= entry.keys() for entry in entries)
    # without a ladder rungs would be bernoulli over again
    pairs = [pair for pair in valid_pairs(online=False) if pair[1] != "rungs"]
    assert [(e["rule"], e["policy"], e["price"]) for e in entries] == [
        (*pair, p) for pair in pairs for p in config.compare.prices
    ]
    assert (root / "compare/comparison.png").stat().st_size > 10_000
    # what is there is not trained again
    part = root / "compare/parts/flex-0-exact-bernoulli-0.json"
    before = part.stat().st_mtime_ns
    (root / "compare/stage.json").unlink()
    run_stages(config, {})
    assert part.stat().st_mtime_ns == before


def test_a_comparison_of_any_run_takes_its_data_and_model_from_there_and_goes_over_flex_seeds(
    copied_run: Path,
) -> None:
    other = run_stages(
        tiny(
            copied_run, "name=second", f"from={copied_run / 'done'}", "flex.seed=1", "stages=[flex,rollouts]"
        ),
        {},
    )
    borrowed = (f"from={copied_run / 'done'}", "pyramid.levels=2", "data=scenes", "compare.prices=[0.05,0.5]")
    config = tiny(
        copied_run, *borrowed, f"compare.others=[{other}]", "compare.workers=2", experiment="compare_rules"
    )
    assert (config.pyramid.levels, config.data.source) == (3, "easy_vqa")
    root = run_stages(config, {})
    entries = [Entry(**line) for line in json.loads((root / "compare/comparison.json").read_text())]
    pairs = [pair for pair in valid_pairs(online=False) if pair[1] != "rungs"]
    assert {(e.flex_seed, e.rule, e.policy) for e in entries} == {
        (seed, *pair) for seed in (0, 1) for pair in pairs
    }
    # gates of each flex seed are measured on its own test rollouts
    for seed, run in ((0, copied_run / "done"), (1, other)):
        table = RolloutTable.load(run / "rollouts/test")
        full = float(table.score[:, table.actions.full].double().mean())
        assert all(e.accuracy == pytest.approx(e.retention * full) for e in entries if e.flex_seed == seed)


def test_a_comparison_refuses_prices_and_rewards_that_not_all_of_its_gates_can_learn(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"compare\.prices=3\.0 is outside of what is trained on; allowed: 0\.001 to 1\.0"
    ):
        tiny(tmp_path, "compare.prices=[0.1,3.0]", experiment="compare_rules")
    with pytest.raises(
        UserError,
        match=r"reward\.price=None, target=None, form=bonus: allowed in a comparison: .*form=linear",
    ):
        tiny(tmp_path, "rule=exact", "reward.form=bonus", experiment="compare_rules")


def test_a_comparison_refuses_runs_that_are_no_other_flex_seeds(copied_run: Path) -> None:
    def compared(*places: Path | str) -> None:
        given = (f"from={copied_run / 'done'}", f"compare.others=[{','.join(map(str, places))}]")
        run_stages(tiny(copied_run, *given, experiment="compare_rules"), {})

    other = run_stages(
        tiny(
            copied_run, "name=second", f"from={copied_run / 'done'}", "flex.seed=1", "stages=[flex,rollouts]"
        ),
        {},
    )
    with pytest.raises(UserError, match=r"compare\.others=nowhere is no run"):
        compared("nowhere")
    for twice in ((copied_run / "done",), (other, other)):
        with pytest.raises(
            UserError, match=r"compare\.others=.*: another run of flex\.seed=[01]; allowed: one run of each"
        ):
            compared(*twice)
    assert not (copied_run / "compare_rules").exists()
    shutil.copy(copied_run / "done/rollouts/test/table.json", other / "rollouts/test/table.json")
    with pytest.raises(UserError, match=r"compare\.others=.*/second holds rollouts of this run's own model"):
        compared(other)
    with pytest.raises(UserError, match=r"from=nowhere is no run"):
        tiny(copied_run, "from=nowhere", experiment="compare_rules")


def test_a_comparison_gives_each_rule_the_entropy_of_its_own_options() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        compared = compose("train").compare.entropy
        own = {rule: compose("train", overrides=[f"rule={rule}"]).rule.entropy for rule in RULES}
    assert dict(compared) == own == CompareConfig().entropy
    with pytest.raises(UserError, match=r"compare\.entropy names exact; allowed: each of supervised"):
        CompareConfig(entropy={"exact": 0.1})
