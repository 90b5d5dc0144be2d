"""The frontier: accuracy against cost, one curve a method, computed from rollout tables alone.

Axes: N questions, M images, S listed actions, T tiles, P prices. What is chosen (a price, the hull, an oracle by type)
is chosen on validation or the gate's training rollouts and only played on test. A method is a Play: the probability of
each of the table's S + 2 columns for each question, so that random mixes are exact expectations and pay what they cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.evaluation.bootstrap import Bootstrap, Interval
from pyrskip.evaluation.timing import GATED, Clock, Timing
from pyrskip.gates.gate import Gate
from pyrskip.gates.heuristics import SHARES, cosine_actions, keyword_actions, proportional_actions, strategy_actions, whole
from pyrskip.gates.policies import multilinear
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.oracles import by_sample, by_type, cross
from pyrskip.rollouts.table import OUTSIDE, RolloutTable
from pyrskip.rollouts.weights import learned_weights

SPLITS = ("val", "test")
KEEP_PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
PERMUTATIONS = 20
CHUNK = 4096


@dataclass(frozen=True)
class Row:
    """A method on a split, as frontier.json lists it. Costs are means a question; times are milliseconds a question at
    batch 1, and at batch 32 where the name says so, None where nothing was timed.

    price and seed are None where the method has none. retention: accuracy over full's on the split, never clipped, None
    where that is 0. relative: over the mean full pyramid on the gate's training split. by_type: accuracy,
    accuracy_ci95, relative_flops and n of each question type.
    """

    method: str
    price: float | None
    seed: int | None
    split: str
    accuracy: float
    accuracy_ci95: Interval
    retention: float | None
    retention_of_reference: float | None
    tokens: float
    relative_tokens: float
    flops: float
    relative_flops: float
    flops_of_reference: float
    kv_bytes: float
    encode_ms: float | None
    gate_ms: float | None
    total_ms: float | None
    encode_ms_b32: float | None
    gate_ms_b32: float | None
    total_ms_b32: float | None
    by_type: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """What a frontier is computed from.

    tables: 'gate' (the gate's training rollouts), 'val' and 'test'. gates: 'gate', 'gate:query_only' and
    'gate:glance_only' -> one gate a seed, in the order of `seeds`. gate_flops: of one decision, by the same names.
    tile_flops: split -> [M, T], FLOPs of encoding each tile of each image, counted as the table's are; None where tables have
    no similarity. crossed: 'gate', 'val' and 'test' of the same questions under another flex seed, for oracle:cross.
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

    gate: the gate whose FLOPs and time it pays, if any. encodes_all: it looks at every tile before it decides.
    """

    method: str
    weight: Tensor
    price: float | None = None
    seed: int | None = None
    gate: str | None = None
    encodes_all: bool = False


@dataclass(frozen=True)
class Point:
    """A row with what it is the mean of: score [N] float64, and action [N] where the method decides for sure."""

    row: Row
    score: Tensor
    action: Tensor | None


@dataclass(frozen=True)
class Frontier:
    """weights [T]: the budget weights that were learned where the tables list every combination of rungs."""

    points: tuple[Point, ...]
    inputs: Inputs
    weights: tuple[float, ...] | None
    bootstrap: Mapping[str, Bootstrap] = field(repr=False)

    @property
    def rows(self) -> list[Row]:
        return [point.row for point in self.points]

    def select(self, method: str, split: str, price: float | None = None, seed: int | None = None) -> list[Point]:
        """The points of a method; of every price or seed where none is given."""
        return [
            p
            for p in self.points
            if p.row.method == method
            and p.row.split == split
            and (price is None or p.row.price == price)
            and (seed is None or p.row.seed == seed)
        ]


def frontier(inputs: Inputs) -> Frontier:
    """Every method on validation and test."""
    val = inputs.tables["val"]
    hulls, learned = {"hull": _hull(val, range(len(val.actions)))}, None
    if _product_of_rungs(val.actions):
        learned = learned_weights(inputs.tables["gate"], inputs.pyramid)
        for name, weights in (("capacity", whole(inputs.pyramid).double()), ("learned", learned)):
            hulls[f"budget:{name}"] = _hull(val, proportional_actions(weights, inputs.pyramid, val.actions))
    points: list[Point] = []
    bootstraps = {}
    for split in SPLITS:
        bootstraps[split] = Bootstrap(inputs.tables[split].image_of, inputs.resamples)
        ruler = _Ruler(inputs, split, bootstraps[split])
        points += [ruler.point(play) for play in _plays(inputs, split, hulls)]
    return Frontier(tuple(points), inputs, None if learned is None else tuple(learned.tolist()), bootstraps)


@torch.no_grad()
def decide(
    gate: Gate, table: RolloutTable, pyramid: Pyramid, budget: BudgetRule, unit: float, prices: Sequence[float]
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


def upper_hull(cost: Sequence[float], value: Sequence[float]) -> list[int]:
    """Vertices of the concave, rising upper hull of points, cheapest first: mixing two neighbours beats all between."""
    vertices: list[int] = []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -value[i])):
        if vertices and value[i] <= value[vertices[-1]]:
            continue
        while len(vertices) > 1 and not _turns_down(*((cost[j], value[j]) for j in (*vertices[-2:], i))):
            vertices.pop()
        vertices.append(i)
    return vertices


def hull_at(rows: Sequence[Row], split: str, relative_flops: float) -> float | None:
    """Accuracy of the random mix of two fixed selections of the hull that costs this much on average.

    None below the cheapest; the dearest vertex's accuracy above it.
    """
    hull = sorted((r.relative_flops, r.accuracy) for r in rows if r.method == "hull" and r.split == split)
    if not hull or relative_flops < hull[0][0]:
        return None
    for (low, below), (high, above) in pairwise(hull):
        if relative_flops < high:
            return below + (above - below) * (relative_flops - low) / (high - low)
    return hull[-1][1]


def _hull(val: RolloutTable, candidates: Sequence[int]) -> list[int]:
    """Those of the listed actions that are vertices of their upper hull on validation."""
    cost, score = val.cost.flops.mean(0).tolist(), _means(val.score)
    return [candidates[i] for i in upper_hull([cost[c] for c in candidates], [score[c] for c in candidates])]


def _product_of_rungs(actions: ActionSet) -> bool:
    return bool(actions.ladder) and actions.complete


def _plays(inputs: Inputs, split: str, hulls: Mapping[str, Sequence[int]]) -> Iterator[Play]:
    """hulls: method -> the listed actions that it may always take."""
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
    if _product_of_rungs(actions):
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
            # the others' questions are asked, but what is paid and answered stays the sample's own
            shuffled = replace(table, query_of=table.query_of[order])
            for price, action in zip(prices, decide(gate, shuffled, *rest), strict=True):
                yield Play("gate:shuffled_query", _one_hot(action, columns), price, seed, method)


def _permuted(action: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Mean over permutations of the one-hot of actions [N] dealt out to other questions, [N, columns]."""
    weight = torch.zeros(len(action), columns, dtype=torch.float64)
    for _ in range(PERMUTATIONS):
        weight += _one_hot(action[torch.randperm(len(action), generator=generator)], columns)
    return weight / PERMUTATIONS


def _bernoulli(keep: float, actions: ActionSet, tile_level: Tensor) -> Tensor:
    """Weight of each listed action where each level beside the glance is kept whole with this probability, [1, S]."""
    finer = int(tile_level.max())
    share = actions.selection.double() if actions.rung is None else actions.rung / (len(actions.ladder) - 1)
    kept = torch.stack([share[:, tile_level == i].mean(-1) for i in range(finer)], dim=-1)
    weight = multilinear(torch.full((1, finer), keep, dtype=torch.float64), kept == 1)
    weight = weight * ((kept == 0) | (kept == 1)).all(-1)
    return weight / weight.sum(-1, keepdim=True)


class _Ruler:
    """Measures plays on one split."""

    def __init__(self, inputs: Inputs, split: str, bootstrap: Bootstrap) -> None:
        self.inputs, self.split, self.bootstrap = inputs, split, bootstrap
        table = self.table = inputs.tables[split]
        gate = inputs.tables["gate"]
        self.full_tokens = float(gate.cost.tokens[:, gate.actions.full].double().mean())
        self.full, self.reference = (_means(table.score)[c] for c in (table.actions.full, table.column("reference")))
        self.reference_flops = float(table.cost.flops[:, table.column("reference")].mean())
        tile_flops = inputs.tile_flops[split]
        # [N, S]: what the encoder would still spend on the tiles that an action skips
        if tile_flops is not None:
            self.unencoded = tile_flops[table.image_of].double() @ (~table.actions.selection).double().T
        self.masks = {k: torch.tensor([t == k for t in table.types]) for k in sorted(set(table.types))}

    def point(self, play: Play) -> Point:
        cost, unit = self.table.cost, self.inputs.unit
        score = (play.weight * self.table.score).sum(-1)
        flops = (play.weight * cost.flops).sum(-1)
        if play.gate is not None:
            flops = flops + self.inputs.gate_flops[play.gate]
        if play.encodes_all:
            flops = flops + (play.weight[:, : self.unencoded.shape[1]] * self.unencoded).sum(-1)
        accuracy, mean_flops = float(score.mean()), float(flops.mean())
        tokens, kv_bytes = (float((play.weight * of).sum(-1).mean()) for of in (cost.tokens, cost.kv_bytes))
        timing = self.inputs.timing
        encode, gate, total = self._times(play, timing.single if timing else None)
        encode_b32, gate_b32, total_b32 = self._times(play, timing.batched if timing else None)
        row = Row(
            method=play.method,
            price=play.price,
            seed=play.seed,
            split=self.split,
            accuracy=accuracy,
            accuracy_ci95=self.bootstrap.interval(score),
            retention=_ratio(accuracy, self.full),
            retention_of_reference=_ratio(accuracy, self.reference),
            tokens=tokens,
            relative_tokens=tokens / self.full_tokens,
            flops=mean_flops,
            relative_flops=mean_flops / unit,
            flops_of_reference=mean_flops / self.reference_flops,
            kv_bytes=kv_bytes,
            encode_ms=encode,
            gate_ms=gate,
            total_ms=total,
            encode_ms_b32=encode_b32,
            gate_ms_b32=gate_b32,
            total_ms_b32=total_b32,
            by_type={
                kind: {
                    "accuracy": float(score[mask].mean()),
                    "accuracy_ci95": self.bootstrap.interval_of_ratio(score * mask, mask),
                    "relative_flops": float(flops[mask].mean()) / unit,
                    "n": int(mask.sum()),
                }
                for kind, mask in self.masks.items()
            },
        )
        certain = bool((play.weight.amax(-1) == 1).all())
        return Point(row, score, play.weight.argmax(-1) if certain else None)

    def _times(self, play: Play, clock: Clock | None) -> tuple[float | None, float | None, float | None]:
        """Encode, gate and total milliseconds, the decisions' own averaged."""
        if clock is None:
            return None, None, None
        names = [GATED * (play.gate is not None) + name for name in self.table.actions.names] + list(OUTSIDE)
        share = play.weight.mean(0).tolist()
        both = (clock.encode, clock.total)
        encode, total = (sum(p * of[name] for p, name in zip(share, names, strict=True)) for of in both)
        if play.encodes_all:
            every = clock.encode[self.table.actions.names[self.table.actions.full]]
            encode, total = every, total - encode + every
        gate = clock.gate[play.gate] if play.gate is not None else 0.0
        return encode, gate, total + gate


def _means(score: Tensor) -> list[float]:
    means: list[float] = score.double().mean(0).tolist()
    return means


def _one_hot(action: Tensor, columns: int) -> Tensor:
    return F.one_hot(action, columns).double()


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """The slope from b to c is less than that from a to b. Costs rise strictly from a to c."""
    return (c[1] - b[1]) * (b[0] - a[0]) < (b[1] - a[1]) * (c[0] - b[0])
