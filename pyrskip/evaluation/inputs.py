"""What a frontier is computed from: rollout tables, gates, and what both cost.

Axes: N questions, M images, S listed actions, T tiles, P prices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Decision
from pyrskip.evaluation.timing import Timing
from pyrskip.gates.gate import Gate
from pyrskip.pruners import PrunerConfig
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import TableEnvironment, in_parts
from pyrskip.rollouts.table import RolloutTable
from pyrskip.rollouts.weights import learned_weights


@dataclass(frozen=True)
class Inputs:
    """What a frontier is computed from.

    tables: 'gate' (the gate's training rollouts), 'val' and 'test'. gates: 'gate' and, if they were trained,
    'gate:joint', 'gate:query_only', 'gate:glance_only' and 'ablation:<name>' -> one gate a seed, in the order
    of `seeds`. gate_flops: of one decision, by the same names. tile_flops: split -> [M, T], FLOPs of encoding
    and projecting each tile of each image, counted as the table's are; None where tables have no similarity.
    encode_flops: the same of encoding alone. asked_flops: of the gate's own decision, where the model has
    read the glance with the question anyway. crossed: 'gate', 'val' and 'test' of the same questions under
    another flex seed, for oracle:cross. peers: 'val' and 'test' of the same questions behind pruners.
    unlisted: method, seed and split -> columns [P, N] of the table, of decisions that are not listed and
    that the model was asked about (`pyrskip.evaluation.unlisted`); seed 0 where the method has none.
    """

    tables: Mapping[str, RolloutTable]
    pyramid: Pyramid
    budget: BudgetRule
    gates: Mapping[str, Sequence[Gate]]
    seeds: Sequence[int]
    prices: Sequence[float]
    gate_flops: Mapping[str, float]
    tile_flops: Mapping[str, Tensor | None]
    timing: Timing | None = None
    resamples: int = 1000
    encode_flops: Mapping[str, Tensor | None] = field(default_factory=dict)
    asked_flops: float = 0.0
    crossed: Mapping[str, RolloutTable] | None = None
    peers: Mapping[PrunerConfig, Mapping[str, RolloutTable]] = field(default_factory=dict)
    unlisted: Mapping[tuple[str, int, str], Tensor] = field(default_factory=dict)
    _decided: dict[tuple[str, int, str], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def unit(self) -> float:
        """FLOPs of relative cost 1."""
        return self.tables["gate"].mean_full_flops

    def encoded_twice(self, split: str, first: Tensor, then: Tensor) -> Tensor:
        """FLOPs of encoding the tiles that two of the table's columns [N] both keep, [N] float64; 0 where the
        model does not tell what a tile costs."""
        table, of_image = self.tables[split], self.encode_flops.get(split)
        if of_image is None:
            return torch.zeros(len(table), dtype=torch.float64)
        rows = torch.arange(len(table))
        both = (table.steps(rows, first) > 0) & (table.steps(rows, then) > 0)
        return (of_image[table.image_of].double() * both).sum(-1)

    @cached_property
    def budget_weights(self) -> Tensor | None:
        """Budget weights [T] learned from the gate's rollouts; None where they do not list every combination
        of rungs."""
        gate = self.tables["gate"]
        return learned_weights(gate, self.pyramid) if product_of_rungs(gate.actions) else None

    def prices_of(self, method: str, seed: int) -> list[float]:
        """The prices of the frontier that a gate serves."""
        return list(self._gate(method, seed).prices(self.prices))

    def decided(self, method: str, seed: int, split: str) -> Tensor:
        """What a gate decides for every question of a split, columns of its table [P, N] by `prices_of`.
        Computed once."""
        key = (method, seed, split)
        if key in self.unlisted:
            return self.unlisted[key]
        if key not in self._decided:
            self._decided[key] = self.decide(method, seed, self.tables[split])
        return self._decided[key]

    def decide(self, method: str, seed: int, table: RolloutTable) -> Tensor:
        """What a gate decides for every question of a table, [P, N] by `prices_of`."""
        gate, prices = self._gate(method, seed), self.prices_of(method, seed)
        return decide(gate, table, self.pyramid, self.budget, self.unit, prices)

    def _gate(self, method: str, seed: int) -> Gate:
        return self.gates[method][list(self.seeds).index(seed)]


def decide(
    gate: Gate,
    table: RolloutTable,
    pyramid: Pyramid,
    budget: BudgetRule,
    unit: float,
    prices: Sequence[float],
) -> Tensor:
    """What inference runs, the mode, for every question of a table: listed actions [P, N]."""
    environment = TableEnvironment(table, pyramid, budget, unit)
    modes = modes_of(gate, environment, prices)
    return torch.stack([torch.cat([environment.action(mode) for mode in of]) for of in modes])


@torch.no_grad()
def modes_of(gate: Gate, environment: TableEnvironment, prices: Sequence[float]) -> list[list[Decision]]:
    """The modes at each price for every question of a table, in chunks of rows."""
    gate.eval()
    chunks = []
    for rows in in_parts(torch.arange(len(environment.table)), environment.layout.tiles):
        priced = torch.tensor(prices, dtype=torch.float32)[:, None].expand(-1, len(rows))
        seen = environment.observe(rows, priced[0])
        every = zip(priced, gate.of_prices(seen, priced), strict=True)
        chunks.append([gate.policy(replace(seen, price=at), outputs).mode() for at, outputs in every])
    return [list(of) for of in zip(*chunks, strict=True)]


def product_of_rungs(actions: ActionSet) -> bool:
    return bool(actions.ladder) and actions.complete
