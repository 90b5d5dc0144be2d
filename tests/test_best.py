"""Claims about the weights that a gate keeps: those that were best on validation, wherever it was killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.data.datamodule import StepData
from pyrskip.errors import UserError
from pyrskip.reward import RewardConfig
from pyrskip.training.best import KEPT, PRICES, Best
from pyrskip.training.gate import GateModule
from pyrskip.training.rules import rule_config
from pyrskip.training.trainer import CHECKPOINT, TrainerConfig
from tests.toys import fit_until, toy_environment, toy_module

STEPS = 12
SAMPLED = RewardConfig(low=0.01, high=2.0)
QUESTIONS: Any = range(200)


class Scripted(Best):
    """Is told what a validation finds, step by step, and notes the weights that it was asked about."""

    def __init__(self, rewards: list[float], validations: int, patience: int, path: Path) -> None:
        super().__init__(toy_environment(), validations, patience, path)
        self.rewards, self.seen = rewards, {}

    def reward(self, module: GateModule) -> float:
        self.seen[module.trainer.global_step] = head(module.gate.state_dict())
        return self.rewards[module.trainer.global_step - 1]


def head(state: dict[str, Tensor]) -> Tensor:
    return state["head.weight"].clone()


def train(
    folder: Path, best: Best, module: GateModule | None = None, until: int = STEPS, accumulate: int = 1
) -> GateModule:
    """A training of twelve steps, from the checkpoint that it finds; it is killed at step `until`."""
    module = module or toy_module("supervised", "utility", SAMPLED, STEPS)
    config = TrainerConfig(quiet=True, checkpoint_every=accumulate, accumulate=accumulate)
    fit_until(module, StepData(QUESTIONS, torch.tensor, 16, STEPS, 1), folder, until, config, best)
    return module


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / KEPT).read_text())
    return found


def test_a_training_that_no_longer_gets_better_stops_and_keeps_its_best_weights(tmp_path: Path) -> None:
    best = Scripted([1, 2, 5, 3, 4, 5, *[9] * 6], STEPS, 3, tmp_path / KEPT)
    module = train(tmp_path, best)
    assert kept(tmp_path) == {"step": 3, "steps": 6, "reward": 5}
    assert head(module.gate.state_dict()).equal(best.seen[3])
    assert not best.seen[3].equal(best.seen[6])


@pytest.mark.parametrize("until", [2, 4, 7])
def test_a_training_that_was_killed_stops_at_the_same_step_with_the_same_weights(
    until: int, tmp_path: Path
) -> None:
    rewards = [1, 2, 5, 3, 4, 5, *[9.0] * 6]
    whole = train(tmp_path / "whole", Scripted(rewards, STEPS, 3, tmp_path / "whole" / KEPT))
    # before its seventh step it has stopped already
    train(tmp_path, Scripted(rewards, STEPS, 3, tmp_path / KEPT), until=until)
    assert (tmp_path / KEPT).exists() == (until > 6)
    (tmp_path / KEPT).unlink(missing_ok=True)
    again = Scripted(rewards, STEPS, 3, tmp_path / KEPT)
    resumed = train(tmp_path, again)
    assert kept(tmp_path) == kept(tmp_path / "whole")
    assert sorted(again.seen) == list(range(until + 1, 7))
    assert all(resumed.state_dict()[name].equal(value) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("reward", [SAMPLED, RewardConfig(target=0.4)], ids=lambda r: r.mode)
def test_its_own_rewards_choose_the_same_weights_when_it_was_killed(
    reward: RewardConfig, tmp_path: Path
) -> None:
    def trained(name: str, until: int) -> dict[str, Tensor]:
        module = toy_module("reinforce", "bernoulli", reward, STEPS, baseline="running_mean")
        train(tmp_path / name, Best(toy_environment(), 6, 0, tmp_path / name / KEPT), module, until)
        return module.state_dict()

    whole = trained("whole", STEPS)
    trained("killed", 7)
    assert not (tmp_path / "killed" / KEPT).exists()
    killed = trained("killed", STEPS)
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    assert all(killed[name].equal(value) for name, value in whole.items())


def test_validation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    for name, validations in (("none", 0), ("all", STEPS)):
        best = Best(toy_environment(), validations, 0, tmp_path / name / KEPT)
        best.on_train_end = lambda *_: None  # type: ignore[method-assign]
        train(tmp_path / name, best, toy_module("exact", "categorical", SAMPLED, STEPS))
    none, each = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["state_dict"] for name in ("none", "all")
    )
    assert all(each[name].equal(value) for name, value in none.items())


@pytest.mark.parametrize(
    ("rule", "policy", "target"),
    [("exact", "categorical", "probability"), ("supervised", "utility", "score")],
)
def test_a_validation_is_the_reward_of_every_question_at_prices_that_are_drawn(
    rule: str, policy: str, target: str
) -> None:
    module = toy_module(rule, policy, SAMPLED, target=target)
    torch.nn.init.normal_(module.gate.head.weight)
    environment = toy_environment()
    environment.table.score.copy_(torch.rand(environment.table.score.shape))
    best, wanted, rows = Best(environment, 1, 0, Path()), [], torch.arange(len(environment.table))
    for i in range(PRICES):
        price = 0.01 * (2.0 / 0.01) ** ((i + 0.5) / PRICES)
        seen = environment.observe(rows, torch.full((len(rows),), price))
        action = environment.action(module.gate.eval().policy(seen).mode())[:, None]
        values = environment.probabilities(rows) if target == "probability" else environment.scores(rows)
        wanted.append((values - price * environment.relative).gather(1, action).mean() / (1 + price))
    module.gate.train()
    assert best.reward(module) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-6)
    assert module.gate.training


@pytest.mark.parametrize(("rule", "policy"), [("exact", "categorical"), ("supervised", "utility")])
def test_a_validation_asks_no_more_than_its_share(
    rule: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = toy_module(rule, policy, SAMPLED, steps=100, batch=64)
    best, asked = Best(toy_environment(), 20, 0, Path()), []
    observe = best.environment.observe
    monkeypatch.setattr(
        best.environment, "observe", lambda rows, price: asked.append(rows) or observe(rows, price)
    )
    monkeypatch.setattr("pyrskip.training.best.LEAST", 30)
    best.reward(module)
    (rows,) = asked
    assert len(rows) == len(rows.unique()) == 40  # an eighth of 5 steps of 64


def test_with_a_target_cost_a_validation_is_the_score_at_that_cost() -> None:
    module = toy_module("exact", "bernoulli", RewardConfig(target=0.5))
    best, rows = Best(toy_environment(), 1, 0, Path()), torch.arange(200)
    module.calibrate(best.environment, rows)
    seen = best.environment.observe(rows, module.price.sample(200))
    wanted = best.environment.probability(rows, module.gate.policy(seen).mode()).mean()
    module.gate.tilt.zero_()
    assert best.reward(module) == pytest.approx(float(wanted))
    assert float(module.gate.tilt) == 0


def test_validations_fall_on_whole_steps_where_gradients_are_accumulated(tmp_path: Path) -> None:
    best = Scripted([1.0] * 4, 4, 0, tmp_path / KEPT)
    train(tmp_path, best, accumulate=3)
    assert sorted(best.seen) == [1, 2, 3, 4]


def test_a_gate_is_not_judged_before_cost_counts_in_full(tmp_path: Path) -> None:
    module = toy_module("exact", "categorical", SAMPLED, STEPS, warmup=0.25, anneal=0.25)
    best = Scripted([9.0] * 6 + [1.0] * 6, STEPS, 0, tmp_path / KEPT)
    train(tmp_path, best, module)
    assert min(best.seen) == 7 and kept(tmp_path)["step"] == 7


@pytest.mark.parametrize("key", ["validations", "patience"])
def test_less_than_none_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"rule\..*{key}=-1.*allowed: at least 0"):
        rule_config("exact")(**{key: -1})  # type: ignore[arg-type]
