"""Plays: what every method of a frontier decides, computed from rollout tables alone.

Axes: N questions, M images, S listed actions, T tiles, P prices. A method is a Play: the probability of each
of the table's S + 2 columns for each question, so that random mixes are exact expectations and pay what they
cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.evaluation.timing import Timing
from pyrskip.gates.gate import Gate
from pyrskip.gates.heuristics import SHARES, cosine_actions, keyword_actions, strategy_actions
from pyrskip.policies.sampling import multilinear
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.oracles import by_sample, by_type, cross
from pyrskip.rollouts.table import OUTSIDE, RolloutTable

KEEP_PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
PERMUTATIONS = 20
CHUNK = 4096


@dataclass(frozen=True)
class Inputs:
    """What a frontier is computed from.

    tables: 'gate' (the gate's training rollouts), 'val' and 'test'. gates: 'gate' and, if they
    were trained, 'gate:joint', 'gate:query_only' and 'gate:glance_only' -> one gate a seed, in the order of
    `seeds`. gate_flops: of one decision, by the same names. tile_flops: split -> [M, T], FLOPs of encoding
    each tile of each image, counted as the table's are; None where tables have no similarity. crossed:
    'gate', 'val' and 'test' of the same questions under another flex seed, for oracle:cross.
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
    crossed: Mapping[str, RolloutTable] | None = None

    @property
    def unit(self) -> float:
        """FLOPs of relative cost 1."""
        return self.tables["gate"].mean_full_flops


@dataclass(frozen=True)
class Play:
    """A method's decisions on a split. weight [N, S + 2] float64: probability of each column; rows sum to 1.

    gate: the gate whose FLOPs and time it pays, if any. encodes_all: it looks at every tile before it
    decides.
    """

    method: str
    weight: Tensor
    price: float | None = None
    seed: int | None = None
    gate: str | None = None
    encodes_all: bool = False


def plays(inputs: Inputs, split: str, hulls: Mapping[str, Sequence[int]]) -> Iterator[Play]:
    """Every method on a split. hulls: method -> the listed actions that it may always take."""
    table = inputs.tables[split]
    actions, columns = table.actions, len(table.actions) + len(OUTSIDE)

    def always(column: int) -> Tensor:
        return _one_hot(torch.full((len(table),), column), columns)

    yield Play("full", always(actions.full))
    for name in OUTSIDE:
        yield Play(name, always(table.column(name)))
    for action, name in enumerate(actions.names):
        yield Play(f"fixed:{name}", always(action))
    for method, vertices in hulls.items():
        for action in vertices:
            yield Play(method, always(action))
    yield from _gate_plays(inputs, table)
    for keep in KEEP_PROBABILITIES:
        weight = _bernoulli(keep, actions, inputs.pyramid.tile_level)
        yield Play("random:bernoulli", F.pad(weight, (0, len(OUTSIDE))).expand(len(table), -1))
    texts = [table.texts[i] for i in table.query_of.tolist()]
    yield Play("heuristic", _one_hot(keyword_actions(texts, actions, inputs.pyramid.levels), columns))
    if product_of_rungs(actions):
        for share in SHARES:
            yield Play("strategy", _one_hot(strategy_actions(texts, share, inputs.pyramid, actions), columns))
    if table.similarity is not None:
        padding = inputs.pyramid.capacity(table.size)[table.image_of] == 0
        similarity = table.similarity.masked_fill(padding, float("-inf"))
        for k in range(1, inputs.pyramid.levels - 1):
            picked = cosine_actions(similarity, actions, inputs.pyramid.tile_level, k)
            yield Play("cosine", _one_hot(picked, columns), encodes_all=True)
    own = {price for gates in inputs.gates.values() for gate in gates for price in gate.prices(())}
    for price in sorted({*inputs.prices, *own}):
        best = by_type(inputs.tables["gate"], price, inputs.unit)
        # a type that the training rollouts never saw gets everything
        picked = torch.tensor([best.get(kind, actions.full) for kind in table.types])
        yield Play("oracle:type", _one_hot(picked, columns), price)
        yield Play("oracle:sample", _one_hot(by_sample(table, price, inputs.unit), columns), price)
        if inputs.crossed is not None:
            picked = cross(table, inputs.crossed[table.split], price, inputs.crossed["gate"].mean_full_flops)
            yield Play("oracle:cross", _one_hot(picked, columns), price)


@torch.no_grad()
def decide(
    gate: Gate,
    table: RolloutTable,
    pyramid: Pyramid,
    budget: BudgetRule,
    unit: float,
    prices: Sequence[float],
) -> Tensor:
    """What inference runs, the mode, for every question of a table: listed actions [P, N]."""
    gate.eval()
    environment = TableEnvironment(table, pyramid, budget, unit)
    chunks = []
    for rows in torch.arange(len(table)).split(CHUNK):
        seen = environment.observe(rows, torch.zeros(len(rows)))
        # a utility gate predicts scores, which no price changes: one pass serves all
        outputs = gate(seen) if gate.config.policy == "utility" else None
        priced = [replace(seen, price=torch.full((len(rows),), float(price))) for price in prices]
        chunks.append(torch.stack([environment.action(rows, gate.policy(s, outputs).mode()) for s in priced]))
    return torch.cat(chunks, dim=1)


def product_of_rungs(actions: ActionSet) -> bool:
    return bool(actions.ladder) and actions.complete


def _gate_plays(inputs: Inputs, table: RolloutTable) -> Iterator[Play]:
    columns = len(table.actions) + len(OUTSIDE)
    for method, gates in inputs.gates.items():
        for seed, gate in zip(inputs.seeds, gates, strict=True):
            prices = gate.prices(inputs.prices)
            rest = (inputs.pyramid, inputs.budget, inputs.unit, prices)
            decided = decide(gate, table, *rest)
            for price, action in zip(prices, decided, strict=True):
                yield Play(method, _one_hot(action, columns), price, seed, method)
            if method != "gate":
                continue
            generator = torch.Generator().manual_seed(seed)
            for price, action in zip(prices, decided, strict=True):
                yield Play("random", _permuted(action, columns, generator), price, seed, method)
            order = torch.randperm(len(table), generator=generator)
            # asked are others' questions, of which the model is as sure; what is paid and answered stays the
            # sample's own
            sure = None if table.confidence is None else table.confidence[order]
            shuffled = replace(table, query_of=table.query_of[order], confidence=sure)
            for price, action in zip(prices, decide(gate, shuffled, *rest), strict=True):
                yield Play("gate:shuffled_query", _one_hot(action, columns), price, seed, method)


def _permuted(action: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Mean over permutations of the one-hot of actions [N] dealt out to other questions, [N, columns]."""
    weight = torch.zeros(len(action), columns, dtype=torch.float64)
    for _ in range(PERMUTATIONS):
        weight += _one_hot(action[torch.randperm(len(action), generator=generator)], columns)
    return weight / PERMUTATIONS


def _bernoulli(keep: float, actions: ActionSet, tile_level: Tensor) -> Tensor:
    """Weight of each listed action where each level beside the glance is kept whole with this probability,
    [1, S]."""
    finer = int(tile_level.max())
    share = actions.selection.double() if actions.rung is None else actions.rung / (len(actions.ladder) - 1)
    kept = torch.stack([share[:, tile_level == i].mean(-1) for i in range(finer)], dim=-1)
    weight = multilinear(torch.full((1, finer), keep, dtype=torch.float64), kept == 1)
    weight = weight * ((kept == 0) | (kept == 1)).all(-1)
    return weight / weight.sum(-1, keepdim=True)


def _one_hot(action: Tensor, columns: int) -> Tensor:
    return F.one_hot(action, columns).double()
