"""Rule actor_critic: a coarse-to-fine episode of T - 1 choices, one tile a step, with a critic of the state.

Axes: B episodes, H = T - 1 steps. Each step pays for what it adds to the cost, the last one earns the rest of
the reward. Advantages by GAE (arXiv:1506.02438); with a clip, PPO's loss (arXiv:1707.06347), for several
steps on the same episodes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.gates.sequential import SequentialPolicy
from pyrskip.training import estimators
from pyrskip.training.gate import GateModule


class ActorCriticModule(GateModule):
    policies = ("sequential",)
    soft = False
    critic = True

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
            rows, price = self.memory["rows"], self.memory["price"]
        seen = self.environment.observe(rows, price)
        policy = self.gate.policy(seen)
        assert isinstance(policy, SequentialPolicy)
        if fresh:
            self.memory = self.play(rows, price, policy, batch_idx)
        memory = self.memory
        steps = policy.steps(memory["asked"])
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
    def play(self, rows: Any, price: Tensor, policy: SequentialPolicy, batch_idx: int) -> dict[str, Tensor]:
        """One episode a row, and what it was worth."""
        asked = policy.sample()
        steps = policy.steps(asked)
        total = self.worth(price, batch_idx)(self.score(rows, asked), self.environment.cost(rows, asked))
        potential = None
        if self.config.confidence:
            # the probability of the right answer after each step, if nothing followed
            potential = torch.stack([self.environment.chance(rows, a) for a in policy.prefixes(steps)], dim=1)
        reward = estimators.step_rewards(total, steps.cost, price * self.cost_weight(batch_idx), potential)
        reward = self.weight(rows, price, batch_idx)[:, None] * reward
        advantage = estimators.advantages(reward, steps.value, trace=self.config.trace)
        memory = {"asked": asked, "log_prob": steps.log_prob, "outcome": advantage + steps.value}
        # a critic that has learned nothing calls every episode good, and then whatever is common gets
        # commoner: it collapses
        memory["advantage"] = advantage - self.over_ranks(advantage.mean(0))
        return memory | ({"rows": rows, "price": price} if self.config.epochs > 1 else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # episodes that later steps still learn from
        if self.config.epochs > 1:
            checkpoint["memory"] = self.memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.memory = checkpoint.get("memory", {})
