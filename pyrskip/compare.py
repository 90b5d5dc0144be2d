"""Stage compare: every rule with every policy that it can train, from one set of rollouts or one of each of
several flex seeds, over several gate seeds.

Axes: P prices, N questions, S listed actions. Gates train in a plain loop around the rules' own
`training_step`, since a step on a table takes milliseconds, and in several processes of one thread each.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.comparison import Entry, Mark, as_list, plot_comparison, print_comparison
from pyrskip.evaluation.hull import upper_hull, value_at
from pyrskip.evaluation.plays import decide
from pyrskip.files import write_json
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.gates.policies import PRODUCTS
from pyrskip.identity import HOW
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.oracles import by_type
from pyrskip.rollouts.table import RolloutTable
from pyrskip.training import RULES, find_rule, valid_pairs
from pyrskip.training.gate import GateModule, RuleConfig
from pyrskip.training.module import OptimizerConfig, step_seed

# of each rule's own options: one for all would collapse the rules that learn from less
ENTROPY = {"supervised": 0.0, "gumbel": 0.1, "reinforce": 0.1, "actor_critic": 0.2, "exact": 0.1}
# validation questions that the reward is followed on, and the share of its final value that counts as reached
WATCHED, REACHED = 400, 0.95


@dataclass(frozen=True)
class CompareConfig:
    """prices: that every gate is evaluated at. seeds: gates of each pair. batch, entropy_end, optimizer: of
    every rule alike.

    entropy: weight of the entropy bonus by rule, which falls to entropy_end; by default what conf/rule has.
    checks: how often the reward is measured in training. workers: processes, 0: none but this one. others:
    directories of further runs, of other flex seeds on the same data, whose rollouts gates are trained on as
    well.
    """

    prices: tuple[float, ...] = (0.005, 0.015, 0.03, 0.06, 0.12, 0.2, 0.35, 0.7)
    seeds: int = 3
    batch: int = 128
    entropy: dict[str, float] = field(default_factory=lambda: dict(ENTROPY))
    entropy_end: float = 0.001
    checks: int = 16
    workers: int = field(default=2, metadata=HOW)
    others: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not self.prices or min(self.prices) <= 0 or len(set(self.prices)) < len(self.prices):
            raise UserError(
                f"compare.prices={list(self.prices)}: allowed: one or more different prices above 0"
            )
        if self.entropy.keys() != RULES.keys():
            raise UserError(
                f"compare.entropy names {', '.join(sorted(self.entropy))}; allowed: each of "
                f"{', '.join(RULES)}"
            )
        least = min(self.workers, self.entropy_end, *self.entropy.values())
        if min(self.seeds, self.batch, self.checks) < 1 or least < 0:
            raise UserError(
                f"compare.seeds={self.seeds}, batch={self.batch}, checks={self.checks}, "
                f"workers={self.workers}, "
                f"entropy={self.entropy}, entropy_end={self.entropy_end}: allowed: at least 1, 1, 1, and 0 "
                "for the others"
            )

    def check(self, reward: RewardConfig) -> None:
        """Refuse a reward that not every rule can learn, and prices outside of what it trains on."""
        if reward.mode != "sampled" or reward.form != "linear":
            raise UserError(
                f"reward.price={reward.price}, target={reward.target}, form={reward.form}: allowed in a "
                "comparison: "
                "price=null, target=null, form=linear"
            )
        for price in self.prices:
            if not reward.low <= price <= reward.high:
                raise UserError(
                    f"compare.prices={price} is outside of what is trained on; allowed: {reward.low} to "
                    f"{reward.high}"
                )


@dataclass(frozen=True)
class Task:
    """All that a process needs of one flex seed. query_flops, glance_flops: of encoding a question, and a
    glance for the gate alone, confidence_flops: of asking the model how sure it is, all in the cost model's
    unit; flops_share: of 1 FLOP in it."""

    config: CompareConfig
    gate: GateConfig
    reward: RewardConfig
    pyramid: Pyramid
    budget: BudgetRule
    rollouts: Path
    flex_seed: int
    out: Path
    query_flops: float
    glance_flops: float
    confidence_flops: float
    flops_share: float

    @cached_property
    def tables(self) -> dict[str, RolloutTable]:
        return {split: RolloutTable.load(self.rollouts / split) for split in ("gate", "val", "test")}

    @property
    def unit(self) -> float:
        return self.tables["gate"].mean_full_flops

    def environment(self, split: str) -> TableEnvironment:
        return TableEnvironment(self.tables[split], self.pyramid, self.budget, self.unit)


def compare(tasks: Sequence[Task], seed: int) -> list[Entry]:
    """Train and evaluate every pair and seed that is not there yet; write comparison.json and comparison.png.

    tasks: one of each flex seed, with all else the same.
    """
    first = tasks[0]
    jobs = [
        (task, rule, policy, seed + i)
        for rule, policy in valid_pairs(online=False)
        if possible(policy, first.tables["gate"].actions)
        for task in tasks
        for i in range(first.config.seeds)
    ]
    _play_all([job for job in jobs if not _part(*job).exists()], first.config.workers)
    entries = [Entry(**line) for job in jobs for line in json.loads(_part(*job).read_text())]
    write_json(first.out / "comparison.json", as_list(entries))
    plot_comparison(entries, [mark for task in tasks for mark in marks(task)], first.out / "comparison.png")
    print_comparison(entries)
    return entries


def possible(policy: str, actions: ActionSet) -> bool:
    """Whether a policy can say something of its own over a table's actions: rungs without a ladder are
    Bernoulli's."""
    if policy == "bernoulli":
        return actions.complete and not actions.ladder
    return (policy not in PRODUCTS or actions.complete) and (policy != "rungs" or bool(actions.ladder))


def play(task: Task, rule: str, policy: str, seed: int) -> None:
    """Train one gate, evaluate it at every price, and write its part."""
    c, kind = task.config, find_rule(rule)
    environment = task.environment("gate")
    torch.manual_seed(seed)
    gate = build_gate(replace(task.gate, policy=policy), environment.layout)
    target = "probability" if kind.soft and environment.table.probability is not None else "score"
    settings = RuleConfig(
        rule,
        batch=c.batch,
        target=target,
        entropy=c.entropy[rule],
        entropy_end=c.entropy_end,
        optimizer=c.optimizer,
    )
    module = kind(settings, gate, environment, task.reward, seed)
    curve = train(module, task)
    seconds = settled([at for at, _ in curve], [value for _, value in curve])
    entries = evaluate(task, gate, rule, policy, seed, seconds)
    write_json(_part(task, rule, policy, seed), as_list(entries))


def train(module: GateModule, task: Task) -> list[tuple[float, float]]:
    """Run all steps; returns (seconds of training so far, mean reward of the mode on validation over the
    prices)."""
    c, rows = task.config, len(task.tables["gate"])
    built = module.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    module.log_every = 0
    at_checks = {round(i * c.optimizer.steps / c.checks) for i in range(1, c.checks + 1)}
    curve, spent = [(0.0, watched(module.gate, task))], 0.0
    for step in range(c.optimizer.steps):
        start = time.perf_counter()
        torch.manual_seed(step_seed(module.seed, step, 1))
        module.gate.train()
        optimizer.zero_grad()
        loss = module.training_step(torch.randint(rows, (c.batch,)), step)
        assert isinstance(loss, Tensor)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.gate.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        spent += time.perf_counter() - start
        if step + 1 in at_checks:
            curve.append((spent, watched(module.gate, task)))
    return curve


@torch.no_grad()
def watched(gate: Gate, task: Task) -> float:
    """Mean reward of the mode on some validation questions, over the prices."""
    gate.eval()
    environment = task.environment("val")
    rows = torch.randperm(len(task.tables["val"]), generator=torch.Generator().manual_seed(0))[:WATCHED]
    total = 0.0
    for price in task.config.prices:
        asked = gate.policy(environment.observe(rows, torch.full((len(rows),), price))).mode()
        total += float((environment.score(rows, asked) - price * environment.cost(rows, asked)).mean())
    return total / len(task.config.prices)


def settled(seconds: Sequence[float], reward: Sequence[float]) -> float:
    """When the reward came within REACHED of its rise from the first value to the last, and stayed there."""
    enough = reward[0] + REACHED * (reward[-1] - reward[0])
    first = len(reward) - 1
    while first > 0 and reward[first - 1] >= enough:
        first -= 1
    return seconds[first]


def evaluate(task: Task, gate: Gate, rule: str, policy: str, seed: int, seconds: float) -> list[Entry]:
    """A trained gate at every price, on test."""
    table, unit, prices = task.tables["test"], task.unit, task.config.prices
    decided = decide(gate, table, task.pyramid, task.budget, unit, prices)
    seen = task.environment("test").observe(torch.arange(1), torch.tensor([prices[0]]))
    encoding = (
        task.query_flops * gate.reads_query + task.glance_flops * gate.reads_glance + task.confidence_flops
    )
    own = (gate.flops(seen) * task.flops_share + encoding) / unit
    score, flops = (
        table.score[:, : len(table.actions)].double(),
        table.cost.flops[:, : len(table.actions)].double(),
    )
    full = float(score[:, table.actions.full].mean())
    bootstrap, hull = Bootstrap(table.image_of, 200), _hull(task)
    entries = []
    for price, action in zip(prices, decided, strict=True):
        right = score.gather(1, action[:, None]).squeeze(1)
        cost = float(flops.gather(1, action[:, None]).mean()) / unit + own
        share = torch.bincount(action, minlength=len(table.actions)).double() / len(action)
        best = _oracle(task, price)
        entries.append(
            Entry(
                rule=rule,
                policy=policy,
                price=price,
                seed=seed,
                flex_seed=task.flex_seed,
                accuracy=float(right.mean()),
                accuracy_ci95=bootstrap.interval(right),
                retention=_over(float(right.mean()), full),
                relative_flops=cost,
                regret=best[0] - price * best[1] - (float(right.mean()) - price * cost),
                seconds=seconds,
                # dealt out to other questions, an action is as right as it is on all
                random=float(share @ score.mean(0)),
                hull=value_at(hull, cost),
            )
        )
    return entries


def marks(task: Task) -> list[Mark]:
    """The fixed hull and the oracle by type on test."""
    table = task.tables["test"]
    full = float(table.score[:, table.actions.full].double().mean())
    of = task.flex_seed
    hull = [Mark("hull", of, _over(accuracy, full), cost) for cost, accuracy in _hull(task)]
    oracle = [_oracle(task, price) for price in task.config.prices]
    return hull + [Mark("oracle:type", of, _over(accuracy, full), cost) for accuracy, cost in oracle]


def _over(accuracy: float, full: float) -> float:
    return accuracy / full if full else 0.0


def _hull(task: Task) -> list[tuple[float, float]]:
    """(cost, accuracy) on test of the fixed selections on validation's hull."""
    val, test = task.tables["val"], task.tables["test"]
    listed = len(val.actions)
    score, cost = val.score[:, :listed].double().mean(0).tolist(), val.cost.flops[:, :listed].mean(0).tolist()
    test_cost = (test.cost.flops[:, :listed].mean(0) / task.unit).tolist()
    test_score = test.score[:, :listed].double().mean(0).tolist()
    return sorted((test_cost[i], test_score[i]) for i in upper_hull(cost, score))


def _oracle(task: Task, price: float) -> tuple[float, float]:
    """Accuracy and relative cost on test of the best action of each question type."""
    table = task.tables["test"]
    best = by_type(task.tables["gate"], price, task.unit)
    action = torch.tensor([best.get(kind, table.actions.full) for kind in table.types])[:, None]

    def mean(of: Tensor) -> float:
        return float(of.double().gather(1, action).mean())

    return mean(table.score), mean(table.cost.flops) / task.unit


def _play_all(jobs: Sequence[tuple[Task, str, str, int]], workers: int) -> None:
    """Play all jobs, in processes of one thread each where there are workers."""
    if workers < 2 or len(jobs) < 2:
        for job in jobs:
            play(*job)
        return
    split = [(task, (rule, policy, seed)) for task, rule, policy, seed in jobs]
    tasks = {task.flex_seed: task for task, _ in split}
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (tasks,)) as pool:
        for done in as_completed([pool.submit(_play_here, task.flex_seed, *rest) for task, rest in split]):
            done.result()


_HERE: dict[int, Task] = {}


def _start(tasks: dict[int, Task]) -> None:
    torch.set_num_threads(1)
    _HERE.update(tasks)


def _play_here(flex_seed: int, rule: str, policy: str, seed: int) -> None:
    play(_HERE[flex_seed], rule, policy, seed)


def _part(task: Task, rule: str, policy: str, seed: int) -> Path:
    return task.out / "parts" / f"flex-{task.flex_seed}-{rule}-{policy}-{seed}.json"
