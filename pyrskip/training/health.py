"""Health of a gate while it trains, and the alarm when it no longer decides.

Axes: B batch, T tiles, S actions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrskip.gates.gate import Gate
from pyrskip.observation import Observation
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.health import entropy_of, keep_rates, labels, mutual_information
from pyrskip.transfer import sent

# nats of policy entropy below which a gate counts as certain, and the share of the steps that it must have
# been so
CERTAIN = 0.05
PATIENCE = 0.2


def signs(mode: Tensor, sampled: Tensor, types: Sequence[str], tile_level: Tensor) -> dict[str, float]:
    """What a gate's decisions look like over a batch, by metric name. mode, sampled [B, T]: its mode and a
    sample.

    keep rates of levels; entropy of its decisions over the batch (variety), in nats; how many distinct
    selections, what they tell of the question type, and how often the sample is not the mode.
    """
    label = labels(mode > 0)
    rates = keep_rates(mode > 0, sent(tile_level, mode.device))
    # the last level is the glance, which is always kept
    found = {f"gate/keep_rate/level_{level}": rates[level] for level in sorted(rates)[:-1]}
    return found | {
        "gate/decision_entropy": entropy_of(label),
        "gate/distinct": float(label.max() + 1),
        "gate/mutual_information": mutual_information(label, types),
        "gate/disagreement": float((mode != sampled).any(-1).float().mean()),
    }


class CollapseAlarm:
    """Reports, once, when a gate has for a fifth of its training been certain of one selection for every
    question, at every price that it is asked at."""

    def __init__(self, steps: int) -> None:
        self.patience, self.since, self.reported = max(1, int(PATIENCE * steps)), -1, False

    @torch.no_grad()
    def look(self, step: int, gate: Gate, seen: Observation, reward: RewardConfig) -> str | None:
        """The warning, if it is time for it."""
        prices = [reward.low, reward.high] if reward.mode == "sampled" else [float(seen.price[0])]
        kept, certain = [], True
        for price in prices:
            policy = gate.policy(replace(seen, price=torch.full_like(seen.price, price)))
            kept.append(policy.mode().selection | (seen.capacity == 0))
            certain &= float(policy.entropy().mean()) < CERTAIN
        alike = bool((torch.cat(kept) == kept[0][:1]).all())
        if not (certain and alike):
            self.since = -1
            return None
        self.since = step if self.since < 0 else self.since
        if self.reported or step - self.since < self.patience:
            return None
        self.reported = True
        return f"the gate has collapsed: since step {self.since} every question {_advice(kept[0][0], reward)}"


def _advice(keep: Tensor, reward: RewardConfig) -> str:
    """What every question gets, and what to change. keep [T] bool: the one selection."""
    price = (
        "reward.high"
        if reward.mode == "sampled"
        else "reward.price"
        if reward.mode == "fixed"
        else "reward.rate"
    )
    more = "rule.entropy (at the least 0.01), or lower optimizer.lr"
    if not bool(keep[:-1].any()):
        return (
            f"gets the glance alone; lower {price}, let the price rise with rule.anneal=0.5, raise "
            f"gate.open_bias or {more}"
        )
    if bool(keep.all()):
        return f"gets every tile; raise {price}, lower gate.open_bias, set rule.warmup=0, or raise {more}"
    tiles = ", ".join(str(t) for t in keep.nonzero().flatten().tolist())
    return (
        f"gets the same tiles ({tiles}), whatever it asks; raise {more}, or let the gate read more "
        "(gate=joint, gate.width)"
    )


def glance_is_best(environment: TableEnvironment, reward: RewardConfig, price: float) -> str | None:
    """The arithmetic, where no question type gains on average by looking at more than the glance at this
    price; else None.

    price: the least that the gate is trained at. The value of an action is its mean reward over a type's
    questions.
    """
    table = environment.table
    scores = table.score[:, : len(table.actions)].double()
    cost = environment.relative.double()
    value = reward.reward(scores, cost, torch.tensor(price, dtype=torch.float64))
    glance = int(table.actions.steps.sum(-1).argmin())
    closest, found = -float("inf"), ""
    for kind in sorted(set(table.types)):
        rows = torch.tensor([t == kind for t in table.types], device=scores.device)
        gain = value[rows].mean(0) - value[rows, glance].mean()
        gain[glance] = -float("inf")
        best = int(gain.argmax())
        if gain[best] > 0:
            return None
        if float(gain[best]) > closest:
            closest = float(gain[best])
            right, spent = (float((of[rows, best] - of[rows, glance]).mean()) for of in (scores, cost))
            found = (
                f"{kind} from {table.actions.names[best]}, gains {right:.3f} of score for {price:g} x "
                f"{spent:.3f} of cost"
            )
    return (
        f"at price {price:g} the glance alone is best for every question type, so a gate has nothing to "
        f"learn; what comes closest, {found}; lower the price, or set reward.form=bonus"
    )
