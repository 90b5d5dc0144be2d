"""Claims about lent=true: what borrowed stages depend on is configured as in the run that they are borrowed
from, but for what is on the command line."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pyrskip.config import Config, read, to_plain
from pyrskip.errors import UserError
from pyrskip.files import write_json
from pyrskip.groups import store_groups
from pyrskip.launch import conf_directory
from pyrskip.stages import STAGES
from pyrskip.stages.cache import CACHE
from pyrskip.stages.data import DATA
from pyrskip.stages.flex import FLEX
from pyrskip.stages.lending import lend
from pyrskip.stages.rollouts import ROLLOUTS
from pyrskip.stages.run import Run, Stage
from tests.tables import synthetic_table

OTHER = (
    *("experiment=scenes", "language=decoder", "data.cache=run", "actions=sampled", "text=minilm"),
    *(
        "loader.batch_images=16",
        "loader.workers=3",
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.log_every=3",
    ),
    *("cost.answer_tokens=3", "flex.seed=4", "gate=glance", "reward.high=2", "evaluation.resamples=7"),
)


def composed(*overrides: str) -> Config:
    store_groups(conf_directory())
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return read(lend(compose("train", overrides=list(overrides)), overrides))[0]


@pytest.fixture
def lender(tmp_path: Path) -> Config:
    """The config of a run of which every stage is done."""
    config = composed(*OTHER, "name=lender", f"root={tmp_path}")
    finish(config, *STAGES)
    return config


def finish(config: Config, *stages: Stage) -> None:
    """Leave these stages as done, with the rollouts that a gate looks into."""
    run = Run(config, {})
    run.keep_config()
    for stage in stages:
        run.mark(stage, done=True)
    synthetic_table("gate", 2).save(run.root / "rollouts/gate")


def comparing(lender: Config, *overrides: str) -> Config:
    return composed("experiment=compare_rules", f"root={lender.root}", f"from={lender.directory}", *overrides)


def test_every_stage_before_the_first_is_borrowed_from_any_run(lender: Config) -> None:
    run = Run(comparing(lender, "pair=exact-categorical"), {})
    for name in ("data", "cache", "flex", "rollouts"):
        (stage,) = (stage for stage in STAGES if stage.name == name)
        assert run.done(stage) and run.directory(stage) == lender.directory / name


def test_what_the_own_stages_depend_on_and_where_they_run_is_the_runs_own(lender: Config) -> None:
    config, plain = comparing(lender, "pair=exact-categorical"), Config()
    assert (config.ablations, config.evaluation.timing_seconds, config.evaluation.resamples) == ((), 0, 1000)
    assert (config.rule.name, config.gate.policy, config.gate.name) == ("exact", "categorical", "joint")
    assert (config.gate.signals, config.reward) == ((), plain.reward)
    assert (config.trainer.precision, config.flex) == ("bf16-mixed", lender.flex)
    assert (config.trainer.devices, config.trainer.strategy, config.trainer.log_every) == (1, "auto", 20)


@pytest.mark.parametrize(("ranks", "batch"), [(1, 32), (2, 16), (4, 8)])
def test_a_batch_over_all_ranks_is_the_lenders_on_any_number_of_them(
    ranks: int, batch: int, lender: Config
) -> None:
    config = comparing(lender, f"trainer.devices={ranks}")
    assert (config.loader.batch_images, config.loader.workers) == (batch, 3)


def test_the_command_line_comes_before_what_is_lent(lender: Config) -> None:
    config = comparing(
        lender, "loader.workers=0", "cost.answer_tokens=5", "+model.hf.at_once=2", "text=embedding"
    )
    assert (config.loader.workers, config.cost.answer_tokens, config.model.hf.at_once) == (0, 5, 2)
    assert (config.loader.order, config.text.name) == (lender.loader.order, "embedding")
    said = r"lender/rollouts was made with cost\.answer_tokens=3, this config has cost\.answer_tokens=5"
    with pytest.raises(UserError, match=said):
        Run(comparing(lender, "cost.answer_tokens=5"), {}).done(ROLLOUTS)


def test_stages_that_a_run_does_itself_are_configured_by_it(lender: Config) -> None:
    config = comparing(lender, "stages=[rollouts,gate,frontier]", "budget=rungs", "rule=exact")
    assert config.budget.rungs == (0, 64, 144, 256) and config.cost.answer_tokens == 1
    assert (config.flex, config.data, config.text) == (lender.flex, lender.data, lender.text)


def test_what_is_lent_is_in_the_saved_config_and_looked_up_no_more(lender: Config) -> None:
    config = comparing(lender)
    saved = to_plain(config)
    (lender.directory / "config.json").unlink()
    assert read(OmegaConf.create(saved))[0] == config


def test_a_run_that_borrowed_lends_what_it_has_borrowed(lender: Config, tmp_path: Path) -> None:
    second = composed(
        *OTHER,
        "name=second",
        f"root={tmp_path}",
        f"from={lender.directory}",
        "flex.seed=5",
        "stages=[flex,rollouts]",
    )
    finish(second, FLEX, ROLLOUTS)
    config = comparing(second)
    of = {stage.name: Run(config, {}).directory(stage).parent.name for stage in (DATA, CACHE, FLEX, ROLLOUTS)}
    assert config.flex.seed == 5
    assert of == {"data": "lender", "cache": "lender", "flex": "second", "rollouts": "second"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), r"lent=true takes the config of a run, and from= names none; allowed: from=<run>$"),
        (("from=nowhere",), r"from=nowhere is no run: it holds no config\.json"),
    ],
)
def test_a_lender_that_is_missing_is_one_sentence(overrides: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed("experiment=compare_rules", *overrides)


def test_a_config_that_cannot_be_read_names_the_run_that_it_is_of(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"flux": 3})
    with pytest.raises(
        UserError, match=rf"from={tmp_path} has a config that cannot be lent: config key flux"
    ):
        composed("experiment=compare_rules", f"from={tmp_path}")


def test_runs_that_borrow_from_each_other_end_the_search(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        write_json(tmp_path / name / "config.json", {"borrow": str(tmp_path / other)})
    run = Run(Config(name="run", root=str(tmp_path), borrow=str(tmp_path / "a")), {})
    assert run.lenders == (tmp_path / "a", tmp_path / "b")
    assert run.directory(DATA) == tmp_path / "run/data"
