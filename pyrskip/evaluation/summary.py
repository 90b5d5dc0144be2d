"""What a frontier says at each target retention: the price at which held-out images guarantee it, and what it
gives on test."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pyrskip.evaluation.frontier import Frontier, Point, hull_at, hull_cost, regret
from pyrskip.evaluation.guarantee import by_image, guarantee
from pyrskip.evaluation.needs import doubt
from pyrskip.evaluation.verdict import verdict
from pyrskip.rollouts.health import health
from pyrskip.rollouts.held_out import held_out

SHARED_MODEL = "All gate seeds decide for one flex model: their spread is that of the gates' training alone."


@dataclass(frozen=True)
class _Target:
    """A retention to guarantee. images: validation's held-out ones, in the order that they are looked at."""

    retention: float
    confidence: float
    images: list[int]


def summary(
    frontier: Frontier,
    targets: Sequence[float] = (0.98, 0.99, 0.995),
    lookup: float | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What the frontier says at each target retention, in words for a report's keys.

    A seed's price is the cheapest that keeps the target on new images with this confidence, by the held-out
    half of validation, else its lowest (`guarantee`). Everything else is measured on test. cost_over_fixed:
    over the cheapest fixed selection that is held to the same, else full, whatever that retains on test;
    cost_over_hull: over the mix of fixed selections that retains as much, None where none does.
    budget_weights: those that were learned, where actions are rungs. lookup: test
    accuracy of the majority answer of each question text among the training questions. doubt: see
    `needs.doubt`; worth: see `verdict.verdict`.
    """
    result: dict[str, Any] = {
        "note": SHARED_MODEL,
        "unit_flops": frontier.inputs.unit,
        "lookup_accuracy": lookup,
    }
    weights = frontier.inputs.budget_weights
    result["budget_weights"] = None if weights is None else weights.tolist()
    for method in ("full", "reference", "question_only"):
        result[method] = _figures(frontier, frontier.select(method, "test")[0])
    floors = {"question_only": result["question_only"]["accuracy"], "lookup_accuracy": lookup or 0.0}
    result["doubt"] = doubt(result["full"]["accuracy"], floors)
    result["worth"] = verdict(frontier)
    images, result["targets"] = held_out(frontier.inputs.tables["val"]), {}
    for target in (_Target(retention, confidence, images) for retention in targets):
        fixed = _fixed_at(frontier, target)
        gates = {method: _gate_at(frontier, method, target, fixed) for method in frontier.inputs.gates}
        result["targets"][str(target.retention)] = {"fixed": fixed} | gates
    return result


def default_price(summary: Mapping[str, Any], seed: int) -> float:
    """A gate's price at the highest retention that is guaranteed, else its safest one."""
    targets = sorted(summary["targets"].items(), key=lambda item: float(item[0]))
    own = [of for _, at in targets for of in at["gate"]["seeds"] if of["seed"] == seed]
    return float(([of for of in own if of["guarantee"]["guaranteed"]] or own)[-1]["price"])


def _figures(frontier: Frontier, point: Point) -> dict[str, Any]:
    """A point's figures with the interval of its retention."""
    row = point.row
    full = frontier.select("full", row.split)[0]
    return {
        "accuracy": row.accuracy,
        "accuracy_ci95": row.accuracy_ci95,
        "retention": row.retention,
        "retention_ci95": frontier.bootstrap[row.split].interval_of_ratio(
            frontier.score(point), frontier.score(full)
        ),
        "relative_flops": row.relative_flops,
        "flops_of_reference": row.flops_of_reference,
    }


def _guaranteed(frontier: Frontier, points: Sequence[Point], target: _Target) -> tuple[Point, dict[str, Any]]:
    """The test point of the setting that the held-out images choose, and its guarantee, with what it keeps of
    full's score on the test images. points: validation's, the safest first."""

    def scores(points: Sequence[Point], split: str, images: Sequence[int]) -> Any:
        of = [frontier.score(point).numpy() for point in (*points, frontier.select("full", split)[0])]
        return by_image(of, frontier.inputs.tables[split].image_of.numpy(), images)

    *score, full = scores(points, "val", target.images)
    cost = [point.row.relative_flops for point in points]
    chosen, found = guarantee(score, full, cost, target.retention, target.confidence)
    row = points[chosen].row
    point = frontier.select(row.method, "test", row.price, row.seed)[0]
    tested = frontier.inputs.tables["test"].image_of.unique().tolist()
    kept, full = scores([point], "test", tested).sum(-1).tolist()
    return point, asdict(found) | {"kept_on_test": kept / full if full else None}


def _fixed_at(frontier: Frontier, target: _Target) -> dict[str, Any]:
    """The cheapest fixed selection that holds, else full. Tried are those that, on the gate's training
    rollouts, no cheaper one is as good as, from the dearest on."""
    table = frontier.inputs.tables["gate"]
    means = zip(
        table.cost.flops.mean(0).tolist(),
        table.score.mean(0).tolist(),
        table.actions.names,
        strict=False,  # the decisions outside of the set come last
    )
    best = -1.0
    names: list[str] = []
    for _, score, name in sorted(means, key=lambda of: (of[0], -of[1])):
        if score > best:
            best, names = score, [name, *names]
    full = table.actions.names[table.actions.full]
    names = [full, *(name for name in names if name != full)]
    points = [frontier.select(f"fixed:{name}", "val")[0] for name in names]
    point, found = _guaranteed(frontier, points, target)
    return {"method": point.row.method, **_figures(frontier, point), "guarantee": found}


def _gate_at(frontier: Frontier, method: str, target: _Target, fixed: dict[str, Any]) -> dict[str, Any]:
    """The seeds of a gate, each at its own price, and their mean and range."""
    seeds = [_seed_at(frontier, method, seed, target, fixed) for seed in frontier.inputs.seeds]
    keys = (
        *("accuracy", "retention", "relative_flops", "flops_of_reference", "cost_over_fixed"),
        *("cost_over_hull", "gain_over_hull", "regret_to_oracle_type", "gain_over_random"),
    )
    spread = {key: _spread([s[key] for s in seeds if s.get(key) is not None]) for key in keys}
    return {"seeds": seeds, **{key: value for key, value in spread.items() if value is not None}}


def _seed_at(
    frontier: Frontier, method: str, seed: int, target: _Target, fixed: dict[str, Any]
) -> dict[str, Any]:
    points = frontier.select(method, "val", seed=seed)
    point, found = _guaranteed(frontier, sorted(points, key=lambda p: p.row.price or 0.0), target)
    price = point.row.price
    assert point.action is not None
    assert price is not None
    row, table = point.row, frontier.inputs.tables["test"]
    oracle = frontier.select("oracle:type", "test", price)[0].row
    hull = hull_at(frontier.rows, "test", row.relative_flops)
    equal = hull_cost(frontier.rows, "test", row.accuracy)
    result = {"seed": seed, "price": price, "guarantee": found, **_figures(frontier, point)}
    result |= {
        "cost_over_fixed": row.relative_flops / fixed["relative_flops"],
        "cost_over_hull": equal and row.relative_flops / equal,
        "gain_over_hull": None if hull is None else row.accuracy - hull,
        "regret_to_oracle_type": regret(row, oracle),
        "health": health(
            table.steps(torch.arange(len(table)), point.action),
            table.types,
            frontier.inputs.pyramid.tile_level,
        ),
    }
    if method == "gate":
        random = frontier.select("random", "test", price, seed)[0]
        result["gain_over_random"] = row.accuracy - random.row.accuracy
        result["gain_over_random_ci95"] = frontier.bootstrap["test"].interval_of_difference(
            frontier.score(point), frontier.score(random)
        )
        result["random_relative_flops"] = random.row.relative_flops
    return result


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values), "seeds": len(values)}
