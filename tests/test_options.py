"""Options: one that a rule or a policy would ignore is refused, with those that it has."""

from dataclasses import fields
from functools import cache
from itertools import product
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from pyrskip.cli import main
from pyrskip.config import Config, read
from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.launch import conf_directory
from pyrskip.policies import POLICIES, PolicyConfig
from pyrskip.training.rules import RULES, rule_config

OPTIONS = {rule: {f.name for f in fields(rule_config(rule))} for rule in RULES}
OTHERS = [
    (rule, option) for rule, own in OPTIONS.items() for option in sorted(set().union(*OPTIONS.values()) - own)
]
GATE_OPTIONS = {"temperature": 0.2, "open_bias": 1.0, "looks": True, "share": 0.2}


@cache
def composed(rule: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return compose("train", [f"rule={rule}"])


def read_with(name: str, **groups: dict[str, Any]) -> Config:
    """The config of a rule by name, with other values in some groups."""
    with open_dict(composed(name)):
        return read(OmegaConf.merge(composed(name), groups))[0]  # type: ignore[arg-type]


def test_every_rule_but_the_richest_lacks_options_of_others() -> None:
    assert {rule for rule, _ in OTHERS} == set(RULES)
    assert {option for rule, option in OTHERS if rule == "supervised"} >= {"samples", "entropy", "clip"}


@pytest.mark.parametrize(("rule", "option"), OTHERS)
def test_an_option_that_a_rule_would_ignore_is_refused_with_those_that_it_has(rule: str, option: str) -> None:
    value: Any = next(getattr(rule_config(other)(), option) for other in RULES if option in OPTIONS[other])
    said = f"config key rule.{option} is unknown; allowed here, with rule.name={rule}: "
    said += ", ".join(sorted(OPTIONS[rule]))
    with pytest.raises(UserError) as caught:
        read_with(rule, rule={option: value})
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["rule=supervised", "rule.samples=8"],
            "config key rule.samples is unknown; allowed here, with rule.name=supervised: "
            "batch, name, online, optimizer, patience, target, validations",
        ),
        (
            ["-m", "rule=supervised", "rule.samples=8,4"],
            "config key rule.samples is unknown; allowed here, with rule.name=supervised: ",
        ),
        (["--cfg", "job", "flex.budgte=x"], "config key flex.budgte is unknown; allowed here: b"),
        (
            ["rule.optimizer.x.y=1"],
            "config key rule.optimizer.x is unknown; allowed here, with rule.optimizer.name=adamw: beta2, lr",
        ),
        (
            ["rule.target.x=1"],
            "config key rule.target.x is unknown; allowed here: none, since rule.target is",
        ),
        (
            ["gate=nope"],
            "In 'train': Could not find 'gate/nope'; allowed: glance, joint, predictor, region, relevance, "
            "sequential (docs",
        ),
        (["sede=1"], "config key sede is unknown; allowed here: ablations, actions, budget, cost, data, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_says_the_same(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1 and "+" not in error


@pytest.mark.parametrize(("policy", "option"), [*product(POLICIES, GATE_OPTIONS)])
def test_an_option_that_a_policy_would_ignore_is_refused_with_the_policies_that_read_it(
    policy: str, option: str
) -> None:
    value, default = GATE_OPTIONS[option], PolicyConfig.__dataclass_fields__[option].default
    assert value != default
    GateConfig(policy=policy, **{option: default})
    if option in POLICIES[policy].options:
        assert getattr(GateConfig(policy=policy, **{option: value}), option) == value
        return
    readers = ", ".join(name for name, kind in POLICIES.items() if option in kind.options)
    with pytest.raises(UserError) as caught:
        GateConfig(policy=policy, **{option: value})
    assert str(caught.value) == (
        f"gate.{option}={value} with gate.policy={policy}, which does not read it; "
        f"allowed: {'null' if default is None else default}, or a policy that does: {readers}"
    )
    (rule, *_) = (name for name, rule in RULES.items() if policy in rule.policies())
    with pytest.raises(UserError, match=rf"gate\.{option}={value} with gate\.policy={policy}"):
        read_with(rule, gate={"policy": policy, option: value})
