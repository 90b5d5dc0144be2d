"""Claims about configs: what is shipped composes, and what is wrong is refused in one sentence that says what is allowed."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pyrskip.cli import conf_directory
from pyrskip.config import Config, read, to_plain
from pyrskip.errors import UserError

CONF = conf_directory()
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str) -> Config:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return read(compose(config_name="train", overrides=list(overrides)))[0]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_is_allowed(group: str, option: str) -> None:
    assert isinstance(composed(f"{group}={option}"), Config)


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] not in ("experiment", "logger")], ids=lambda v: v)
def test_every_option_states_every_key_of_its_dataclass(group: str, option: str) -> None:
    stated = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(stated, dict)
    others = {"scenes"} if group == "data" and stated["source"] != "scenes" else set()  # another source's keys
    assert stated.keys() == to_plain(getattr(Config(), group)).keys() - others


def test_eval_takes_every_evaluation_key() -> None:
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "eval.yaml"))
    assert isinstance(stated, dict)
    assert stated["evaluation"].keys() == to_plain(Config().evaluation).keys()


def test_the_policy_follows_the_rule() -> None:
    assert composed("rule=supervised").gate.policy == "utility"
    assert composed("rule=gumbel").gate.policy == "bernoulli"
    assert composed("rule=gumbel", "gate.policy=categorical").gate.policy == "categorical"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gate.width=wide", "gate.width='wide' .*int"),
        ("gate.policy=greedy", "gate.policy='greedy' .*utility"),
        ("rule.name=magic", "rule.name='magic' .*gumbel, supervised"),
        ("data.gate_fraction=1.5", "data.gate_fraction=1.5 .*< 1"),
        ("reward.low=2", "reward.low=2.* low < high"),
        ("reward.target=0.5", "reward.target=0.5 .*mode=target"),
        ("stages=[data,fly]", "stages='fly' .*data, flex"),
        ("trainer.devices=0", "trainer.devices=0: at least 1"),
        ("flex.budget=lavish", "'lavish' .*tokenflex"),
        ("text.name=gpt", "text.name='gpt' .*minilm"),
        ("budget.total=-4", "total=-4"),
        ("evaluation.prices=[]", "evaluation.prices=.*at least|evaluation.prices=.*one or more"),
        ("ablations=[psychic]", "ablations='psychic' .*joint"),
        ("name=../elsewhere", "name='../elsewhere'"),
        ("+flex.budgte=fixed", "flex.budgte is unknown; allowed here: .*budget"),
        ("cost.unit=joules", "joules.*flops, macs"),
        ("language.heads=5", "heads=5"),
        ("+logger.x._target_=os.system", "logger.x._target_='os.system' may not be built"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        composed(override)
    assert "\n" not in str(caught.value)


def test_a_config_survives_json(tmp_path: Path) -> None:
    config = composed("experiment=easy_vqa", "budget=proportional", "pyramid.grid=[2,1,1]")
    plain = OmegaConf.create(to_plain(config))
    assert read(plain)[0] == config
