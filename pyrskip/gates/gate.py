"""Gates: from what may be seen before any fine pixel is encoded to a policy over decisions.

Axes: B batch, W words, Q query width, C channels, h x w glance cells, T tiles, S actions, D hidden width.

A gate knows neither how it is trained nor which model answers. It reads an Observation, its trunk makes one vector of it
[B, D], and the head turns that into a policy: 'bernoulli' (a logit a tile), 'categorical' (a logit an action) or 'utility'
(the logit of the predicted score of an action; the policy prefers the best score - price x cost, so every price is served by
design).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrskip.budget import BudgetRule
from pyrskip.cost import measured_flops
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError, choose
from pyrskip.gates.policies import POLICIES, BernoulliPolicy, CategoricalPolicy, Policy


@dataclass(frozen=True)
class Observation:
    """What a gate may see.

    query [B, W, Q], query_mask [B, W] bool; glance [B, C, h, w] (the encoded coarsest level), glance_mask [B, h, w] bool;
    capacity [B, T] int64; cost [B, S]: relative cost of every action; price [B] >= 0.
    """

    query: Tensor
    query_mask: Tensor
    glance: Tensor
    glance_mask: Tensor
    capacity: Tensor
    cost: Tensor
    price: Tensor


@dataclass(frozen=True)
class GateConfig:
    """name: a registered gate. policy: bernoulli, categorical or utility. width: hidden units.

    temperature: of the utility policy, in score. open_bias: how much every tile's keep logit starts above 0 (bernoulli).
    """

    name: str = "joint"
    policy: str = "utility"
    width: int = 128
    temperature: float = 0.05
    open_bias: float = 2.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise choose("gate.policy", self.policy, POLICIES)
        if self.width < 1 or self.temperature <= 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"gate.width={self.width}, temperature={self.temperature}, dropout={self.dropout}: "
                "allowed: width at least 1, temperature above 0, dropout in [0, 1)"
            )


@dataclass(frozen=True)
class Layout:
    """What a gate must know of the model that it decides for."""

    query_width: int
    channels: int
    tiles: int
    actions: ActionSet
    budget: BudgetRule


class Gate(nn.Module, ABC):
    """A trunk (the subclass's) and a head. reads_query, reads_glance: what must be encoded for it. sequential: it looks at a
    level before it decides on the next, so its decision needs more than query, glance and price.

    price: the only price that it was trained for, -1 where it serves all. `tilt` moves the trained policy along the cost
    axis: calibration sets it.
    """

    reads_query = True
    reads_glance = True
    sequential = False

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.dial = config.policy != "utility"
        outputs = layout.tiles if config.policy == "bernoulli" else len(layout.actions)
        inputs = self.inputs() + layout.tiles + (1 if self.dial else 0)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(config.width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, config.open_bias if config.policy == "bernoulli" else 0.0)
        self.tilt: Tensor
        self.register_buffer("tilt", torch.zeros(()))
        self.price: Tensor
        self.register_buffer("price", torch.tensor(-1.0))
        forced = torch.zeros(layout.tiles, dtype=torch.bool)
        forced[-1] = True
        self.forced: Tensor
        self.register_buffer("forced", forced, persistent=False)

    @abstractmethod
    def inputs(self) -> int:
        """Width of what `look` gives."""

    @abstractmethod
    def look(self, seen: Observation) -> Tensor:
        """[B, inputs]: the trunk's reading of the observation."""

    def forward(self, seen: Observation) -> Tensor:
        """Raw head outputs, [B, T] or [B, S] float32."""
        with torch.autocast(seen.query.device.type, enabled=False):
            parts = [self.look(seen), (1.0 + seen.capacity.float()).log() / 8]
            if self.dial:
                parts.append((seen.price.float().clamp(min=1e-4).log() / 4)[:, None])
            outputs: Tensor = self.head(self.mlp(torch.cat(parts, dim=-1)))
        return outputs

    def policy(self, seen: Observation, outputs: Tensor | None = None) -> Policy:
        """The distribution over decisions at the observation's price."""
        outputs = self(seen) if outputs is None else outputs
        actions, budget = self.layout.actions, self.layout.budget
        if self.config.policy == "bernoulli":
            share = seen.capacity / seen.capacity.sum(-1, keepdim=True)
            return BernoulliPolicy(outputs - self.tilt * share, seen.capacity, actions, budget, self.forced)
        if self.config.policy == "utility":
            logit = (outputs.sigmoid() - (seen.price[:, None] + self.tilt) * seen.cost) / self.config.temperature
        else:
            logit = outputs - self.tilt * seen.cost
        return CategoricalPolicy(logit, actions.tokens(seen.capacity, budget), actions)

    def prices(self, wanted: Sequence[float]) -> list[float]:
        """At which of these prices it can be asked: all, or its own alone."""
        own = float(self.price)
        return list(wanted) if own < 0 else [own]

    def flops(self, seen: Observation) -> int:
        """Measured FLOPs of one decision, on the first row of an observation."""
        first = Observation(**{name: value[:1] for name, value in vars(seen).items()})
        return measured_flops(self, first)
