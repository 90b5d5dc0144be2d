"""Several gates as one, whose outputs are averaged: where few images taught them, each errs in its own way.

Members are trained one by one, from starts and in orders of their own (deep ensembles, Lakshminarayanan et
al. 2016, arXiv:1612.01474).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.observation import Layout, Observation


class Ensemble(Gate):
    """config.members gates of the kind that config names."""

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        alone = replace(config, members=1)
        self.gates = nn.ModuleList(GATES[config.name](alone, layout) for _ in range(config.members))

    @classmethod
    def of(cls, config: GateConfig, trained: Sequence[Gate]) -> "Ensemble":
        """An ensemble of trained members, as many as config says, which serve the same prices."""
        gate = cls(config, trained[0].layout)
        for own, member in zip(gate.gates, trained, strict=True):
            own.load_state_dict(member.state_dict())
        gate.price.copy_(trained[0].price)
        gate.price_range.copy_(trained[0].price_range)
        return gate.eval()

    def build(self) -> None:
        """Nothing of its own: members have it."""

    def inputs(self) -> int:
        return sum(gate.inputs() for gate in self._members)

    def look(self, seen: Observation) -> Tensor:
        return torch.cat([gate.look(seen) for gate in self._members], dim=-1)

    def forward(self, seen: Observation) -> Tensor:
        return torch.stack([gate(seen) for gate in self._members]).mean(0)

    @property
    def _members(self) -> list[Gate]:
        return [gate for gate in self.gates if isinstance(gate, Gate)]
