"""Learning rules on a world of two kinds of question, one answerable at the glance and one from the full
pyramid alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pyrskip.config import to_plain
from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.launch import conf_directory
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.training.estimators import BASELINES
from pyrskip.training.gate import GateModule
from pyrskip.training.health import CollapseAlarm
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from pyrskip.training.rules.reinforce import ReinforceModule
from tests.models import tiny_batch
from tests.toys import IMAGES, batches, online_module, pairs, random_gate, toy_module, train_by_lightning

# without a trainer there is nowhere to log to
untracked = pytest.mark.filterwarnings("ignore:.*self.log.*:UserWarning")


def train(module: GateModule, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run all steps of the module by hand, which is faster than a Trainer; returns what it logged last."""
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda metrics, **_: logged.update(metrics))
    module.log_every = module.optimizer_config.steps
    built = module.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    module.train()
    for i, rows in enumerate(batches(module)):
        torch.manual_seed(i)
        optimizer.zero_grad()
        module.training_step(rows, i).backward()
        torch.nn.utils.clip_grad_norm_(module.gate.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return {name: v.item() for name, v in logged.items()}


@torch.no_grad()
def value(module: GateModule, price: float) -> tuple[float, float]:
    """Mean reward of the gate's mode at a price, and of the best decisions that there are."""
    environment, rows = module.environment, torch.arange(2 * IMAGES)
    prices = torch.full((len(rows),), price)
    mode = module.gate.eval().policy(environment.observe(rows, prices)).mode()
    got = environment.score(rows, mode) - price * environment.cost(rows, mode)
    assert isinstance(environment, TableEnvironment)
    best = (environment.scores(rows) - price * environment.relative).amax(-1)
    return float(got.mean()), float(best.mean())


@pairs
def test_every_rule_learns_which_question_needs_the_pyramid(
    rule: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = toy_module(rule, policy, RewardConfig(0.3))
    logged = train(module, monkeypatch)
    got, best = value(module, 0.3)
    assert best == pytest.approx(1 - 0.3 * (1 + 4 / 84) / 2, abs=0.01)
    assert got > 0.98 * best
    # the mode that is logged is the mode that inference runs
    assert logged["gate/accuracy"] > 0.95 and logged["reward/price"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("rule", "policy"),
    [("supervised", "utility"), pytest.param("gumbel", "categorical", marks=pytest.mark.slow)],
)
def test_one_gate_serves_every_price(rule: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy_module(rule, policy, RewardConfig(low=0.03, high=10.0), steps=400)
    train(module, monkeypatch)
    # at the first two the hard questions are worth the pyramid, at the last they are not
    for price in (0.05, 0.3, 5.0):
        got, best = value(module, price)
        assert got > best - 0.05 * (1 + price), price


def test_a_gate_that_cannot_see_the_question_cannot_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy_module("supervised", "utility", RewardConfig(0.3), name="glance", steps=60)
    train(module, monkeypatch)
    got, best = value(module, 0.3)
    assert got < best - 0.1


def test_the_same_seed_trains_the_same_gate_and_another_seed_another() -> None:
    def weights(seed: int) -> Tensor:
        module = toy_module("gumbel", "bernoulli", RewardConfig(), steps=15)
        module.seed = seed
        torch.seed()
        train_by_lightning(module)
        return torch.cat([p.detach().flatten() for p in module.gate.parameters()])

    assert weights(0).equal(weights(0))
    assert not weights(0).equal(weights(1))


def test_cost_does_not_count_during_warm_up() -> None:
    module = toy_module("gumbel", "bernoulli", RewardConfig(100.0), steps=40, warmup=0.5)
    assert [module.cost_weight(i) for i in (0, 19, 20, 39)] == [0, 0, 1, 1]
    assert toy_module("gumbel", "bernoulli", RewardConfig(), warmup=0.0).cost_weight(0) == 1


@pytest.mark.parametrize(
    ("rule", "policy", "allowed"), [("supervised", "bernoulli", "utility"), ("gumbel", "utility", "bern")]
)
def test_a_rule_refuses_a_policy_that_it_cannot_train(rule: str, policy: str, allowed: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"gate\.policy='{policy}' cannot be trained by rule.name='{rule}'; allowed: auto, {allowed}",
    ):
        toy_module(rule, policy, RewardConfig())


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"rule\.name='luck'.*allowed: actor_critic, awares, cares, evidence, exact, gumbel, ratio, re",
    ):
        rule_config("luck")


@pytest.mark.parametrize(
    ("rule", "config"),
    [
        ("supervised", {"batch": 0}),
        ("supervised", {"target": "luck"}),
        ("gumbel", {"temperature": 0.0}),
        ("gumbel", {"samples": 0}),
        ("exact", {"entropy": -1.0}),
        ("exact", {"warmup": 1.0}),
        ("exact", {"anneal": 1.1}),
        ("reinforce", {"baseline": "luck"}),
        ("actor_critic", {"trace": 1.1}),
        ("actor_critic", {"epochs": 2}),
    ],
    ids=str,
)
def test_an_impossible_rule_is_refused_with_what_is_allowed(rule: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(config))}=.*allowed"):
        rule_config(rule)(**config)


def gradient(rule: str, policy: str, repeats: int, **config: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a step's gradient on the gate's policy, on the same 32 rows `repeats`
    times."""
    alone = {"target": "score", "entropy": 0.0, "entropy_end": None}
    module = toy_module(rule, policy, RewardConfig(0.3), **alone, **config)
    random_gate(module)
    module.log_every = 0
    found = []
    rows = torch.arange(32).repeat(1 if rule == "exact" else 32)
    for seed in range(repeats):
        torch.manual_seed(seed)
        module.zero_grad()
        loss = module.training_step(rows, 0)
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append(
            torch.cat(
                [
                    p.grad.flatten()
                    for n, p in module.gate.named_parameters()
                    if "critic" not in n and p.grad is not None
                ]
            )
        )
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / repeats**0.5


@pytest.mark.parametrize("policy", ReinforceModule.policies())
@pytest.mark.parametrize("baseline", ["none", "running_mean", "self_critical", "leave_one_out"])
def test_a_step_of_reinforce_has_the_gradient_of_exact_for_every_policy(policy: str, baseline: str) -> None:
    expected, _ = gradient("exact", policy, 1)
    mean, error = gradient("reinforce", policy, 30, baseline=baseline, samples=2)
    assert expected.abs().max() > 1e-3
    # some thousand numbers are compared: a few may be further off than 4 standard errors of 30 steps
    assert ((mean - expected).abs() > 4 * error + 1e-6).float().mean() < 0.01


@pytest.mark.parametrize("policy", ["bernoulli", "categorical"])
def test_more_samples_give_gumbel_the_same_gradient_with_less_noise(policy: str) -> None:
    one, noise_of_one = gradient("gumbel", policy, 60, samples=1)
    four, noise_of_four = gradient("gumbel", policy, 60, samples=4)
    assert 0.4 < noise_of_four.norm() / noise_of_one.norm() < 0.6
    assert (one - four).norm() < 1.5 * noise_of_one.norm() < one.norm()


def test_a_step_of_actor_critic_has_the_gradient_of_exact_on_the_scale_of_its_steps() -> None:
    expected, _ = gradient("exact", "sequential", 1)
    mean, error = gradient("actor_critic", "sequential", 40, trace=1.0, value_weight=0.0)
    # the loss is a mean over both steps of an episode, and centring the advantage takes 1 / 1024 of it
    assert ((2 * mean - expected).abs() > 8 * error + 1e-5).float().mean() < 0.01
    assert not ((2 * mean + expected).abs() > 8 * error + 1e-5).float().mean() < 0.01


def test_one_sample_is_enough_for_gumbel_and_too_few_for_a_baseline_of_the_others() -> None:
    rule_config("gumbel")(samples=1)
    for name, baseline in BASELINES.items():
        few = {"samples": 1, "baseline": name}
        if baseline.samples == 1:
            rule_config("reinforce")(**few)
            continue
        said = rf"rule\.samples=1 with rule\.baseline={name}: allowed: at least {baseline.samples}"
        with pytest.raises(UserError, match=said):
            rule_config("reinforce")(**few)


def test_what_is_collected_for_several_steps_survives_a_checkpoint() -> None:
    module = toy_module("actor_critic", "sequential", RewardConfig(0.1), clip=0.2, epochs=3)
    module.log_every = 0
    module.training_step(torch.arange(8), 0)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    again = toy_module("actor_critic", "sequential", RewardConfig(0.1), clip=0.2, epochs=3)
    again.log_every = 0
    again.on_load_checkpoint(checkpoint)
    torch.manual_seed(0)
    first = module.training_step(torch.arange(8, 16), 1)
    torch.manual_seed(0)
    assert again.training_step(torch.arange(16, 24), 1) == first


def test_a_checkpoint_keeps_every_ranks_own_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy_module("actor_critic", "sequential", RewardConfig(0.1), clip=0.2, epochs=2)
    own = [{"rows": torch.full((4,), rank)} for rank in range(2)]

    def gather(into: list[Any], mine: Any) -> None:
        assert mine is own[0]
        into[:] = own

    monkeypatch.setattr(type(module), "ranks", 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module.memory = own[0]
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    for rank in range(3):
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.on_load_checkpoint(checkpoint)
        # a rank that was not there begins with episodes of its own
        assert module.memory == (own[rank] if rank < 2 else {})
    again = toy_module("actor_critic", "sequential", RewardConfig(0.1))
    again.on_save_checkpoint(plain := {})
    assert plain == {}


@pytest.mark.parametrize(
    ("rule", "policy", "online"), [("gumbel", "rungs", True), ("exact", "utility", False)]
)
def test_what_a_rule_cannot_train_is_refused_in_one_sentence(rule: str, policy: str, online: bool) -> None:
    with pytest.raises(UserError, match=r"cannot be trained by rule.name=.*allowed: auto"):
        RULES[rule].check(rule_config(rule)(online=online), GateConfig(policy=policy), RewardConfig())


def test_supervised_refuses_a_reward_that_its_gate_does_not_weigh() -> None:
    with pytest.raises(UserError, match=r"reward\.form=bonus.*allowed: form=linear"):
        RULES["supervised"].check(rule_config("supervised")(), GateConfig(), RewardConfig(form="bonus"))


def test_the_published_table_is_what_the_rules_say() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs/rules.md").read_text()
    for name, rule in RULES.items():
        line, *_ = re.findall(rf"(?m)^\| `{name}` \|.*$", page)  # behind it, policies of the same name
        offline, online = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[2:4])
        assert (offline, online) == (rule.policies(), rule.policies(online=True))


@pytest.mark.parametrize("name", RULES)
def test_a_rules_yaml_states_the_defaults_of_its_config_but_for_the_optimizer(name: str) -> None:
    stated = OmegaConf.to_container(OmegaConf.load(conf_directory() / f"rule/{name}.yaml"))
    expected = to_plain(rule_config(name)())
    assert isinstance(stated, dict)
    assert stated.pop("optimizer").keys() == expected.pop("optimizer").keys()
    assert (stated.pop("target"), expected.pop("target")) == ("auto", "probability")
    assert stated == expected


def test_schedules_are_shares_of_the_steps() -> None:
    module = toy_module(
        "gumbel", "bernoulli", RewardConfig(), steps=100, warmup=0.2, anneal=0.4, entropy=0.1, entropy_end=0.0
    )
    assert [module.cost_weight(i) for i in (0, 19, 20, 40, 60, 99)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert [module.entropy_weight(i) for i in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0])


def test_a_curriculum_begins_with_the_questions_that_a_decision_matters_to() -> None:
    module = toy_module("exact", "categorical", RewardConfig(0.0), steps=100, curriculum=0.5)
    rows, price = torch.arange(2), torch.zeros(2)
    for step, easy in ((0, 0.0), (25, 0.5), (50, 1.0)):
        assert module.weight(rows, price, step).tolist() == pytest.approx([easy, 1.0])


def test_a_gate_that_decides_the_same_of_every_question_sets_off_the_alarm_once() -> None:
    module = toy_module("gumbel", "bernoulli", RewardConfig(), steps=100)
    seen = module.environment.observe(torch.arange(20), torch.ones(20))
    torch.nn.init.constant_(module.gate.head.bias, -9.0)
    told = [module.alarm.look(step, module.gate, seen, module.price.config) for step in range(0, 100, 10)]
    assert [t is not None for t in told] == [False, False, True, *[False] * 7]
    assert told[2] is not None and "gets the glance alone; lower reward.high" in told[2]
    torch.nn.init.zeros_(random_gate(module).head.bias)
    alarm = CollapseAlarm(100)
    assert all(alarm.look(step, module.gate, seen, module.price.config) is None for step in range(0, 100, 10))


TILES = [("gumbel", policy, (2, 1, 1)) for policy in ("bernoulli", "quadtree", "topk")]
ONLINE = [("gumbel", "bernoulli", (1,)), *TILES, ("gumbel", "categorical", (1,))]


@untracked
@pytest.mark.parametrize(("rule", "policy", "grid"), [*ONLINE, ("supervised", "utility", (1,))], ids=str)
def test_a_step_online_gives_the_gate_gradients(rule: str, policy: str, grid: tuple[int, ...]) -> None:
    module = online_module(rule, policy, grid)
    module.training_step(tiny_batch(), 0).backward()
    for parameter in module.gate.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.ne(0).any()


@untracked
@pytest.mark.parametrize(
    ("rule", "policy"), [pair for pair in valid_pairs(online=True) if pair[1] != "rungs"]
)
def test_a_step_online_encodes_no_tile_twice(rule: str, policy: str) -> None:
    module, batch = online_module(rule, policy, (1,)), tiny_batch()
    assert isinstance(module.environment, ModelEnvironment)
    model = module.environment.model
    module.training_step(batch, 0)
    assert len(batch.image) < model.encoded <= int((model.pyramid.capacity(batch.size) > 0).sum())


@untracked
def test_a_step_online_leaves_the_model_that_answers_alone() -> None:
    module = online_module("gumbel", "bernoulli", (1,))
    module.training_step(tiny_batch(), 0).backward()
    assert isinstance(module.environment, ModelEnvironment)
    assert all(p.grad is None for p in module.environment.model.parameters())


def test_the_model_that_answers_is_no_part_of_what_is_trained() -> None:
    module = online_module("gumbel", "bernoulli", (1,))
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"gate"}
