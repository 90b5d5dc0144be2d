"""Gates: from what may be seen before any fine pixel is encoded to a policy over decisions.

Axes: B batch, T tiles, S actions, D hidden width.

A gate knows neither how it is trained nor which model answers. It reads an Observation, its trunk makes one
vector of it [B, D], and the policy's head turns that into a distribution over decisions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.policies import POLICIES, Policy, PolicyConfig
from pyrskip.policies.policy import in_float32
from pyrskip.registry import Registry

GATES: "Registry[type[Gate]]" = Registry("gate.name")


@dataclass(frozen=True)
class GateConfig(PolicyConfig):
    """name: a registered gate; beside it what its policy reads. signals: read beside those that the gate
    needs, each a vector a question, such as answer_stats. members: gates that are trained one by one and
    decide together. without: scores that a gate which mixes some (relevance) goes without."""

    name: str = "joint"
    dropout: float = 0.0
    signals: tuple[str, ...] = ()
    members: int = 1
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = GATES[self.name]
        if known.regional and not POLICIES[self.policy].per_tile:
            raise UserError(
                f"gate.policy={self.policy} with gate.name={self.name}: it makes a vector a tile; allowed: "
                f"{', '.join(name for name, policy in POLICIES.items() if policy.per_tile)}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"gate.dropout={self.dropout}: allowed: [0, 1)")
        if self.members < 1 or (self.members > 1 and (POLICIES[self.policy].episodic or self.looks)):
            raise UserError(
                f"gate.members={self.members} with gate.policy={self.policy}: allowed: at least 1, and 1 for "
                "a policy that decides step by step"
            )
        if self.looks and known.scores:
            others = ", ".join(sorted(name for name, gate in GATES.items() if not gate.scores))
            raise UserError(
                f"gate.looks=true with gate.name={self.name}, which mixes scores and makes no vector of a "
                f"tile; allowed: gate.looks=false, or gate.name={others}"
            )
        off = set(self.without)
        if not off <= set(known.scores) or len(off) < len(self.without) or (off and off == set(known.scores)):
            mixes = ", ".join(known.scores) or "none"
            raise UserError(
                f"gate.without={list(self.without)} with gate.name={self.name}, which mixes these scores: "
                f"{mixes}; allowed: some of them, each once, and not all"
            )
        if len(set(self.signals)) < len(self.signals) or set(self.signals) & set(known.needs):
            raise UserError(
                f"gate.signals={list(self.signals)}: allowed: each once, and none that gate.name={self.name} "
                f"reads anyway ({', '.join(known.needs)})"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Every signal that the gate reads."""
        return (*GATES[self.name].needs, *self.signals)


class Gate(nn.Module, ABC):
    """A trunk (the subclass's) and a policy's head. needs: the signals that the trunk reads. regional: it
    makes a vector of each tile, and the head reads each alone. scores: of tiles, that it mixes, by name.

    price: the only price that it was trained for, -1 where it serves more; price_range: the prices that it
    was given in training. `tilt` moves the trained policy along the cost axis: calibration sets it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    regional: ClassVar[bool] = False
    scores: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.kind = POLICIES[config.policy]
        self.dial = self.kind.dial
        self.build()
        self.tilt: Tensor
        self.register_buffer("tilt", torch.zeros(()))
        self.price: Tensor
        self.register_buffer("price", torch.tensor(-1.0))
        self.price_range: Tensor
        self.register_buffer("price_range", torch.tensor([0.0, float("inf")]))

    def build(self) -> None:
        """What is behind the trunk: an MLP and the policy's head."""
        config, layout = self.config, self.layout
        beside = sum(layout.width(name) for name in config.signals)
        inputs = self.inputs() + (1 if self.regional else layout.tiles) + (1 if self.dial else 0) + beside
        self.mlp = nn.Sequential(
            nn.Linear(inputs, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        build = self.kind.build_tile_head if self.regional else self.kind.build_head
        self.head = build(config, layout)

    @classmethod
    def memory(cls, config: GateConfig, tiles: int) -> int:
        """Bytes that it and its policy hold of a row at least while a rule learns: of a regional gate, for
        every tile, what its trunk reads and its MLP makes of that, 14 numbers a unit of its width."""
        own = 14 * 4 * config.width * tiles if cls.regional else 0
        return own + POLICIES[config.policy].memory(tiles)

    @abstractmethod
    def inputs(self) -> int:
        """Width of what `look` gives."""

    @abstractmethod
    def look(self, seen: Observation) -> Tensor:
        """[B, inputs], of a regional gate [B, T, inputs]: the trunk's reading of the observation."""

    @in_float32
    def forward(self, seen: Observation) -> Tensor:
        """Raw head outputs [B, ...] float32: what the policy is made of."""
        return self.weigh(self.look(seen), seen)

    @in_float32
    def of_prices(self, seen: Observation, prices: Tensor) -> Tensor:
        """The same at each of prices [P, B] in place of the observation's: [P, B, ...]. The trunk, which is
        not told the price, reads the rows once."""
        if not self.dial:
            outputs: Tensor = self(seen)
            return outputs.expand(len(prices), *outputs.shape)
        asks = [replace(seen, price=price) for price in prices]
        if type(self).forward is not Gate.forward:  # it may tell its trunk more
            return torch.stack([self(ask) for ask in asks])
        looked = self.look(seen)
        return torch.stack([self.weigh(looked, ask) for ask in asks])

    def weigh(self, looked: Tensor, seen: Observation) -> Tensor:
        """What the head makes of what the trunk read, `looked`."""
        capacity = (1.0 + seen.capacity.float()).log() / 8
        beside = [seen[name].float() for name in self.config.signals]
        if self.dial:
            beside.append((seen.price.float().clamp(min=1e-4).log() / 4)[:, None])
        if self.regional:
            parts = [looked, capacity[..., None]]
            parts += [of[:, None].expand(-1, self.layout.tiles, -1) for of in beside]
        else:
            parts = [looked, capacity, *beside]
        outputs: Tensor = self.head(self.mlp(torch.cat(parts, dim=-1)))
        return outputs

    def policy(self, seen: Observation, outputs: Tensor | None = None) -> Policy:
        """The distribution over decisions at the observation's price."""
        return self.kind.of(self(seen) if outputs is None else outputs, seen, self)

    def reported(self, seen: Observation) -> dict[str, Tensor]:
        """What is logged of a gate while it trains, name -> a number; nothing by default."""
        return {}

    def heat(self, seen: Observation) -> dict[str, Tensor]:
        """What it thinks of each tile, by score [B, T] in 0..1; nothing by default."""
        return {}

    def prices(self, wanted: Sequence[float]) -> list[float]:
        """The prices among these that it can be given: its own alone, or all. Raises UserError for one
        outside of its range."""
        own = float(f"{float(self.price):.7g}")  # the number that was given, before it became a float32
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
        first = seen.head(1)
        if self.config.looks:  # what it looks at is encoded for the answer anyway
            empty = torch.zeros(1, self.layout.width("glance", 0), device=first.price.device)
            first = replace(
                first,
                reveal=lambda tile, keep: empty,
                reveal_level=lambda level, keep: empty.expand(1, self.layout.grid[level - 1] ** 2, -1),
            )
        return measured_flops(lambda: self.policy(first).mode())
