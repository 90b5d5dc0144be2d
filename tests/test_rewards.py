"""Claims about rewards and prices: what an answer is worth, and how a price moves until a gate costs what it
may."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrskip.errors import UserError
from pyrskip.observation import Observation
from pyrskip.reward import Price, RewardConfig
from pyrskip.rollouts import environments
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.training.gate import RewardModule
from pyrskip.training.health import glance_is_best
from pyrskip.training.rules import RULES
from tests.toys import IMAGES, pairs, random_gate, toy_environment, toy_module, train_by_lightning


def test_a_fixed_price_is_the_price() -> None:
    assert Price(RewardConfig(0.25)).sample(3).sub(0.25).abs().max() < 1e-6
    assert Price(RewardConfig(0.0)).sample(3).eq(0).all()


def test_a_sampled_price_is_log_uniform_in_its_range() -> None:
    torch.manual_seed(0)
    price = Price(RewardConfig(low=0.01, high=1.0)).sample(20_000)
    assert price.min() >= 0.01 * (1 - 1e-5) and price.max() <= 1 + 1e-5
    share = (price.log() - math.log(0.01)) / math.log(100)
    for bound in (0.1, 0.5, 0.9):
        assert abs(float((share < bound).float().mean()) - bound) < 4 * (bound * (1 - bound) / 20_000) ** 0.5


def test_the_multiplier_rises_above_the_target_and_falls_below_it() -> None:
    price = Price(RewardConfig(target=0.4, rate=0.05))
    steps = [float(price.sample(1))]
    for cost in (0.8, 0.4, 0.2):
        price.update(torch.tensor(cost))
        steps.append(float(price.sample(1)))
    assert steps[0] == pytest.approx(0.1) and steps[1] == pytest.approx(0.1 * math.exp(0.05))
    assert steps[2] == pytest.approx(steps[1]) and steps[3] == pytest.approx(steps[2] * math.exp(-0.025))
    again = Price(RewardConfig(target=0.4))
    again.load_state_dict(price.state_dict())
    assert float(again.sample(1)) == steps[3]
    for cost in (1e9, -1e9):
        price.update(torch.tensor(cost))
        assert 1e-4 * 0.99 <= float(price.sample(1)) <= 1e2 * 1.01


@pytest.mark.parametrize("fixed", [0.1, None])
def test_a_price_without_a_target_does_not_move(fixed: float | None) -> None:
    price = Price(RewardConfig(fixed))
    before = price.log_price.clone()
    price.update(torch.tensor(5.0))
    assert price.log_price.equal(before)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"low": 1.0, "high": 0.5}, r"reward\.low=1\.0.*allowed: 0 < low < high"),
        ({"price": -0.1}, r"reward\.price=-0\.1: allowed: at least 0, or null"),
        ({"target": 0.0}, r"reward\.target=0\.0.*\(0, 1\]"),
        ({"target": 1.5}, r"reward\.target=1\.5.*\(0, 1\]"),
        ({"target": 0.5, "price": 0.1}, r"reward\.price=0\.1 with reward\.target=0\.5.*allowed: one of them"),
    ],
    ids=str,
)
def test_an_impossible_reward_is_refused_with_what_is_allowed(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RewardConfig(**config)


def test_training_raises_the_price_of_a_dear_gate_and_lowers_that_of_a_cheap_one() -> None:
    for target, open_bias, dearer in ((0.1, 3.0, True), (0.9, -3.0, False)):
        module = toy_module("gumbel", "bernoulli", RewardConfig(target=target, rate=0.2), steps=10)
        torch.nn.init.constant_(module.gate.head.bias, open_bias)
        logged = train_by_lightning(module)
        assert (logged["cost/relative_flops_sampled"] > target) is dearer
        assert (float(module.price.sample(1)) > 0.1) is dearer


REWARDED = [(name, rule.default_policy) for name, rule in RULES.items() if issubclass(rule, RewardModule)]


@pytest.mark.parametrize(("rule", "policy"), REWARDED)
def test_the_multiplier_moves_as_far_as_cost_counts(
    rule: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all in warm-up, in annealing by its weight: a multiplier that climbs while nothing can answer it
    starts from where it has no business to be."""
    target, rate = 0.1, 0.05
    schedule = {"warmup": 0.4, "anneal": 0.4}
    module = toy_module(rule, policy, RewardConfig(target=target, rate=rate), steps=10, **schedule)
    module.log_every = 0
    spent, cost = [], module.environment.cost
    monkeypatch.setattr(
        module.environment, "cost", lambda rows, decision: spent.append(cost(rows, decision)) or spent[-1]
    )
    moved = []
    for step in range(10):
        before = module.price.log_price.clone()
        module.training_step(torch.arange(40), step)
        moved.append(float(module.price.log_price - before))
        # the last that a step asks for is what its sample costs
        assert moved[-1] == pytest.approx(
            module.cost_weight(step) * rate * (float(spent[-1].mean()) - target) / target, abs=1e-5
        )
    assert moved[:5] == [0.0] * 5 and all(further > 0.1 for further in moved[7:])
    assert module.cost_weight(6) == pytest.approx(0.5) and 0 < moved[6] < 0.6 * moved[8]


def test_a_rule_without_a_warm_up_moves_the_multiplier_from_the_first_step_on() -> None:
    module = toy_module("supervised", "utility", RewardConfig(target=0.1, rate=0.5), steps=10)
    module.log_every = 0
    module.training_step(torch.arange(40), 0)
    assert module.price.log_price > math.log(0.1)


def test_a_bonus_counts_only_where_the_answer_is_right_and_a_wrong_guess_costs() -> None:
    score, cost, price = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.0]), torch.tensor(0.4)
    assert RewardConfig(form="bonus").reward(score, cost, price).tolist() == pytest.approx([1.3, 0.0])
    assert RewardConfig(guess_penalty=0.5).reward(score, cost, price).tolist() == pytest.approx([0.9, -0.5])


def test_a_reward_that_only_the_glance_is_worth_is_told_with_its_arithmetic() -> None:
    environment = toy_environment()
    assert glance_is_best(environment, RewardConfig(0.5), 0.5) is None
    told = glance_is_best(environment, RewardConfig(3.0), 3.0)
    assert told is not None and "easy from 1, gains 0.000 of score for 3 x 0.190" in told


def test_a_gate_refuses_a_price_that_it_was_not_trained_on() -> None:
    module = toy_module("gumbel", "categorical", RewardConfig(low=0.1, high=1.0), steps=2)
    train_by_lightning(module)
    assert module.gate.prices([0.1, 0.5, 1.0]) == [0.1, 0.5, 1.0]
    with pytest.raises(UserError, match=r"price=0\.05 is outside .*allowed: 0\.1 to 1"):
        module.gate.prices([0.5, 0.05])


@pytest.mark.slow
def test_two_ranks_hold_the_same_multiplier(tmp_path: Path) -> None:
    module = toy_module("reinforce", "bernoulli", RewardConfig(target=0.4), steps=6, baseline="running_mean")

    class Kept(pl.Callback):
        def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            state = {
                "price": module.price.log_price,
                "mean": module.mean,
                "rank": torch.tensor(trainer.global_rank),
            }
            torch.save(state, tmp_path / f"{trainer.global_rank}.pt")

    # easy questions on one rank, hard ones on the other: alone, each would move its price its own way
    class Halves(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            rank = torch.distributed.get_rank()
            yield from [torch.arange(rank, 40, 2)] * 6

    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Kept()],
    )
    trainer.fit(module, DataLoader(Halves(), batch_size=None))
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["rank"] != two["rank"]
    assert one["price"] == two["price"] != torch.tensor(math.log(0.1))
    assert one["mean"] == two["mean"] != 0


@pairs
@pytest.mark.parametrize("target", [0.2, 0.5, 0.9, 1.0])
def test_calibration_meets_the_target_as_closely_as_actions_allow(
    rule: str, policy: str, target: float
) -> None:
    module = toy_module(rule, policy, RewardConfig(target=target))
    gate, environment = random_gate(module), module.environment
    rows = torch.arange(2 * IMAGES)
    reached = module.calibrate(environment, rows)
    # one question more at the full pyramid would be too much
    assert target - 1.05 * 2 / len(rows) <= reached <= target
    mode = gate.policy(environment.observe(rows, module.price.sample(len(rows)))).mode()
    assert float(environment.cost(rows, mode).mean()) == reached


@pairs
def test_calibration_in_chunks_is_that_of_all_rows_at_once(
    rule: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = toy_module(rule, policy, RewardConfig(target=0.5))
    gate, environment, rows = random_gate(module), module.environment, torch.arange(2 * IMAGES)
    reached, tilt = module.calibrate(environment, rows), float(gate.tilt)
    seen: list[int] = []
    gate.register_forward_hook(lambda gate, inputs, outputs: seen.append(len(outputs)))
    observe = environment.observe

    def counted(some: Tensor, price: Tensor) -> Observation:
        seen.append(len(some))
        return observe(some, price)

    monkeypatch.setattr(environment, "observe", counted)
    monkeypatch.setattr(environments, "AT_ONCE", 32)
    assert module.calibrate(environment, rows) == pytest.approx(reached, abs=1e-6)
    assert float(gate.tilt) == pytest.approx(tilt, rel=1e-4, abs=1e-4)
    assert seen == [n for n in (*[32] * 6, 8) for _ in range(2)]


def test_calibration_to_less_than_the_glance_costs_gives_the_glance() -> None:
    module = toy_module("gumbel", "bernoulli", RewardConfig(target=0.001))
    random_gate(module)
    rows = torch.arange(2 * IMAGES)
    reached = module.calibrate(module.environment, rows)
    assert isinstance(module.environment, TableEnvironment)
    assert reached == pytest.approx(float(module.environment.relative[:, 0].mean()), rel=1e-5)
