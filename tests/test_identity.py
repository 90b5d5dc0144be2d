"""Claims about what identifies a stage: the keys that its result depends on, and no others."""

from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from pyrskip import config
from pyrskip.config import Config, read, to_plain
from pyrskip.errors import UserError
from pyrskip.stages import STAGES
from pyrskip.stages.flex import FLEX
from pyrskip.stages.gate import GATE
from pyrskip.stages.rollouts import ROLLOUTS
from pyrskip.stages.run import Run, Stage, digest

FOUR = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.nodes=2")


def run_of(root: Path, *overrides: str) -> Run:
    """A run of the default config, but for these keys."""
    plain = OmegaConf.create(to_plain(Config(name="run", root=str(root))))
    given = OmegaConf.merge(plain, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(given, DictConfig)
    return Run(read(given)[0], {})


@cache
def made(*overrides: str) -> dict[str, str]:
    """Stage -> the digest of all that identifies it."""
    run = run_of(Path("runs"), *overrides)
    return {stage.name: digest(run.fingerprint(stage)) for stage in STAGES}


def test_the_stages_are_those_that_a_config_may_list() -> None:
    assert tuple(stage.name for stage in STAGES) == config.STAGES


@pytest.mark.parametrize(
    "override",
    [
        "data.cache=run",
        "data.max_bad_fraction=0.2",
        "data.files.workers=3",
        "data.scenes.size=256",
        "data.shards.paths=[elsewhere]",
        "loader.workers=1",
        "loader.rollout_images=2",
        "loader.chunk_images=2",
        "loader.replan=true",
        "model.hf.at_once=3",
        "model.remote.url=http://elsewhere/v1",
        "trainer.accelerator=auto",
        "trainer.strategy=ddp",
        "trainer.checkpoint_every=7",
        "trainer.log_every=7",
        "trainer.timeout=7",
        "trainer.quiet=false",
        "evaluation.timing_seconds=3",
        "evaluation.images=3",
    ],
)
def test_how_a_run_runs_and_what_it_does_not_read_identify_no_stage(override: str) -> None:
    assert made(override) == made()


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.seed=1", "data"),
        ("language.dropout=0.1", "flex"),
        ("loader.order=shards", "flex"),
        ("trainer.precision=bf16-mixed", "flex"),
        ("trainer.gradient_clip=2", "flex"),
        ("cost.answer_tokens=2", "rollouts"),
        ("cost.count=ptp", "rollouts"),
        ("gate.dropout=0.1", "gate"),
        ("reward.low=0.002", "gate"),
        ("seeds=2", "gate"),
        ("evaluation.resamples=30", "frontier"),
    ],
)
def test_what_a_result_depends_on_identifies_its_stage_and_those_behind_it(
    override: str, first: str, tmp_path: Path
) -> None:
    was, now = made(), made(override)
    changed = {name for name in was if was[name] != now[name]}
    (stage,) = (stage for stage in STAGES if stage.name == first)
    behind = {s.name for s in STAGES if stage in s.before(Config())}
    assert changed == {first} | behind


def test_a_groups_keys_identify_the_data_of_its_own_source_alone(tmp_path: Path) -> None:
    scenes = ("data.source=scenes", "data.scenes.size=256")
    assert made(*scenes, "data.scenes.workers=2") == made(*scenes)
    assert made(*scenes, "data.scenes.seed=1")["data"] != made(*scenes)["data"]


@pytest.mark.parametrize(
    ("stage", "batch", "more"),
    [
        (FLEX, "loader.batch_images", []),
        (GATE, "rule.batch", []),
        (GATE, "loader.batch_images", ["rule.online=true"]),
    ],
    ids=["flex", "gate", "gate online"],
)
def test_runs_that_see_the_same_samples_go_on_from_each_other_and_others_do_not(
    stage: Stage, batch: str, more: list[str], tmp_path: Path
) -> None:
    def run(images: int, *ranks: str) -> Run:
        return run_of(tmp_path, f"{batch}={images}", *ranks, *more)

    run(8, *FOUR).mark(stage, True)
    for same in (run(8, *FOUR), run(32)):
        same.done(stage)  # nothing is refused
    said = (
        rf"run/{stage.name} was made with {batch} x trainer\.devices x trainer\.nodes=32, this config has "
        rf"{batch} x trainer\.devices x trainer\.nodes=8; keep 32, or start another run with name=<other>$"
    )
    with pytest.raises(UserError, match=said):
        run(8).done(stage)


def test_flex_alone_goes_on_with_other_ranks_where_that_is_asked_for(tmp_path: Path) -> None:
    """As loader.replan has it; no stage behind it is another one then."""

    for stage in (FLEX, ROLLOUTS, GATE):
        run_of(tmp_path, *FOUR).mark(stage, True)
    fewer = run_of(tmp_path, "loader.replan=true")
    assert fewer.done(FLEX) and fewer.done(ROLLOUTS)
    with pytest.raises(UserError, match=r"run/gate was made with rule\.batch x"):
        fewer.done(GATE)
