"""Rewards of decisions, and the price of their cost.

Axes: B batch. score [B] in [0, 1], cost [B] relative (1 = the mean full pyramid), price [B] >= 0, in score a
unit of cost.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrskip.errors import UserError, unknown_name

START = 0.1
"""The price that a target's multiplier starts at."""


@dataclass(frozen=True)
class RewardConfig:
    """price: the one that gates are trained for, and serve. low, high: without a price one is drawn
    log-uniform from there and given to the gate, so that one gate serves them all. target: the relative cost
    that sampled decisions are to have; one price is moved until they do. rate: how fast the price is moved.

    form: 'linear' pays for cost whatever the answer; 'bonus' pays price x (1 - cost) on top of a right answer
    and nothing for a cheap wrong one (after BlockDrop, arXiv:1711.08393). guess_penalty >= 0: what a wrong
    answer costs beside, so that a guess must be likely enough to be worth it.
    """

    price: float | None = None
    low: float = 0.001
    high: float = 1.0
    target: float | None = None
    rate: float = 0.05
    form: str = "linear"
    guess_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("linear", "bonus"):
            raise unknown_name("reward.form", self.form, ("linear", "bonus"))
        if self.guess_penalty < 0:
            raise UserError(f"reward.guess_penalty={self.guess_penalty}: allowed: at least 0")
        if not 0 < self.low < self.high:
            raise UserError(f"reward.low={self.low}, reward.high={self.high}: allowed: 0 < low < high")
        if self.price is not None and self.price < 0:
            raise UserError(
                f"reward.price={self.price}: allowed: at least 0, or null for prices from reward.low to "
                "reward.high"
            )
        if self.target is not None and not 0 < self.target <= 1:
            raise UserError(f"reward.target={self.target}: allowed: null, or a relative cost in (0, 1]")
        if self.price is not None and self.target is not None:
            raise UserError(
                f"reward.price={self.price} with reward.target={self.target}, for which the price is moved; "
                "allowed: one of them, and null for the other"
            )

    def reward(self, score: Tensor, cost: Tensor, price: Tensor) -> Tensor:
        """score, cost and price of any shapes that broadcast together -> the reward."""
        form = linear if self.form == "linear" else bonus
        return form(score, cost, price) - self.guess_penalty * (1 - score)

    @property
    def mode(self) -> str:
        """'fixed', 'target' or 'sampled'."""
        if self.price is not None:
            return "fixed"
        return "sampled" if self.target is None else "target"


def linear(score: Tensor, cost: Tensor, price: Tensor) -> Tensor:
    """score - price x cost, [B]."""
    return score - price * cost


def bonus(score: Tensor, cost: Tensor, price: Tensor) -> Tensor:
    """score x (1 + price x (1 - cost)), [B]: what is saved counts only where the answer is right."""
    return score * (1 + price * (1 - cost))


class Price(nn.Module):
    """The price of each training sample; in target mode a multiplier, kept in the checkpoint and alike on
    every rank."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.log_price: Tensor
        self.register_buffer("log_price", torch.tensor(math.log(START)))

    def sample(self, batch: int) -> Tensor:
        """[B]"""
        if self.config.mode == "sampled":
            return self.at(torch.rand(batch, device=self.log_price.device))
        return self.at(self.log_price.new_zeros(batch))

    def at(self, quantile: Tensor) -> Tensor:
        """The prices at quantiles [B] in [0, 1] of those that are drawn, [B]: one price has no others."""
        c = self.config
        if c.price is not None:
            return torch.full_like(quantile, c.price)
        if c.mode == "sampled":
            return (math.log(c.low) + quantile * math.log(c.high / c.low)).exp()
        return self.log_price.exp().expand(len(quantile))

    def update(self, mean_cost: Tensor, weight: float = 1.0) -> None:
        """Dual ascent on log price. mean_cost: relative, averaged over the batch and all ranks; weight: how
        much cost counts, 0..1."""
        if self.config.target is not None:
            self.log_price += (
                weight * self.config.rate * (mean_cost - self.config.target) / self.config.target
            )
            self.log_price.clamp_(math.log(1e-4), math.log(1e2))
