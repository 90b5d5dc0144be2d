"""What a frontier says at each target retention: the price that validation chooses, and what it gives on
test."""

from collections.abc import Sequence
from typing import Any

from pyrskip.evaluation.frontier import Frontier, Point, Row, hull_at, hull_cost, regret
from pyrskip.evaluation.needs import doubt
from pyrskip.rollouts.health import health

SHARED_MODEL = "All gate seeds decide for one flex model: their spread is that of the gates' training alone."


def summary(
    frontier: Frontier, targets: Sequence[float] = (0.98, 0.99, 0.995), lookup: float | None = None
) -> dict[str, Any]:
    """What the frontier says at each target retention, in words for a report's keys.

    A seed's price is the cheapest on validation whose validation retention meets the target; everything else
    is measured on test. cost_over_fixed: over the cheapest fixed selection by the same rule, whatever that
    retains on test; cost_over_hull: over the mix of fixed selections that retains as much, None where none
    does. budget_weights: those that were learned, where actions are rungs. lookup: test
    accuracy of the majority answer of each question text among the training questions. doubt: see
    `needs.doubt`.
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
    result["targets"] = {
        str(target): {"fixed": _fixed_at(frontier, target)}
        | {method: _gate_at(frontier, method, target) for method in frontier.inputs.gates}
        for target in targets
    }
    return result


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


def _cheapest(points: Sequence[Point], target: float) -> Row | None:
    fit = [p.row for p in points if p.row.retention is not None and p.row.retention >= target]
    return min(fit, key=lambda row: row.relative_flops, default=None)


def _fixed_at(frontier: Frontier, target: float) -> dict[str, Any] | None:
    names = frontier.inputs.tables["val"].actions.names
    row = _cheapest([p for name in names for p in frontier.select(f"fixed:{name}", "val")], target)
    if row is None:
        return None
    return {"method": row.method, **_figures(frontier, frontier.select(row.method, "test")[0])}


def _gate_at(frontier: Frontier, method: str, target: float) -> dict[str, Any]:
    """The seeds of a gate at the price that validation chose, and their mean and range.

    Seeds that never meet the target on validation say price: None and count in no mean.
    """
    fixed = _fixed_at(frontier, target)
    seeds = [_seed_at(frontier, method, seed, target, fixed) for seed in frontier.inputs.seeds]
    keys = (
        *("accuracy", "retention", "relative_flops", "flops_of_reference", "cost_over_fixed"),
        *("cost_over_hull", "gain_over_hull", "regret_to_oracle_type", "gain_over_random"),
    )
    spread = {key: _spread([s[key] for s in seeds if s.get(key) is not None]) for key in keys}
    return {"seeds": seeds, **{key: value for key, value in spread.items() if value is not None}}


def _seed_at(
    frontier: Frontier, method: str, seed: int, target: float, fixed: dict[str, Any] | None
) -> dict[str, Any]:
    chosen = _cheapest(frontier.select(method, "val", seed=seed), target)
    if chosen is None:
        return {"seed": seed, "price": None}
    price = chosen.price
    assert price is not None
    point = frontier.select(method, "test", price, seed)[0]
    assert point.action is not None
    row, table = point.row, frontier.inputs.tables["test"]
    oracle = frontier.select("oracle:type", "test", price)[0].row
    hull = hull_at(frontier.rows, "test", row.relative_flops)
    equal = hull_cost(frontier.rows, "test", row.accuracy)
    result = {"seed": seed, "price": price, "val_retention": chosen.retention, **_figures(frontier, point)}
    result |= {
        "cost_over_fixed": fixed and row.relative_flops / fixed["relative_flops"],
        "cost_over_hull": equal and row.relative_flops / equal,
        "gain_over_hull": None if hull is None else row.accuracy - hull,
        "regret_to_oracle_type": regret(row, oracle),
        "health": health(point.action, table.types, table.actions, frontier.inputs.pyramid.tile_level),
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
