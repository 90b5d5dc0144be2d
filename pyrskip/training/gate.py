"""What the rules that train gates share: the policies that each can train, prices and rewards, schedules,
logging.

Axes: B batch, S actions, T tiles.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from pyrskip.decision import Decision
from pyrskip.errors import UserError, unknown_name
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.identity import PER_RANK, read_where
from pyrskip.observation import Observation
from pyrskip.policies import POLICIES, Policy
from pyrskip.registry import Registry
from pyrskip.reward import Price, RewardConfig
from pyrskip.rollouts.environments import Environment, Reward, in_parts
from pyrskip.training.health import CollapseAlarm, signs
from pyrskip.training.module import OptimizerConfig, StepModule

RULES: "Registry[type[GateModule]]" = Registry("rule.name")
TARGETS = ("probability", "score")


@dataclass(frozen=True)
class RuleConfig:
    """What every rule has. name: a registered rule. online: ask the model instead of the rollout table.
    batch: table rows a step (offline). target: what is learned of an answer, its probability or its score
    (the metric, all that a black box gives). validations: how often it decides the validation rollouts, in
    equal steps; the best weights are kept (0: the last). patience: it stops after so many in a row that were
    no better (0: never)."""

    name: str
    online: bool = False
    batch: int = field(default=256, metadata=PER_RANK | read_where("online", (False,)))
    target: str = "probability"
    validations: int = 20
    patience: int = 10
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("rule.target", self.target, TARGETS)
        if self.batch < 1:
            raise UserError(f"rule.batch={self.batch}: allowed: at least 1")
        if min(self.validations, self.patience) < 0:
            raise UserError(
                f"rule.validations={self.validations}, patience={self.patience}: allowed: at least 0"
            )


@dataclass(frozen=True)
class RewardConfigured(RuleConfig):
    """What rules that maximise a reward have beside that. entropy: weight of an entropy bonus, which goes to
    entropy_end in equal steps (null: stays). Schedules, as shares of the steps: warmup, before cost counts;
    anneal, over which the price then rises from 0; curriculum, over which questions that every action answers
    alike come to count."""

    entropy: float = 0.1
    entropy_end: float | None = 0.001
    warmup: float = 0.0
    anneal: float = 0.0
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entropy < 0 or not 0 <= self.warmup < 1:
            raise UserError(
                f"rule.entropy={self.entropy}, warmup={self.warmup}: allowed: entropy at least 0, warmup in "
                "[0, 1)"
            )
        if (
            min(self.anneal, self.curriculum, self.entropy_end or 0.0) < 0
            or max(self.warmup + self.anneal, self.curriculum) > 1
        ):
            raise UserError(
                f"rule.anneal={self.anneal}, curriculum={self.curriculum}, entropy_end={self.entropy_end}: "
                "allowed: shares of the steps, warmup and anneal at most 1 together, and an entropy of at "
                "least 0"
            )


class GateModule(StepModule):
    """A gate, an environment and a price; a rule is the training_step and its config.

    default_policy: of gate.policy=auto; forms: of the reward; critic: whether it trains the one of an
    episodic policy; priced: whether what it learns depends on the price; listless: whether, asking the model,
    it can teach selections that no list holds; looks: whether it can train a gate that looks at what it has
    kept.
    """

    config_class: ClassVar[type[RuleConfig]]
    default_policy: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ("linear", "bonus")
    critic: ClassVar[bool] = False
    priced: ClassVar[bool] = True
    listless: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    config: Any

    def __init__(
        self, config: RuleConfig, gate: Gate, environment: Environment[Any], reward: RewardConfig, seed: int
    ) -> None:
        super().__init__(config.optimizer, seed)
        self.check(config, gate.config, reward)
        self.config, self.gate, self.environment = config, gate, environment
        self.price = Price(reward)
        self.alarm = CollapseAlarm(config.optimizer.steps)
        if gate.kind.episodic:  # ranks wait for the gradient of all that requires one
            gate.head.get_submodule("steps.critic").requires_grad_(self.critic)

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        """Whether it can train a policy, asking the model (online) or from a rollout table: by default any
        that is a distribution over decisions given the price."""
        return policy.dial

    @classmethod
    def policies(cls, online: bool = False) -> list[str]:
        """The registered policies that it can train, its default one first."""
        names = [name for name, policy in POLICIES.items() if cls.trains(policy, online)]
        return sorted(names, key=lambda name: name != cls.default_policy)

    @classmethod
    def check(cls, config: RuleConfig, gate: GateConfig, reward: RewardConfig) -> None:
        """Refuse what the rule cannot train, in one sentence."""
        where = f"rule.online={config.online}".lower()
        allowed = cls.policies(config.online)
        if gate.policy not in allowed:
            beside = f" with {where}" if gate.policy in cls.policies() else ""
            raise UserError(
                f"gate.policy={gate.policy!r} cannot be trained by rule.name={config.name!r}{beside}; "
                f"allowed: auto, {', '.join(allowed)}"
            )
        if gate.looks and not cls.looks:
            rules = ", ".join(
                name for name, rule in RULES.items() if rule.looks and gate.policy in rule.policies()
            )
            raise UserError(
                f"gate.looks=true cannot be trained by rule.name={config.name!r}: what the gate would see of "
                f"a tile depends on a hard choice; allowed: gate.looks=false, or rule.name={rules}"
            )
        if gate.members > 1 and reward.mode == "target":
            raise UserError(
                f"gate.members={gate.members} with reward.target={reward.target}, which each of them would "
                "reach at a price of its own; allowed: gate.members=1, or reward.target=null"
            )
        if reward.form not in cls.forms or (reward.guess_penalty and "bonus" not in cls.forms):
            raise UserError(
                f"reward.form={reward.form}, guess_penalty={reward.guess_penalty} cannot be learned by "
                f"rule.name={config.name!r}, whose gate weighs score - price x cost; allowed: form=linear, "
                "guess_penalty=0"
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.environment.to(self.device)

    def cost_weight(self, batch_idx: int) -> float:
        """What the price is multiplied with."""
        return 1.0

    def score(self, rows: Any, decision: Decision, environment: Environment[Any] | None = None) -> Tensor:
        """The target of answers under a decision, [B]; in another environment than it learns in, if given."""
        of = environment or self.environment
        return (of.probability if self.config.target == "probability" else of.score)(rows, decision)

    def scores(self, rows: Any) -> Tensor:
        """The target under every listed action, [B, S]."""
        soft = self.config.target == "probability"
        return self.environment.probabilities(rows) if soft else self.environment.scores(rows)

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
            # cost that does not count yet must not move its price
            self.price.update(self.over_ranks(spent.mean()), self.cost_weight(batch_idx))
        if not logs:
            return
        mode = self.environment.decide(rows, policy)
        score, cost = self.environment.score(rows, mode), self.environment.cost(rows, mode)
        means = {
            "train/loss": loss,
            "reward/mean": self.price.config.reward(score, cost, seen.price).mean(),
            "reward/price": seen.price.mean(),
            "gate/accuracy": score.mean(),
            "cost/tokens": self.environment.tokens(rows, mode).mean(),
            "cost/relative_flops": cost.mean(),
            "cost/relative_flops_sampled": spent.mean(),
            "gate/entropy": policy.entropy().mean(),
        }
        means |= {f"losses/{name}": value for name, value in losses.items()}
        means |= {f"gate/{name}": value for name, value in self.gate.reported(seen).items()}
        metrics = dict(zip(means, self.over_ranks(torch.stack(list(means.values()))), strict=True))
        every = self.of_ranks(
            {
                "mode": mode.tokens.tolist(),
                "sample": sample.tokens.tolist(),
                "types": list(self.environment.types(rows)),
            }
        )
        decided, sampled = (torch.tensor(every[name]) for name in ("mode", "sample"))
        health = signs(decided, sampled, every["types"], self.environment.tile_level)
        self.log_dict(
            metrics | {name: torch.tensor(value) for name, value in health.items()}, batch_size=len(score)
        )
        warning = self.alarm.look(batch_idx, self.gate, seen, self.price.config)
        if warning is not None:
            rank_zero_warn(warning)

    def on_fit_end(self) -> None:
        # a gate that is given the price knows no other than it was given; a target's tilt belongs to the
        # price it ended at
        if self.price.config.mode != "sampled":
            self.gate.price.copy_(self.price.sample(1)[0])
        elif self.gate.dial:
            self.gate.price_range.copy_(torch.tensor([self.price.config.low, self.price.config.high]))

    @torch.no_grad()
    def calibrate(self, environment: Environment[Any], rows: Tensor, rounds: int = 40) -> float:
        """Tilt the trained gate until its mode costs the target on these rows [N], by bisection; returns the
        cost reached."""
        target = self.price.config.target
        assert target is not None
        self.gate.eval()
        parts = []
        for some in in_parts(rows, environment.layout.tiles):
            seen = environment.observe(some, self.price.sample(len(some)))
            # what the policy is made of, without what the trunk has read already
            parts.append((some, replace(seen, signals={}), self.gate(seen)))

        def cost(tilt: float) -> float:
            self.gate.tilt.fill_(tilt)
            modes = ((some, self.gate.policy(seen, outputs).mode()) for some, seen, outputs in parts)
            return float(torch.cat([environment.cost(some, mode) for some, mode in modes]).mean())

        low, high = -1e3, 1e3
        for _ in range(rounds):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) > target else (low, middle)
        return cost(high)


class RewardModule(GateModule):
    """A rule that maximises a reward: its schedules, and what each row counts."""

    config: Any

    @classmethod
    def check(cls, config: RuleConfig, gate: GateConfig, reward: RewardConfig) -> None:
        super().check(config, gate, reward)
        assert isinstance(config, RewardConfigured)
        if config.curriculum and config.online:
            raise UserError(
                f"rule.curriculum={config.curriculum} needs every action's score; allowed: 0 with "
                "rule.online=true"
            )

    def cost_weight(self, batch_idx: int) -> float:
        """What the price is multiplied with: 0 during warm-up, rising to 1 while it anneals."""
        c, done = self.config, batch_idx / self.config.optimizer.steps
        if done < c.warmup:
            return 0.0
        return min(1.0, (done - c.warmup) / c.anneal) if c.anneal else 1.0

    def entropy_weight(self, batch_idx: int) -> float:
        c, done = self.config, batch_idx / self.config.optimizer.steps
        return float(c.entropy if c.entropy_end is None else c.entropy + (c.entropy_end - c.entropy) * done)

    def reward(self, price: Tensor, batch_idx: int) -> Reward:
        """The step's reward: (score, cost) of [B] or [B, S] each -> the same shape."""
        weighed, of = price * self.cost_weight(batch_idx), self.price.config.reward
        return lambda score, cost: of(score, cost, weighed if score.ndim == 1 else weighed[:, None])

    def weight(self, rows: Any, price: Tensor, batch_idx: int) -> Tensor:
        """How much each row counts, [B]. Dear samples would drown the others in a batch of all prices, so by
        the range of the reward, 1 / (1 + price); and by the curriculum."""
        weight = 1 / (1 + price)
        done = batch_idx / self.config.optimizer.steps
        if done < self.config.curriculum:
            scores = self.environment.scores(rows)
            weight = weight.where(scores.amax(-1) > scores.amin(-1), weight * done / self.config.curriculum)
        return weight
