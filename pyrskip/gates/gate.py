"""Gates: from what may be seen before any fine pixel is encoded to a policy over decisions.

Axes: B batch, W words, Q query width, C channels, h x w glance cells, T tiles, S actions, D hidden width.

A gate knows neither how it is trained nor which model answers. It reads an Observation, its trunk makes one
vector of it [B, D], and the head turns that into a policy: 'bernoulli' (a logit a tile), 'categorical' (a
logit an action), 'utility' (the logit of the predicted score of an action; the policy prefers the best score
- price x cost, so every price is served by design), 'rungs' (a logit for every choice of every tile),
'autoregressive' (these, and how the coarser tiles' choices move them) or 'sequential' (an episode of choices,
see `pyrskip.gates.sequential`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.budget import BudgetRule
from pyrskip.cost import measured_flops
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError, choose
from pyrskip.gates.policies import (
    POLICIES,
    PRODUCTS,
    BernoulliPolicy,
    CategoricalPolicy,
    Policy,
    RungsPolicy,
    chained,
)
from pyrskip.gates.sequential import Reveal, SequentialPolicy, StepHead

CONFIDENCE = 3
"""Numbers that tell how sure a model is."""


@dataclass(frozen=True)
class Observation:
    """What a gate may see.

    query [B, W, Q], query_mask [B, W] bool; glance [B, C, h, w] (the encoded coarsest level), glance_mask [B,
    h, w] bool; capacity [B, T] int64; cost [B, S]: relative cost of every action; price [B] >= 0. confidence
    [B, 3]: how sure the model is after the glance alone (`NativeModel.confidence`). reveal: the way to look
    at a tile that has been kept, for gates that look. Both are None where the environment has none.
    """

    query: Tensor
    query_mask: Tensor
    glance: Tensor
    glance_mask: Tensor
    capacity: Tensor
    cost: Tensor
    price: Tensor
    confidence: Tensor | None = None
    reveal: Reveal | None = None

    def first(self) -> "Observation":
        """The first row alone."""
        rows: dict[str, Any] = {
            name: value[:1] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **rows)


@dataclass(frozen=True)
class GateConfig:
    """name: a registered gate. policy: one of POLICIES. width: hidden units.

    temperature: of the utility policy, in score. open_bias: how much every tile's keep logit starts above 0
    (bernoulli, rungs, autoregressive, sequential). looks: of the sequential policy, whether it sees the
    encoded features of what it has kept. confidence: whether it is told how sure the model is after the
    glance alone, which then answers once more.
    """

    name: str = "joint"
    policy: str = "utility"
    width: int = 128
    temperature: float = 0.05
    open_bias: float = 2.0
    dropout: float = 0.0
    looks: bool = False
    confidence: bool = False

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise choose("gate.policy", self.policy, POLICIES)
        if self.looks and self.policy != "sequential":
            raise UserError(
                f"gate.looks=true with gate.policy={self.policy}: allowed: gate.policy=sequential, which "
                "can look"
            )
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
    """A trunk (the subclass's) and a head. reads_query, reads_glance: what must be encoded for it.
    sequential: it decides on a level, and may look at it, before it decides on the next, so that one pass of
    its outputs is no decision.

    price: the only price that it was trained for, -1 where it serves more; price_range: the prices that it
    was told in training. `tilt` moves the trained policy along the cost axis: calibration sets it.
    """

    reads_query = True
    reads_glance = True
    sequential = False

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.dial = config.policy != "utility"
        self.sequential = config.policy == "sequential"
        if config.policy in PRODUCTS and not layout.actions.complete:
            raise UserError(
                f"gate.policy={config.policy} chooses level by level, but the action set of "
                f"{len(layout.actions)} does not "
                f"list every combination for {layout.tiles} tiles; allowed: gate.policy=categorical, or "
                "pyramid.grid=[1]"
            )
        inputs = (
            self.inputs() + layout.tiles + (1 if self.dial else 0) + (CONFIDENCE if config.confidence else 0)
        )
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(config.width, len(self._start()))
        if config.policy == "sequential":
            channels = layout.channels if config.looks else None
            self.steps = StepHead(
                config.width, layout.tiles, layout.actions.choices, config.open_bias, channels
            )
        else:
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.bias.copy_(self._start())
        self.tilt: Tensor
        self.register_buffer("tilt", torch.zeros(()))
        self.price: Tensor
        self.register_buffer("price", torch.tensor(-1.0))
        self.price_range: Tensor
        self.register_buffer("price_range", torch.tensor([0.0, float("inf")]))
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
        """Raw head outputs [B, ...] float32: what the policy is made of; for the sequential one the state's
        fixed part."""
        with torch.autocast(seen.query.device.type, enabled=False):
            parts = [self.look(seen), (1.0 + seen.capacity.float()).log() / 8]
            if self.config.confidence:
                parts.append(self._confidence(seen))
            if self.dial:
                parts.append((seen.price.float().clamp(min=1e-4).log() / 4)[:, None])
            outputs: Tensor = self.head(self.mlp(torch.cat(parts, dim=-1)))
        return outputs

    def policy(self, seen: Observation, outputs: Tensor | None = None) -> Policy:
        """The distribution over decisions at the observation's price."""
        outputs = self(seen) if outputs is None else outputs
        kind, actions, budget = self.config.policy, self.layout.actions, self.layout.budget
        if kind == "bernoulli":
            share = seen.capacity / seen.capacity.sum(-1, keepdim=True)
            return BernoulliPolicy(outputs - self.tilt * share, seen.capacity, actions, budget, self.forced)
        asked = actions.tokens(seen.capacity, budget)
        if kind == "sequential":
            with torch.autocast(seen.query.device.type, enabled=False):
                return SequentialPolicy(
                    self.steps, outputs, seen.cost, asked, actions, self.tilt, self._reveal(seen)
                )
        if kind == "utility":
            logit = (
                outputs.sigmoid() - (seen.price[:, None] + self.tilt) * seen.cost
            ) / self.config.temperature
            return CategoricalPolicy(logit, asked, actions)
        bias = -self.tilt * seen.cost
        if kind == "categorical":
            return CategoricalPolicy(outputs + bias, asked, actions)
        own, of_tiles = self._free.numel(), self._free
        # skipping is every tile's choice 0, and its logit 0: a second free logit would double every step that
        # is learned
        choice = F.pad(outputs[:, :own].unflatten(1, of_tiles), (1, 0))
        if kind == "rungs":
            return RungsPolicy(choice, asked, actions, bias)
        coupling = F.pad(outputs[:, own:].unflatten(1, (*of_tiles, *of_tiles)), (1, 0, 0, 0, 1, 0))
        return CategoricalPolicy(chained(choice, coupling, actions) + bias, asked, actions)

    def prices(self, wanted: Sequence[float]) -> list[float]:
        """At which of these prices it can be asked: its own alone, or all. Raises UserError for one outside
        of its range."""
        own = float(f"{float(self.price):.7g}")  # as it was asked for, before it became a float32
        if own >= 0:
            return [own]
        low, high = self.price_range.tolist()
        for price in wanted:
            if not low * (1 - 1e-5) <= price <= high * (1 + 1e-5):
                raise UserError(
                    f"price={price} is outside of what the gate was trained on; allowed: {low:g} to {high:g}"
                )
        return list(wanted)

    def flops(self, seen: Observation) -> int:
        """Measured FLOPs of one decision, on the first row of an observation."""
        first = seen.first()
        return measured_flops(lambda: self.policy(first).mode())

    @property
    def _free(self) -> torch.Size:
        """Tiles beside the glance, and choices of each beside that to skip it."""
        return torch.Size((self.layout.tiles - 1, self.layout.actions.choices - 1))

    def _start(self) -> Tensor:
        """The head's outputs before training: open where a choice keeps a tile."""
        config, layout = self.config, self.layout
        if config.policy == "bernoulli":
            return torch.full((layout.tiles,), config.open_bias)
        if config.policy == "sequential":
            return torch.zeros(config.width)
        if config.policy in ("utility", "categorical"):
            return torch.zeros(len(layout.actions))
        tiles, kept = self._free
        ramp = (config.open_bias * torch.arange(1, kept + 1) / kept).repeat(tiles)
        return ramp if config.policy == "rungs" else torch.cat([ramp, torch.zeros(len(ramp) ** 2)])

    def _confidence(self, seen: Observation) -> Tensor:
        if seen.confidence is None:
            raise UserError(
                "gate.confidence=true asks the model how sure it is after the glance, and this model, or "
                "this rollout table, "
                "does not tell; allowed: gate.confidence=false, or a native model's rollouts made anew "
                "(delete these first)"
            )
        return seen.confidence.float()

    def _reveal(self, seen: Observation) -> Reveal | None:
        if self.config.looks and seen.reveal is None:
            raise UserError(
                "gate.looks=true decides on features of what it has kept, and this rollout table holds none; "
                "allowed: rule.online=true, or gate.looks=false"
            )
        return seen.reveal if self.config.looks else None
