"""Rule actor_critic: a coarse-to-fine episode of T - 1 choices, one tile a step, with a critic of the state.

Axes: B episodes, H = T - 1 steps. Each step pays for what it adds to the cost, the last one earns the rest of
the reward. Advantages by GAE (arXiv:1506.02438); with a clip, PPO's loss (arXiv:1707.06347), for several
steps on the same episodes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import Decision
from pyrskip.errors import UserError
from pyrskip.policies import Policy
from pyrskip.policies.sequential import SequentialPolicy
from pyrskip.training import estimators
from pyrskip.training.gate import RULES, RewardConfigured, RewardModule


@dataclass(frozen=True)
class ActorCriticConfig(RewardConfigured):
    """samples: episodes of a question and step, from a table. trace: lambda of the advantages; clip: PPO's,
    null for none; epochs: steps on the same episodes; value_weight: of the critic's loss; shaping: whether
    each step earns what it adds to the answer's probability (potential-based)."""

    name: str = "actor_critic"
    entropy: float = 0.2
    samples: int = 4
    trace: float = 0.95
    clip: float | None = None
    epochs: int = 1
    value_weight: float = 0.5
    shaping: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not 0 <= self.trace <= 1
            or min(self.epochs, self.samples) < 1
            or self.value_weight < 0
            or (self.clip is not None and self.clip <= 0)
        ):
            raise UserError(
                f"rule.trace={self.trace}, clip={self.clip}, epochs={self.epochs}, samples={self.samples}, "
                f"value_weight={self.value_weight}: allowed: trace in [0, 1], clip null or above 0, epochs "
                "and samples at least 1, value_weight at least 0"
            )
        if self.epochs > 1 and (self.clip is None or self.online):
            raise UserError(
                f"rule.epochs={self.epochs} with clip={self.clip}, online={self.online}: allowed: more than "
                "1 on a rollout "
                "table alone (a checkpoint keeps its rows, and cannot keep images), with a clip such as 0.2"
            )


@RULES.register("actor_critic")
class ActorCriticModule(RewardModule):
    config_class = ActorCriticConfig
    default_policy = "sequential"
    critic = True
    looks = True
    config: ActorCriticConfig

    @classmethod
    def trains(cls, policy: type[Policy], online: bool) -> bool:
        return issubclass(policy, SequentialPolicy)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.memory: dict[str, Tensor] = {}

    def training_step(self, rows: Any, batch_idx: int) -> Tensor:
        c = self.config
        fresh = batch_idx % c.epochs == 0 or not self.memory
        if fresh:
            rows = (
                rows if c.online else rows.repeat(c.samples)
            )  # episodes of one question differ in their prices as well
            price = self.price.sample(len(rows))
        else:
            rows, price = self.memory["rows"].to(self.device), self.memory["price"].to(self.device)
        seen = self.environment.observe(rows, price)
        prices = price.unflatten(0, (1 if c.online else c.samples, -1))
        outputs = self.gate.of_prices(seen.head(prices.shape[1]), prices).flatten(0, 1)
        policy = self.gate.policy(seen, outputs)
        assert isinstance(policy, SequentialPolicy)
        if fresh:
            self.memory = self.episodes(rows, price, policy, batch_idx)
        memory = {name: value.to(self.device) for name, value in self.memory.items()}
        steps = policy.steps(Decision(memory["tokens"], memory["action"]))
        if c.clip is None:
            policy_loss = estimators.score_function(steps.log_prob, memory["advantage"])
        else:
            policy_loss = estimators.clipped(steps.log_prob, memory["log_prob"], memory["advantage"], c.clip)
        value_loss, entropy = F.mse_loss(steps.value, memory["outcome"]), policy.entropy().mean()
        loss = policy_loss + c.value_weight * value_loss - self.entropy_weight(batch_idx) * entropy
        kl, clipped = estimators.moved(steps.log_prob, memory["log_prob"], c.clip or float("inf"))
        foreseen = estimators.explained_variance(steps.value.detach(), memory["outcome"])
        losses = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        losses |= {"approx_kl": kl, "clip_fraction": clipped, "explained_variance": foreseen}
        self.record(rows, seen, policy, loss, batch_idx, **losses)
        return loss

    @torch.no_grad()
    def episodes(
        self, rows: Any, price: Tensor, policy: SequentialPolicy, batch_idx: int
    ) -> dict[str, Tensor]:
        """One episode a row, and what it earned."""
        decision = policy.sample()
        steps = policy.steps(decision)
        of = self.reward(price, batch_idx)
        total = of(self.score(rows, decision), self.environment.cost(rows, decision))
        potential = None
        if self.config.shaping:
            # the probability of the right answer after each step, if nothing followed
            after = [self.environment.probability(rows, prefix) for prefix in policy.prefixes(steps)]
            potential = torch.stack(after, dim=1)
        reward = estimators.step_rewards(total, steps.cost, price * self.cost_weight(batch_idx), potential)
        reward = self.weight(rows, price, batch_idx)[:, None] * reward
        advantage = estimators.advantages(reward, steps.value, trace=self.config.trace)
        assert decision.action is not None
        memory = {"tokens": decision.tokens, "action": decision.action, "log_prob": steps.log_prob}
        memory["outcome"] = advantage + steps.value
        # a critic that has learned nothing calls every episode good, and then whatever is common gets
        # commoner: it collapses
        memory["advantage"] = advantage - self.over_ranks(advantage.mean(0))
        return memory | ({"rows": rows, "price": price} if self.config.epochs > 1 else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # episodes that later steps still learn from, each rank's own
        if self.config.epochs > 1:
            memories: list[Any] = [self.memory]
            if self.ranks > 1:
                memories = [None] * self.ranks
                torch.distributed.all_gather_object(memories, self.memory)
            checkpoint["memory"] = dict(enumerate(memories))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # of another number of ranks, one that had none begins a cycle of its own
        self.memory = checkpoint.get("memory", {}).get(self.global_rank, {})
