"""What the gate-training rules share: which policies each can train, prices and rewards, schedules, logging.

Axes: B batch, S actions, T tiles.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from pyrskip.errors import UserError, choose
from pyrskip.gates.gate import Gate, GateConfig, Observation
from pyrskip.gates.policies import Policy
from pyrskip.identity import PER_RANK, read_where
from pyrskip.reward import Price, RewardConfig, worth
from pyrskip.rollouts.environments import Environment, Worth
from pyrskip.training.health import CollapseAlarm, signs
from pyrskip.training.module import OptimizerConfig, StepModule

BASELINES = ("none", "running_mean", "self_critical", "leave_one_out", "group", "group_deviation")


@dataclass(frozen=True)
class RuleConfig:
    """name: a registered rule. online: ask the model instead of the rollout table. batch: table rows a step
    (offline).

    target: what an answer is worth, its probability or its score (the metric, all that a black box tells).
    temperature: of gumbel's relaxation. samples: decisions a question and step, of gumbel, reinforce and,
    from a table, actor_critic; baseline: reinforce's. trace: lambda of actor_critic's advantages; clip: its
    PPO clip, null for none; epochs: steps on the same episodes; value_weight: of the critic's loss;
    confidence: whether each step earns what it adds to the answer's probability (potential-based). Schedules,
    as shares of the steps: warmup, before cost counts; anneal, over which the price then rises from 0;
    curriculum, over which questions that every action answers alike come to count. entropy: weight of an
    entropy bonus, which goes to entropy_end in equal steps (null: stays).
    """

    name: str = "supervised"
    online: bool = False
    batch: int = field(default=256, metadata=PER_RANK | read_where("online", (False,)))
    target: str = "probability"
    temperature: float = 0.5
    entropy: float = 0.01
    entropy_end: float | None = None
    warmup: float = 0.0
    anneal: float = 0.0
    curriculum: float = 0.0
    samples: int = 4
    baseline: str = "leave_one_out"
    trace: float = 0.95
    clip: float | None = None
    epochs: int = 1
    value_weight: float = 0.5
    confidence: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.target not in ("probability", "score"):
            raise choose("rule.target", self.target, ("probability", "score"))
        if self.baseline not in BASELINES:
            raise choose("rule.baseline", self.baseline, BASELINES)
        if self.batch < 1 or self.temperature <= 0 or self.entropy < 0 or not 0 <= self.warmup < 1:
            raise UserError(
                f"rule.batch={self.batch}, temperature={self.temperature}, entropy={self.entropy}, "
                f"warmup={self.warmup}: "
                "allowed: batch at least 1, temperature above 0, entropy at least 0, warmup in [0, 1)"
            )
        if (
            min(self.anneal, self.curriculum, self.entropy_end or 0.0) < 0
            or max(self.warmup + self.anneal, self.curriculum) > 1
        ):
            raise UserError(
                f"rule.anneal={self.anneal}, curriculum={self.curriculum}, entropy_end={self.entropy_end}: "
                "allowed: shares of "
                "the steps, warmup and anneal at most 1 together, and an entropy of at least 0"
            )
        least = (
            2
            if self.name == "reinforce" and self.baseline in ("leave_one_out", "group", "group_deviation")
            else 1
        )
        if self.samples < least:
            raise UserError(
                f"rule.samples={self.samples} with rule.baseline={self.baseline}: allowed: at least {least}"
            )
        if (
            not 0 <= self.trace <= 1
            or self.epochs < 1
            or self.value_weight < 0
            or (self.clip is not None and self.clip <= 0)
        ):
            raise UserError(
                f"rule.trace={self.trace}, clip={self.clip}, epochs={self.epochs}, "
                f"value_weight={self.value_weight}: allowed: "
                "trace in [0, 1], clip null or above 0, epochs at least 1, value_weight at least 0"
            )
        if self.epochs > 1 and (self.clip is None or self.online):
            raise UserError(
                f"rule.epochs={self.epochs} with clip={self.clip}, online={self.online}: allowed: more than "
                "1 on a rollout "
                "table alone (a checkpoint keeps its rows, and cannot keep images), with a clip such as 0.2"
            )


class GateModule(StepModule):
    """A gate, an environment and a price; a rule is the training_step.

    policies: what the rule can train, offline_only: those of them that need a rollout table; forms: of the
    reward; soft: whether it is best taught the answer's probability (a sampled decision gives no gradient to
    it, so its score does); critic: whether it trains the one of a sequential policy.
    """

    policies: tuple[str, ...] = ()
    offline_only: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("linear", "bonus")
    soft = True
    critic = False

    def __init__(
        self, config: RuleConfig, gate: Gate, environment: Environment[Any], reward: RewardConfig, seed: int
    ) -> None:
        super().__init__(config.optimizer, seed)
        self.check(config, gate.config, reward)
        self.config, self.gate, self.environment = config, gate, environment
        self.price = Price(reward)
        self.alarm = CollapseAlarm(config.optimizer.steps)
        if gate.config.policy == "sequential":  # ranks wait for the gradient of all that requires one
            gate.steps.critic.requires_grad_(self.critic)

    @classmethod
    def check(cls, config: RuleConfig, gate: GateConfig, reward: RewardConfig) -> None:
        """Refuse what the rule cannot train, in one sentence."""
        where = f"rule.online={config.online}".lower()
        allowed = [p for p in cls.policies if not (config.online and p in cls.offline_only)]
        if gate.policy not in allowed:
            beside = f" with {where}" if gate.policy in cls.policies else ""
            raise UserError(
                f"gate.policy={gate.policy!r} cannot be trained by rule.name={config.name!r}{beside}; "
                f"allowed: auto, {', '.join(allowed)}"
            )
        if reward.form not in cls.forms or (reward.guess_penalty and "bonus" not in cls.forms):
            raise UserError(
                f"reward.form={reward.form}, guess_penalty={reward.guess_penalty} cannot be learned by "
                f"rule.name={config.name!r}, whose gate weighs score - price x cost; allowed: form=linear, "
                "guess_penalty=0"
            )
        if config.curriculum and config.online:
            raise UserError(
                f"rule.curriculum={config.curriculum} needs every action's score; allowed: 0 with "
                "rule.online=true"
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.environment.to(self.device)

    def cost_weight(self, batch_idx: int) -> float:
        """What the price is multiplied with: 0 during warm-up, rising to 1 while it anneals."""
        c, done = self.config, batch_idx / self.config.optimizer.steps
        if done < c.warmup:
            return 0.0
        return min(1.0, (done - c.warmup) / c.anneal) if c.anneal else 1.0

    def entropy_weight(self, batch_idx: int) -> float:
        c, done = self.config, batch_idx / self.config.optimizer.steps
        return c.entropy if c.entropy_end is None else c.entropy + (c.entropy_end - c.entropy) * done

    def worth(self, price: Tensor, batch_idx: int) -> Worth:
        """The step's reward: (score, cost) of [B] or [B, S] each -> the same shape."""
        weighed = price * self.cost_weight(batch_idx)
        return lambda score, cost: worth(
            self.price.config, score, cost, weighed if score.ndim == 1 else weighed[:, None]
        )

    def score(self, rows: Any, asked: Tensor) -> Tensor:
        """What answers are worth under a decision [B, T] -> [B]: the target's probability or score."""
        soft = self.config.target == "probability"
        return self.environment.chance(rows, asked) if soft else self.environment.score(rows, asked)

    def scores(self, rows: Any) -> Tensor:
        """The same of every listed action, [B, S]."""
        soft = self.config.target == "probability"
        return self.environment.chances(rows) if soft else self.environment.scores(rows)

    def weight(self, rows: Any, price: Tensor, batch_idx: int) -> Tensor:
        """How much each row counts, [B]. Dear samples would drown the others in a batch of all prices, so by
        the range of the reward, 1 / (1 + price); and by the curriculum."""
        weight = 1 / (1 + price)
        done = batch_idx / self.config.optimizer.steps
        if done < self.config.curriculum:
            scores = self.environment.scores(rows)
            weight = weight.where(scores.amax(-1) > scores.amin(-1), weight * done / self.config.curriculum)
        return weight

    @torch.no_grad()
    def record(
        self, rows: Any, seen: Observation, policy: Policy, loss: Tensor, batch_idx: int, **losses: Tensor
    ) -> None:
        """Move the multiplier by what samples cost; log what the gate does by its mode, and look for a
        collapse."""
        logs = self.logs(batch_idx)
        targeted = self.price.config.mode == "target"
        if not (logs or targeted):
            return
        sample = policy.sample()
        spent = self.environment.cost(rows, sample)
        if targeted:
            self.price.update(self.over_ranks(spent.mean()))
        if not logs:
            return
        asked = policy.mode()
        score, cost = self.environment.score(rows, asked), self.environment.cost(rows, asked)
        means = {
            "train/loss": loss,
            "reward/mean": worth(self.price.config, score, cost, seen.price).mean(),
            "reward/price": seen.price.mean(),
            "gate/accuracy": score.mean(),
            "cost/tokens": self.environment.tokens(rows, asked).mean(),
            "cost/relative_flops": cost.mean(),
            "cost/relative_flops_sampled": spent.mean(),
            "gate/entropy": policy.entropy().mean(),
        }
        means |= {f"losses/{name}": value for name, value in losses.items()}
        metrics = dict(zip(means, self.over_ranks(torch.stack(list(means.values()))), strict=True))
        every = {
            "asked": asked.tolist(),
            "sampled": sample.tolist(),
            "types": list(self.environment.types(rows)),
        }
        every = self.of_ranks(every)
        decided, sampled = (torch.tensor(every[name]) for name in ("asked", "sampled"))
        health = signs(decided, sampled, every["types"], self.environment.tile_level)
        self.log_dict(
            metrics | {name: torch.tensor(value) for name, value in health.items()}, batch_size=len(score)
        )
        told = self.alarm.look(batch_idx, self.gate, seen, self.price.config)
        if told is not None:
            rank_zero_warn(told)

    def on_fit_end(self) -> None:
        # a gate that is told the price knows no other than it was told; a target's tilt belongs to the price
        # it ended at
        if self.price.config.mode != "sampled":
            self.gate.price.copy_(self.price.sample(1)[0])
        elif self.gate.dial:
            self.gate.price_range.copy_(torch.tensor([self.price.config.low, self.price.config.high]))

    @torch.no_grad()
    def calibrate(self, environment: Environment[Any], rows: Any, rounds: int = 40) -> float:
        """Tilt the trained gate until its mode costs the target on these rows, by bisection; returns the cost
        reached."""
        target = self.price.config.target
        assert target is not None
        self.gate.eval()
        seen = environment.observe(rows, self.price.sample(len(rows)))
        outputs = self.gate(seen)

        def cost(tilt: float) -> float:
            self.gate.tilt.fill_(tilt)
            return float(environment.cost(rows, self.gate.policy(seen, outputs).mode()).mean())

        low, high = -1e3, 1e3
        for _ in range(rounds):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) > target else (low, middle)
        return cost(high)
