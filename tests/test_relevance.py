"""Claims about relevance: what is measured on a tile's pixels, what each tension of the relevance gate does,
and that its scores can be switched off and seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.gates.pixels import MEASURES, measures
from pyrskip.gates.relevance import RelevanceGate
from pyrskip.observation import Layout, Observation
from pyrskip.policies.evidence import missed
from pyrskip.pyramid import Pyramid
from pyrskip.training.estimators import missed_cross_entropy

PYRAMID = Pyramid(64, 3, 8, (2, 2, 1))
SHAPES = {
    "query": (None, 12),
    "query_mask": (None,),
    "glance": (6, 2, 2),
    "glance_mask": (2, 2),
    "statistics": (PYRAMID.tiles, len(MEASURES)),
}
ACTIONS = ActionSet.by_level(PYRAMID)
LAYOUT = Layout(SHAPES, PYRAMID.tiles, ACTIONS, BudgetRule(), PYRAMID.grid)
FINE = PYRAMID.tiles - 1
CONFIG = GateConfig(name="relevance", policy="evidence", width=16)


def gate_of(policy: str = "evidence", **config: Any) -> RelevanceGate:
    """A gate whose head and scores are not at their start, where they say much the same of everything."""
    torch.manual_seed(0)
    gate = build_gate(replace(CONFIG, policy=policy, **config), LAYOUT).eval()
    assert isinstance(gate, RelevanceGate)
    torch.nn.init.normal_(gate.head.weight)
    for name, value in gate.named_parameters():
        if name in ("information.weight", "salience.weight", "coupling.4.weight"):
            torch.nn.init.normal_(value)
    return gate


def observation(rows: int = 40, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([[64, 64]]).expand(rows, 2)
    capacity = PYRAMID.capacity(size)
    kept = ACTIONS.selection.double()
    return Observation(
        signals={
            "query": torch.randn(rows, 4, 12, generator=generator),
            "query_mask": torch.ones(rows, 4, dtype=torch.bool),
            "glance": torch.randn(rows, 6, 2, 2, generator=generator),
            "glance_mask": torch.ones(rows, 2, 2, dtype=torch.bool),
            "statistics": torch.rand(rows, PYRAMID.tiles, len(MEASURES), generator=generator),
        },
        capacity=capacity,
        cost=(capacity.double() @ kept.T / capacity.sum(-1, keepdim=True)).float(),
        price=torch.full((rows,), 0.3),
    )


def moved(gate: RelevanceGate, tension: str, by: float) -> RelevanceGate:
    """The gate with one tension at another place."""
    with torch.no_grad():
        getattr(gate, tension).add_(by)
    return gate


policies = pytest.mark.parametrize("policy", ["evidence", "bernoulli"])


@policies
def test_to_particularise_keeps_more_tokens_and_to_compress_fewer(policy: str) -> None:
    # further up, where all tiles show it for sure, one is evidence enough
    seen = observation()
    spent = [
        float(moved(gate_of(policy), "particularise", by).policy(seen).mode().tokens.sum())
        for by in (-5.0, -3.0, -2.0, -1.0, 0.0)
    ]
    assert spent == sorted(spent) and spent[0] < spent[2] < spent[-1]


@policies
def test_to_focus_gives_more_of_what_is_spent_to_the_most_relevant_tile(policy: str) -> None:
    seen, shares = observation(), []
    for by in (-2.0, -1.0, 0.0, 1.0):
        alike = moved(gate_of(policy), "particularise", -5.0 * (policy == "bernoulli"))  # as they start
        gate = moved(alike, "focus", by)
        chance = gate(seen).detach()[:, :FINE].sigmoid()
        best = gate.heat(seen)["relevance"][:, :FINE].argmax(-1, keepdim=True)
        shares.append(float((chance.gather(1, best).squeeze(1) / chance.sum(-1)).mean()))
    assert shares == sorted(shares) and shares[-1] > shares[0] + 0.02


def test_to_explore_tries_an_unpromising_tile_more_often() -> None:
    seen, tried = observation(rows=400), []
    for by in (-4.0, 0.0, 2.0, 4.0):
        gate = moved(moved(gate_of("bernoulli"), "particularise", -6.0), "explore", by)
        torch.manual_seed(0)
        tried.append(float(gate.policy(seen).sample().selection[:, :FINE].float().mean()))
    assert tried == sorted(tried) and tried[-1] > tried[0] + 0.05


def test_to_explore_changes_what_is_tried_and_not_what_is_decided_tile_by_tile() -> None:
    seen = observation()
    modes = [moved(gate_of("bernoulli"), "explore", by).policy(seen).mode().tokens for by in (-4.0, 0.0, 2.0)]
    assert modes[0].equal(modes[1]) and modes[0].equal(modes[2])


def test_tensions_move_nothing_that_the_glance_is_worth() -> None:
    seen, plain = observation(), gate_of()(observation())[:, -1]
    for tension in ("particularise", "focus"):
        assert moved(gate_of(), tension, 1.0)(seen)[:, -1].equal(plain)
    assert "tension/explore" in gate_of("bernoulli").reported(seen)
    assert "tension/explore" not in gate_of().reported(seen)  # nothing is tried while evidence is learned


@pytest.mark.parametrize("off", [("information",), ("salience",), ("coupling",), ("information", "salience")])
def test_a_score_that_is_off_is_neither_mixed_nor_seen(off: tuple[str, ...]) -> None:
    gate, seen = gate_of(without=off), observation()
    assert set(gate.heat(seen)) == {"information", "salience", "coupling", "relevance"} - set(off)
    weights = {
        name: float(value) for name, value in gate.reported(seen).items() if name.startswith("weight/")
    }
    assert len(weights) == 3 - len(off) and sum(weights.values()) == pytest.approx(1)
    changed = {
        "information": seen["statistics"] * torch.tensor([0.0, 0.0, 1.0, 1.0]),
        "salience": seen["statistics"] * torch.tensor([1.0, 1.0, 0.0, 0.0]),
    }
    for name, statistics in changed.items():
        other = replace(seen, signals={**seen.signals, "statistics": statistics})
        assert gate(other).equal(gate(seen)) is (name in off)


def test_scores_are_of_each_tile_from_zero_to_one_and_the_mix_lies_between_them() -> None:
    heat = gate_of().heat(observation())
    scores = torch.stack([heat[name] for name in RelevanceGate.scores])
    assert scores.shape == (3, 40, PYRAMID.tiles) and (scores >= 0).all() and (scores <= 1).all()
    assert (heat["relevance"] <= scores.amax(0) + 1e-6).all()
    assert (heat["relevance"] >= scores.amin(0) - 1e-6).all()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"without": ("colour",)}, "mixes these scores: information, salience, coupling; allowed: some"),
        ({"without": ("salience", "salience")}, "allowed: some of them, each once"),
        ({"without": RelevanceGate.scores}, "and not all"),
        ({"name": "region", "without": ("salience",)}, "gate.name=region, which mixes these scores: none"),
    ],
)
def test_what_cannot_be_switched_off_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(CONFIG, **config)


def test_a_gate_learns_which_score_tells_where_the_answer_is() -> None:
    torch.manual_seed(0)
    gate, generator = build_gate(CONFIG, LAYOUT).train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for step in range(150):
        seen = observation(64, seed=step)
        target = seen["statistics"][:, :4, 0].argmax(-1)
        kept = torch.rand(64, 6, PYRAMID.tiles, generator=generator) < 0.4
        kept[..., -1] = True
        right = kept.gather(2, target[:, None, None].expand(-1, 6, 1)).squeeze(-1).float()
        optimizer.zero_grad()
        missed_cross_entropy(missed(gate(seen), kept), right).mean().backward()
        optimizer.step()
    seen = observation(200, seed=-1)
    found = gate.eval()(seen)[:, :4].argmax(-1)
    assert (found == seen["statistics"][:, :4, 0].argmax(-1)).float().mean() > 0.9
    assert gate.reported(seen)["weight/information"] > 0.5


def picture(pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return (torch.full((1, 3, 32, 32), 0.5) if pixels is None else pixels), torch.ones(1, 32, 32).bool()


def test_one_colour_shows_nothing_and_noise_most() -> None:
    flat = measures(*picture(), (2, 1))
    assert flat.shape == (1, 5, 4) and flat.abs().max() < 0.3
    assert flat[..., 1:].abs().max() < 1e-4  # its entropy is that of the two nearest bins
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = picture()[0].clone()
    pixels[..., :16, :16] = noise[..., :16, :16].mean(1, keepdim=True)
    found = measures(pixels, picture()[1], (2, 1))[0]
    assert (found[0] > found[1:4].amax(0) + 0.04).all()


def test_edges_are_the_root_of_the_mean_squared_step_of_brightness() -> None:
    pixels = picture()[0].clone()
    pixels[..., 16:] = 0.7  # a step of 0.2 between columns 15 and 16
    found = measures(pixels, picture()[1], (2, 1))[0, :, MEASURES.index("edges")]
    wanted = torch.tensor([0.2 / 4, 0, 0.2 / 4, 0, (0.04 / 32) ** 0.5])  # one of 16, and of 32, columns
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_what_stands_out_is_where_a_colour_differs_from_what_is_around_it() -> None:
    pixels = picture()[0].clone()
    pixels[0, 0, 18:21, 10:13], pixels[0, 2, 18:21, 10:13] = 0.9, 0.1  # row 2 and column 1 of the tiles
    found = measures(pixels, picture()[1], (4, 1))[0]
    for name in ("surround", "peak"):
        column = found[:16, MEASURES.index(name)]
        assert column.argmax() == 9 and column[9] > 2 * column[[0, 3, 15]].max()


@pytest.mark.parametrize("change", [lambda p: p, lambda p: 1 - p], ids=["dark", "bright"])
def test_padding_and_batch_mates_are_not_measured(change: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 3, 32, 32, generator=generator)
    inside = torch.ones(3, 32, 32, dtype=torch.bool)
    inside[0, 20:], inside[0, :, 12:] = False, False
    together = measures(pixels, inside, (2, 1))
    dirty = pixels.where(inside[:, None], change(torch.zeros(())))
    torch.testing.assert_close(measures(dirty, inside, (2, 1)), together, atol=1e-5, rtol=0)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(measures(pixels[one], inside[one], (2, 1)), together[one])
    assert together[0, 1].eq(0).all()  # the upper right tile is padding
