"""The frontier: which methods it holds, what each pays, and what may be chosen where."""

import json
from dataclasses import asdict, fields, replace
from functools import cache
from io import StringIO
from itertools import product
from math import log
from pathlib import Path
from typing import cast

import pytest
import torch
from rich.console import Console
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.evaluation import inference
from pyrskip.evaluation.frontier import Frontier, Row, frontier, hull_at, hull_cost
from pyrskip.evaluation.guarantee import guarantee
from pyrskip.evaluation.hull import cost_at, upper_hull
from pyrskip.evaluation.inference import Shown
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.gates import _at_cost_of
from pyrskip.evaluation.summary import default_price, summary
from pyrskip.evaluation.timing import Clock, Timing
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.observation import Layout, Observation
from pyrskip.report.frontier import print_methods
from pyrskip.report.plots import plot_frontier
from pyrskip.report.selections import plot_selections
from pyrskip.rollouts.health import health
from pyrskip.rollouts.held_out import held_out, looked_at
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Question, Sample
from tests.tables import TYPES, synthetic_pyramid, synthetic_table, synthetic_tile_flops

PRICES = (0.0, 0.05, 0.2, 1.0)
FIELDS = (
    *("method", "price", "seed", "split", "accuracy", "accuracy_ci95", "retention", "retention_of_reference"),
    *("tokens", "relative_tokens", "flops", "relative_flops", "flops_of_reference", "kv_bytes"),
    *("encode_ms", "gate_ms", "total_ms", "encode_ms_b32", "gate_ms_b32", "total_ms_b32", "by_type"),
)


SIGNALS = {"query": (None, 8), "query_mask": (None,), "glance": (6, 2, 2), "glance_mask": (2, 2)}


class ByText(Gate):
    """A utility gate that knows the expected score of every action, from the question's embedding alone."""

    def __init__(self, layout: Layout, query: Tensor, utility: Tensor) -> None:
        super().__init__(GateConfig(name="joint", policy="utility", width=4), layout)
        self.query, self.utility = query, utility

    def inputs(self) -> int:
        return 1

    def look(self, seen: Observation) -> Tensor:
        raise NotImplementedError

    def forward(self, seen: Observation) -> Tensor:
        return self.utility[torch.cdist(seen["query"].flatten(1), self.query.flatten(1)).argmin(-1)]


def tables(varied_cost: bool) -> dict[str, RolloutTable]:
    return {
        s: synthetic_table(s, 60, seed=i, varied_cost=varied_cost)
        for i, s in enumerate(("gate", "val", "test"))
    }


def inputs_of(splits: dict[str, RolloutTable], timing: Timing | None = None) -> Inputs:
    table = splits["gate"]
    layout = Layout(SIGNALS, 3, table.actions, BudgetRule())
    utility = torch.stack([table.probability[i, :4] for i in range(3)])
    torch.manual_seed(0)
    ablations = (
        GateConfig(name="predictor", policy="categorical", width=8),
        GateConfig(name="glance", policy="bernoulli", width=8),
        GateConfig(name="joint", policy="utility", width=8),
    )
    query_only, glance_only, joint = ([build_gate(config, layout) for _ in range(3)] for config in ablations)
    gates: dict[str, list[Gate]] = {
        "gate": [ByText(layout, table.signals["text"]["query"], utility) for _ in range(3)],
        "gate:query_only": query_only,
        "gate:glance_only": glance_only,
        "gate:joint": joint,
    }
    return Inputs(
        tables=splits,
        pyramid=synthetic_pyramid(),
        budget=BudgetRule(),
        gates=gates,
        seeds=(0, 1, 2),
        prices=PRICES,
        gate_flops=dict.fromkeys(gates, 7_000.0),
        tile_flops={split: synthetic_tile_flops(3, 60) for split in splits},
        encode_flops={split: synthetic_tile_flops(3, 60) for split in splits},
        asked_flops=5_000.0,
        timing=timing,
        resamples=200,
    )


@cache
def computed(varied_cost: bool = False) -> Frontier:
    return frontier(inputs_of(tables(varied_cost)))


def row(method: str, split: str = "test", price: float | None = None, seed: int | None = None) -> Row:
    return computed().select(method, split, price, seed)[0].row


def test_every_method_is_there_with_exactly_the_fields() -> None:
    rows = computed().rows
    fixed = {f"fixed:{name}" for name in ("glance", "1", "0", "0,1")}
    learned = {"gate", "gate:query_only", "gate:glance_only", "gate:joint", "gate:shuffled_query", "random"}
    learned |= {"gate:safe", "adaptvision"}
    others = {"full", "reference", "hull", "random:bernoulli", "heuristic", "cosine", "question_only"}
    others |= {"entropy", "variance", "arr_coc", "attention", "visionthink", "vir", "prefix"}
    oracles = {"oracle:type", "oracle:sample"}
    for split in ("val", "test"):
        assert {r.method for r in rows if r.split == split} == fixed | learned | others | oracles
    assert [f.name for f in fields(Row)] == list(FIELDS)
    assert all(set(r.by_type) == set(TYPES) for r in rows)
    json.dumps([asdict(r) for r in rows], allow_nan=False)
    for method in learned:
        assert {(r.price, r.seed) for r in rows if r.method == method} == {
            (p, s) for p in PRICES for s in (0, 1, 2)
        }


def test_random_costs_what_the_gate_costs() -> None:
    for price in PRICES:
        gate, random = row("gate", price=price, seed=1), row("random", price=price, seed=1)
        for name in ("tokens", "flops", "kv_bytes"):
            assert getattr(random, name) == pytest.approx(getattr(gate, name), rel=1e-12)


def test_random_costs_what_the_gate_costs_where_questions_and_pictures_differ_in_cost() -> None:
    splits = tables(True)
    for table in splits.values():  # pictures of all sizes, and a gate that would look closely at small ones
        table.cost.flops.mul_(
            torch.rand(60, generator=torch.Generator().manual_seed(3))[table.image_of, None] + 0.1
        )
    for found in (computed(True), frontier(inputs_of(splits))):
        for split, price, seed in product(("val", "test"), PRICES, (0, 1, 2)):
            gate, random = (found.select(m, split, price, seed)[0].row for m in ("gate", "random"))
            assert random.flops == pytest.approx(gate.flops, rel=1e-12)


def test_decisions_that_chance_makes_dearer_or_cheaper_are_mixed_with_the_cheapest_or_dearest() -> None:
    table, generator = synthetic_table("test", 60), torch.Generator().manual_seed(0)
    table.cost.flops.mul_(torch.linspace(0.1, 1, len(table))[:, None])
    flops, order = table.cost.flops[:, :4], torch.arange(len(table))
    for some, end in ((order[:30], 0), (order[-30:], 3)):  # full for cheap questions alone, or for dear ones
        action = torch.zeros(len(table), dtype=torch.long).index_fill(0, some, 3)
        dealt = torch.stack([action[torch.randperm(len(table), generator=generator)] for _ in range(3)])
        mixed = _at_cost_of(action, dealt, table)
        assert (
            mixed.share is not None
            and (mixed.share >= 0).all()
            and float(mixed.share.sum()) == pytest.approx(1)
        )
        assert float(mixed.mean(flops).mean()) == pytest.approx(
            float(flops.gather(1, action[:, None]).mean())
        )
        assert mixed.action[-1].equal(torch.full((len(table),), end))


def test_a_gate_that_knows_beats_chance_at_the_same_cost_and_a_shuffled_question_does_not() -> None:
    gate, random, shuffled = (row(m, price=0.2, seed=0) for m in ("gate", "random", "gate:shuffled_query"))
    assert gate.accuracy > random.accuracy + 0.05
    assert gate.accuracy > shuffled.accuracy + 0.05


def test_methods_that_run_a_gate_pay_for_it() -> None:
    # at such a price the glance alone is kept
    gate = computed().inputs.gate_flops["gate"]
    dear = replace(computed().inputs, prices=(100.0,))
    points = frontier(dear)
    for method in ("gate", "random", "gate:shuffled_query"):
        point = points.select(method, "test")[0].row
        assert point.flops == pytest.approx(row("fixed:glance").flops + gate)
    assert points.select("oracle:type", "test")[0].row.flops == pytest.approx(row("fixed:glance").flops)


def test_cosine_pays_for_every_encoder() -> None:
    table, tile_flops = computed().inputs.tables["test"], synthetic_tile_flops(3, 1)[0]
    point = computed().select("cosine", "test")[0]
    assert point.action is not None
    mean = table.cost.flops[torch.arange(len(table)), point.action].mean()
    skipped = (~table.actions.selection[point.action]).double() @ tile_flops
    assert point.row.flops == pytest.approx(float(mean + skipped.mean()))
    assert point.row.flops > row("fixed:0").flops - row("fixed:0").tokens * 5_000


def test_bernoulli_is_the_exact_expectation() -> None:
    half = computed().select("random:bernoulli", "test")[2].row
    names = ("glance", "1", "0", "0,1")
    assert half.accuracy == pytest.approx(sum(row(f"fixed:{n}").accuracy for n in names) / 4)
    assert half.flops == pytest.approx(sum(row(f"fixed:{n}").flops for n in names) / 4)


def test_oracle_by_sample_beats_every_listed_decision() -> None:
    best = row("oracle:sample", price=0.0).accuracy
    listed = (
        r for r in computed().rows if r.split == "test" and r.method not in ("reference", "question_only")
    )
    assert all(r.accuracy <= best + 1e-12 for r in listed)


def test_oracle_by_type_is_fitted_on_the_gates_rollouts_alone() -> None:
    splits = tables(False)
    flipped = splits | {"test": replace(splits["test"], score=1 - splits["test"].score)}
    again = frontier(inputs_of(flipped)).select("oracle:type", "test", 0.05)[0]
    before = computed().select("oracle:type", "test", 0.05)[0]
    assert again.action is not None
    assert before.action is not None
    assert torch.equal(again.action, before.action)


def test_the_hull_is_concave_rising_and_chosen_on_validation() -> None:
    cost, value = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.2, 0.6, 0.65, 0.9, 0.8, 0.95]
    assert upper_hull(cost, value) == [0, 1, 3, 5]
    assert upper_hull([1.0, 1.0, 2.0], [0.5, 0.7, 0.6]) == [1]
    splits = tables(False)
    bad = splits | {"test": replace(splits["test"], score=torch.zeros_like(splits["test"].score))}
    for split in ("val", "test"):
        before = [r.tokens for r in computed().rows if r.method == "hull" and r.split == split]
        after = [r.tokens for r in frontier(inputs_of(bad)).rows if r.method == "hull" and r.split == split]
        assert before == after


def test_the_hull_between_two_vertices_is_their_mix() -> None:
    rows = computed().rows
    a, b = [r for r in rows if r.method == "hull" and r.split == "test"][:2]
    half = hull_at(rows, "test", (a.relative_flops + b.relative_flops) / 2)
    assert half == pytest.approx((a.accuracy + b.accuracy) / 2)
    assert hull_at(rows, "test", a.relative_flops * 0.9) is None
    assert hull_at(rows, "test", 9.0) == max(
        r.accuracy for r in rows if r.method == "hull" and r.split == "test"
    )


def test_the_cost_of_equal_accuracy_is_that_of_the_mix_which_has_it() -> None:
    rows = computed().rows
    points = [(r.relative_flops, r.accuracy) for r in rows if r.method == "hull" and r.split == "test"]
    (low, below), (high, above) = sorted(points)[:2]
    assert hull_cost(rows, "test", (below + above) / 2) == pytest.approx((low + high) / 2)
    assert hull_cost(rows, "test", below / 2) == low
    assert hull_cost(rows, "test", max(value for _, value in points) + 0.01) is None
    # measured on test, a dearer vertex of validation may be worse
    assert cost_at([(1.0, 0.5), (2.0, 0.4), (3.0, 0.6)], 0.5) == 1.0
    assert cost_at([(1.0, 0.5), (2.0, 0.4), (3.0, 0.6)], 0.55) == pytest.approx(2.75)


def test_retention_is_not_clipped() -> None:
    splits = tables(False)
    score = splits["test"].score.clone()
    score[:, splits["test"].actions.full] *= 0.5
    rows = frontier(inputs_of(splits | {"test": replace(splits["test"], score=score)})).rows
    oracle = next(r for r in rows if r.method == "fixed:0" and r.split == "test")
    assert oracle.retention is not None
    assert oracle.retention > 1.5


def test_retention_of_nothing_is_none() -> None:
    splits = tables(False)
    nothing = replace(splits["test"], score=torch.zeros_like(splits["test"].score))
    rows = frontier(inputs_of(splits | {"test": nothing})).rows
    assert all(r.retention is None for r in rows if r.split == "test")


def test_relative_cost_is_over_the_gate_splits_full_pyramid() -> None:
    full = computed().select("full", "test")[0].row
    unit = computed().inputs.tables["gate"].mean_full_flops
    assert full.relative_flops == full.flops / unit
    assert row("reference").flops_of_reference == pytest.approx(1.0)


def test_times_follow_the_decisions() -> None:
    names = ["glance", "1", "0", "0,1"]
    encode = {name: 1.0 + i for i, name in enumerate(names)}
    encode |= {"gated:" + name: ms + 0.5 for name, ms in encode.items()} | {
        "reference": 3.0,
        "question_only": 0.0,
    }
    clock = Clock(
        encode, {name: ms + 10 for name, ms in encode.items()}, dict.fromkeys(computed().inputs.gates, 0.25)
    )
    points = frontier(inputs_of(tables(False), Timing(clock, clock)))
    full = points.select("full", "test")[0].row
    assert (full.encode_ms, full.gate_ms, full.total_ms) == (4.0, 0.0, 14.0)
    gate = points.select("gate", "test", 0.2, 0)[0]
    assert gate.action is not None
    assert gate.row.encode_ms is not None
    assert gate.row.encode_ms == pytest.approx(1.5 + float(gate.action.double().mean()))
    assert gate.row.gate_ms == 0.25
    assert gate.row.total_ms_b32 == pytest.approx(gate.row.encode_ms + 10.25)
    cosine = points.select("cosine", "test")[0].row
    assert cosine.encode_ms == 4.0
    assert cosine.total_ms == pytest.approx(14.0)


def test_the_summary_takes_its_price_from_the_held_out_images() -> None:
    result = summary(computed(), targets=(0.7, 0.98), lookup=0.4)
    assert "one flex model" in result["note"]
    assert result["lookup_accuracy"] == 0.4
    val = computed().inputs.tables["val"]
    means = val.score[:, val.actions.full].view(-1, 3).double().mean(-1)
    full = means[held_out(val)].numpy()
    at = result["targets"]["0.7"]
    assert {entry["price"] for entry in at["gate"]["seeds"]} != {PRICES[0]}
    for entry in at["gate"]["seeds"]:
        points = [computed().select("gate", "val", p, entry["seed"])[0] for p in PRICES]
        score = torch.stack([computed().score(p).view(-1, 3).mean(-1)[held_out(val)] for p in points])
        costs = [p.row.relative_flops for p in points]
        chosen, found = guarantee(score.numpy(), full, costs, 0.7, 0.95)
        assert entry["price"] == PRICES[chosen]
        assert entry["guarantee"] == asdict(found) | {
            "kept_on_test": pytest.approx(entry["retention"])  # as many questions on every image
        }
        assert entry["guarantee"]["guaranteed"] and entry["guarantee"]["images"] == 30
        assert entry["accuracy"] == row("gate", "test", PRICES[chosen], entry["seed"]).accuracy
        fixed = row(at["fixed"]["method"])
        assert entry["cost_over_fixed"] == pytest.approx(entry["relative_flops"] / fixed.relative_flops)
        assert entry["gain_over_random"] > 0
        assert entry["cost_over_hull"] == pytest.approx(
            entry["relative_flops"] / (hull_cost(computed().rows, "test", entry["accuracy"]) or 0)
        )
    assert at["gate"]["cost_over_fixed"]["seeds"] == at["gate"]["cost_over_hull"]["seeds"] == 3
    json.dumps(result, allow_nan=False)


def test_a_target_that_the_images_cannot_carry_takes_the_safest_price_and_full() -> None:
    result = summary(computed(), targets=(0.7, 0.98))
    at = result["targets"]["0.98"]
    assert at["fixed"]["method"] == "fixed:0,1"
    for entry in at["gate"]["seeds"]:
        assert (entry["price"], entry["guarantee"]["guaranteed"]) == (PRICES[0], False)
        assert entry["guarantee"]["largest"] < 0.98
    # what is shown, and what an export starts at
    held = result["targets"]["0.7"]["gate"]["seeds"][1]["price"]
    assert (default_price(result, 1), default_price(summary(computed(), targets=(0.98,)), 1)) == (
        held,
        PRICES[0],
    )


def test_a_price_depends_on_no_image_that_training_may_look_at() -> None:
    def prices(hidden: bool) -> list[float]:
        splits = tables(False)
        val = splits["val"]
        # where it counts, only full is right
        flipped = torch.isin(val.image_of, torch.tensor(held_out(val))) == hidden
        score = val.score.clone()
        score[flipped] = torch.eye(score.shape[1])[val.actions.full]
        changed = frontier(inputs_of(splits | {"val": replace(val, score=score)}))
        return [of["price"] for of in summary(changed, (0.7,))["targets"]["0.7"]["gate"]["seeds"]]

    before = [of["price"] for of in summary(computed(), (0.7,))["targets"]["0.7"]["gate"]["seeds"]]
    assert prices(hidden=False) == before != prices(hidden=True)


def test_no_held_out_image_is_looked_at_and_none_is_lost() -> None:
    val = computed().inputs.tables["val"]
    hidden, seen = held_out(val), looked_at(val)
    assert sorted({*hidden, *seen.image_of.tolist()}) == list(range(60))
    assert len(hidden) == 30 and not {*hidden} & {*seen.image_of.tolist()}
    for i, key in enumerate(seen.keys):
        at = val.keys.index(key)
        assert seen.score[i].equal(val.score[at]) and seen.cost.flops[i].equal(val.cost.flops[at])
        assert (seen.types[i], int(seen.query_of[i])) == (val.types[at], int(val.query_of[at]))
    # by the keys, whatever their order
    order = torch.arange(59, -1, -1)
    turned = replace(val, image_keys=val.image_keys[::-1], image_of=order[val.image_of])
    assert [turned.image_keys[i] for i in held_out(turned)] == [val.image_keys[i] for i in hidden]
    assert held_out(val.take(torch.arange(3))) == []


def test_mutual_information_is_0_for_independent_and_the_types_entropy_for_determined_decisions() -> None:
    actions, level = computed().inputs.tables["test"].actions, synthetic_pyramid().tile_level
    types = ["a", "b"] * 40
    independent = actions.steps[torch.tensor([0, 0, 3, 3] * 20)]
    assert health(independent, types, level)["mutual_information"] == pytest.approx(0.0, abs=1e-12)
    determined = health(actions.steps[torch.tensor([0, 3] * 40)], types, level)
    assert determined["mutual_information"] == pytest.approx(log(2))
    assert determined["keep_rate"] == {"0": 0.5, "1": 0.5, "2": 1.0}
    assert (determined["distinct"], determined["entropy"]) == (2, pytest.approx(log(2)))


def test_the_report_is_written(tmp_path: Path) -> None:
    rows = computed().rows
    console = Console(width=120, file=StringIO())
    print_methods(rows, console)
    text = cast(StringIO, console.file).getvalue()
    assert all(method in text for method in ("full", "gate:query_only", "oracle:type", "random:bernoulli"))
    assert max(map(len, text.splitlines())) <= 120
    plot_frontier(rows, tmp_path / "frontier.png")
    image = torch.randint(0, 255, (3, 40, 64), dtype=torch.uint8)
    shown = Shown(image, "what is it?", "a", "b", False, torch.tensor([False, True, True]), 20, 0.4, "shape")
    plot_selections([shown] * 3, synthetic_pyramid(), tmp_path / "selections.png")
    assert all(
        (tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("frontier.png", "selections.png")
    )


@pytest.mark.filterwarnings("error")
def test_questions_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    shown = Shown(
        image,
        "is $x^{ more than $5?\x11",
        "$\\frac",
        "$5",
        False,
        torch.ones(3, dtype=torch.bool),
        20,
        0.4,
        "$",
    )
    plot_selections([shown], synthetic_pyramid(), tmp_path / "selections.png")
    assert (tmp_path / "selections.png").stat().st_size > 0


@cache
def of_rungs() -> Frontier:
    """One gate at one price, on tables of rungs."""
    ladder = (0, 64, 144, 256)
    splits = {s: synthetic_table(s, 60, seed=i, rungs=ladder) for i, s in enumerate(("gate", "val", "test"))}
    budget = BudgetRule(rungs=ladder)
    layout = Layout(SIGNALS, 3, splits["gate"].actions, budget)
    gates: dict[str, list[Gate]] = {
        "gate": [build_gate(GateConfig(name="joint", policy="categorical", width=8), layout)]
    }
    inputs = replace(computed().inputs, tables=splits, budget=budget, gates=gates, seeds=(0,), prices=(0.1,))
    return frontier(inputs)


def test_rungs_stand_beside_proportional_budgets_and_strategies_of_the_same_table() -> None:
    found = of_rungs()
    points = {m: found.select(m, "test") for m in ("hull", "budget:capacity", "budget:learned", "strategy")}
    assert all(points.values())
    # the budgets' hulls are of listed actions: none is above that of them all where it was chosen
    val = [r for r in found.rows if r.split == "val"]
    for method in ("budget:capacity", "budget:learned"):
        for point in found.select(method, "val"):
            best = hull_at(val, "val", point.row.relative_flops)
            assert best is not None and point.row.accuracy <= best + 1e-9
    # capacity weights ask the same share of every level that they keep
    rung = found.inputs.tables["test"].actions.steps
    for point in points["budget:capacity"]:
        assert point.action is not None
        asked = rung[point.action[0], :-1]
        assert len(asked[asked > 0].unique()) <= 1
    # a strategy goes by the question
    assert any(len(p.action.unique()) > 1 for p in points["strategy"] if p.action is not None)
    weights = found.inputs.budget_weights
    assert weights is not None and len(weights) == 3
    assert summary(found)["budget_weights"] == weights.tolist()
    assert summary(computed())["budget_weights"] is None


def test_pictures_take_types_in_turn_and_of_a_type_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "answered", lambda model, gate, sample, row, *rest: row)
    types = ("b", "a", "a", "b", "a")
    questions = tuple(Question(f"{i}?", ("yes",), of, str(i)) for i, of in enumerate(types))
    samples = [Sample("one", torch.zeros(3, 8, 8, dtype=torch.uint8), questions)] * 8
    found = inference.shown(None, None, samples, 1.0, 0.1, 0.0)  # type: ignore[arg-type]
    assert cast(list[int], found) == [1, 0, 2, 3, 4, 0, 1, 3]
