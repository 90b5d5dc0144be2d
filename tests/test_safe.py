"""Never worse than fixed: a gate is played where it is above the hull of fixed selections, nowhere else."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.frontier import Frontier, frontier, hull_at
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.safe import LEVEL, RESAMPLES, best_fixed, chances_of_none, heights, safe
from pyrskip.evaluation.verdict import said, verdict
from pyrskip.inference.safe import Safe
from pyrskip.observation import Layout
from pyrskip.rollouts.held_out import held_out
from tests.tables import TYPES, synthetic_table
from tests.test_frontier import SIGNALS, ByText, computed, inputs_of, tables

QUESTIONS = 3


def planted(
    rounds: int, images: int, height: float, seed: int = 0, rare: bool = False
) -> tuple[Tensor, Tensor]:
    """Of many draws of held-out images, what a question adds to the height above the hull, [R, N], and the
    image of each. Fixed selections answer 60, 80 and 90 % (rare: 96, 98 and 99 %) and cost 0.1, 0.3 and 1;
    the gate is planted `height` above the mix of the last two that costs 0.5.

    Questions on one image are easy or hard together.
    """
    generator = torch.Generator().manual_seed(seed)
    right = torch.tensor([0.96, 0.98, 0.99] if rare else [0.6, 0.8, 0.9], dtype=torch.float64)
    cost = torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)[:, None]
    image_of = torch.arange(images).repeat_interleave(QUESTIONS)
    found = []
    for _ in range(rounds):
        ease = torch.rand(images, generator=generator, dtype=torch.float64)[image_of]
        # an image and its questions share half of their luck
        luck = (ease + torch.rand(len(image_of), generator=generator)) / 2
        luck = torch.where(luck < 0.5, 2 * luck**2, 1 - 2 * (1 - luck) ** 2)  # uniform
        fixed = (luck < right[:, None]).double()
        dear = torch.rand(len(image_of), generator=generator) < 2 / 7
        # by chance, it is as good as the mix; what is above that comes from its wrong answers, or goes
        own = fixed[1].where(~dear, fixed[2])
        mean = float(right[1] + (right[2] - right[1]) * 2 / 7)
        change = torch.rand(len(image_of), generator=generator)
        own = torch.where(
            own > 0, (change >= -height / mean).double(), (change < height / (1 - mean)).double()
        )
        spent = torch.where(dear, cost[2], cost[1])
        found.append(heights(own[None], spent[None], fixed, cost.expand(-1, len(image_of)))[0])
    return torch.stack(found), image_of


def share_played(rounds: int, images: int, height: float, rare: bool = False) -> float:
    above, image_of = planted(rounds, images, height, rare=rare)
    chances = Bootstrap(image_of, RESAMPLES).chances_of_none(above)
    return sum(p < LEVEL for p in chances) / rounds


def test_the_mean_height_is_the_planted_one() -> None:
    for height in (-0.05, 0.0, 0.04):
        assert float(planted(200, 200, height)[0].mean()) == pytest.approx(height, abs=0.004)


@pytest.mark.parametrize(("images", "rare"), [(75, False), (300, False), (75, True)])
def test_a_gate_on_the_hull_is_played_as_seldom_as_is_said(images: int, rare: bool) -> None:
    # three standard errors of 5 % in 500 rounds
    assert share_played(500, images, 0.0, rare) <= LEVEL + 0.029


def test_a_gate_below_the_hull_plays_fixed_and_one_above_it_plays_itself() -> None:
    assert share_played(200, 200, -0.03) <= 0.005
    assert share_played(200, 200, 0.03) >= 0.95
    assert share_played(200, 50, 0.03) < share_played(200, 200, 0.03)  # few images see less


def test_height_is_accuracy_over_the_mix_that_costs_as_much() -> None:
    cost = torch.tensor([[0.1], [0.5], [1.0]]).expand(-1, 4)
    score = torch.tensor([[0.0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    own = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    spent = torch.tensor([0.75, 0.3, 2.0, 0.05])[:, None].expand(-1, 4)
    # hull of (0.1, .25), (0.5, .5), (1, .75)
    wanted = [1 - 0.625, 0.25 - 0.375, 0.75 - 0.75, 0.25 - 0.25]
    assert heights(own, spent, score, cost).mean(1).tolist() == pytest.approx(wanted)


@cache
def wrong() -> Inputs:
    """Gates that look closely at what needs it least."""
    splits = tables(False)
    table = splits["gate"]
    utility = torch.stack([table.probability[i, :4] for i in range(len(TYPES))]).roll(1, 0)
    layout = Layout(SIGNALS, 3, table.actions, BudgetRule())
    gates = [ByText(layout, table.signals["text"]["query"], utility) for _ in range(3)]
    return replace(inputs_of(splits), gates={"gate": gates}, gate_flops={"gate": 7_000.0})


@cache
def of_wrong() -> Frontier:
    return frontier(wrong())


def test_a_wrong_gate_is_never_played_and_fixed_selections_pay_for_none() -> None:
    found = of_wrong()
    for point in found.select("gate:safe", "test"):
        assert point.action is not None
        (action,) = point.action.unique().tolist()
        name = found.inputs.tables["test"].actions.names[action]
        fixed = found.select(f"fixed:{name}", "test")[0].row
        assert (point.row.flops, point.row.accuracy) == (fixed.flops, fixed.accuracy)
    assert {of.row.price for of in found.select("gate:safe", "test")} == set(found.inputs.prices)


def test_at_every_price_the_fixed_selection_of_the_best_reward_on_validation_is_played() -> None:
    found = of_wrong()
    val = [row for row in found.rows if row.split == "val" and row.method.startswith("fixed:")]
    fixed = Safe((), tuple(best_fixed(found.inputs)))
    for price in (0.0, 0.01, 0.05, 0.2, 0.7, 3.0, 100.0):
        best = max(val, key=lambda row: row.accuracy - price * row.relative_flops)
        assert fixed.at(price) == best.method.removeprefix("fixed:")


def test_a_gate_that_knows_is_played_where_it_is_above_the_hull() -> None:
    found = computed()
    for seed in found.inputs.seeds:
        of = safe(found.inputs, seed)
        for price, chance in zip(found.inputs.prices, chances_of_none(found.inputs, seed), strict=True):
            rows = [found.select(m, "test", price, seed)[0].row for m in ("gate", "gate:safe")]
            assert (of.at(price) is None) == (chance < LEVEL)
            if chance < LEVEL:
                assert replace(rows[0], method="gate:safe") == rows[1]
    assert any(of.at(price) is None for price in found.inputs.prices)


def test_a_gate_is_judged_by_held_out_images_alone() -> None:
    inputs = computed().inputs
    val = inputs.tables["val"]
    hidden = torch.isin(val.image_of, torch.tensor(held_out(val)))

    def judged(rows: Tensor) -> list[float]:
        """With the scores of some questions dealt out anew, which leaves the hull as it is."""
        order = torch.arange(len(val))
        order[rows] = order[rows].roll(1)
        moved = replace(val, score=val.score[order])
        return chances_of_none(replace(inputs, tables={**inputs.tables, "val": moved}), 0)

    own = chances_of_none(inputs, 0)
    assert judged((~hidden).nonzero().squeeze(1)) == own
    assert judged(hidden.nonzero().squeeze(1)) != own


def test_the_summary_says_in_a_line_whether_a_gate_is_worth_having() -> None:
    good, bad = verdict(computed()), verdict(of_wrong())
    assert (bad["above"], bad["gain"]) == (0, None)
    assert said(bad) == (
        "a gate is not worth having on this data: a fixed selection does as well, as far as 30 held-out "
        "images tell"
    )
    rows = [
        computed().select("gate", "test", price, of["seed"])[0].row
        for of in good["seeds"]
        for price in computed().inputs.prices
        if any(low <= price <= high for low, high in of["gate"])
    ]
    costs = [row.relative_flops for row in rows]
    gains = [row.accuracy - (hull_at(computed().rows, "test", row.relative_flops) or 0.0) for row in rows]
    assert good["above"] == len(rows) > 0
    assert good["relative_flops"] == [min(costs), max(costs)]
    assert good["gain"] == pytest.approx(sum(gains) / len(gains), abs=1e-9)
    assert good["gain_ci95"][0] < good["gain"] < good["gain_ci95"][1]
    assert f"between costs {min(costs):.3f} and {max(costs):.3f}: on test it is" in said(good)


def test_without_held_out_images_the_gate_is_never_played() -> None:
    splits = {**tables(False), "val": synthetic_table("val", 1, seed=1)}
    assert chances_of_none(inputs_of(splits), 0) == [1.0] * 4
    assert safe(inputs_of(splits), 0).gate == ()
