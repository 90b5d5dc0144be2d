"""What the gate-training rules share: prices, logging, and the price's multiplier."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrskip.errors import UserError, choose
from pyrskip.gates.gate import Gate, Observation
from pyrskip.gates.policies import Policy
from pyrskip.reward import Price, RewardConfig, linear
from pyrskip.rollouts.environments import Environment
from pyrskip.training.module import OptimizerConfig, StepModule


@dataclass(frozen=True)
class RuleConfig:
    """name: a registered rule. online: ask the model instead of the rollout table. batch: table rows a step (offline).

    target: what supervised predicts, the answer's probability or its score (the metric, all that a black box tells).
    temperature, entropy: of gumbel, its relaxation's and the weight of an entropy bonus; warmup: share of the steps before
    cost counts.
    """

    name: str = "supervised"
    online: bool = False
    batch: int = 256
    target: str = "probability"
    temperature: float = 1.0
    entropy: float = 0.01
    warmup: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.target not in ("probability", "score"):
            raise choose("rule.target", self.target, ("probability", "score"))
        if self.batch < 1 or self.temperature <= 0 or self.entropy < 0 or not 0 <= self.warmup < 1:
            raise UserError(
                f"rule.batch={self.batch}, temperature={self.temperature}, entropy={self.entropy}, warmup={self.warmup}: "
                "allowed: batch at least 1, temperature above 0, entropy at least 0, warmup in [0, 1)"
            )


class GateModule(StepModule):
    """A gate, an environment and a price; a rule is the training_step."""

    policies: tuple[str, ...] = ()

    def __init__(self, config: RuleConfig, gate: Gate, environment: Environment[Any], reward: RewardConfig, seed: int) -> None:
        super().__init__(config.optimizer, seed)
        if gate.config.policy not in self.policies:
            raise UserError(
                f"gate.policy={gate.config.policy!r} cannot be trained by rule={config.name}; "
                f"allowed: {', '.join(self.policies)}"
            )
        self.config, self.gate, self.environment = config, gate, environment
        self.price = Price(reward)

    def on_fit_start(self) -> None:
        self.environment.to(self.device)

    def cost_weight(self, batch_idx: int) -> float:
        """0 during warm-up without cost, then 1."""
        return float(batch_idx >= self.config.warmup * self.config.optimizer.steps)

    @torch.no_grad()
    def record(self, rows: Any, seen: Observation, policy: Policy, loss: Tensor) -> None:
        """Log what a rule's gate does by its mode, and move the multiplier by what it costs when sampled."""
        asked = policy.mode()
        score, cost = self.environment.score(rows, asked), self.environment.cost(rows, asked)
        sampled = self.environment.cost(rows, policy.sample())
        if self.price.config.mode == "target":
            self.price.update(self.trainer.strategy.reduce(sampled.mean(), reduce_op="mean"))
        metrics = {
            "train/loss": loss,
            "reward/mean": linear(score, cost, seen.price).mean(),
            "reward/price": seen.price.mean(),
            "gate/accuracy": score.mean(),
            "gate/entropy": policy.entropy().mean(),
            "cost/tokens": self.environment.tokens(rows, asked).mean(),
            "cost/relative_flops": cost.mean(),
            "cost/relative_flops_sampled": sampled.mean(),
        }
        level = self.environment.tile_level
        for i in range(int(level.max())):  # the glance is always kept
            metrics[f"gate/keep_rate/level_{i}"] = (asked[:, level == i] > 0).any(-1).float().mean()
        self.log_dict(metrics, batch_size=len(score))

    def on_fit_end(self) -> None:
        # a gate that is told the price knows no other than it was told; a target's tilt belongs to the price it ended at
        mode = self.price.config.mode
        if mode == "target" or (mode == "fixed" and self.gate.dial):
            self.gate.price.copy_(self.price.sample(1)[0])

    @torch.no_grad()
    def calibrate(self, environment: Environment[Any], rows: Any, rounds: int = 40) -> float:
        """Tilt the trained gate until its mode costs the target on these rows, by bisection; returns the cost reached."""
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
