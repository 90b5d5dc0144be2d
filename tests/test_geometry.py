"""Claims about what inference computes without torch: it is what training computes with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.decision import realise as torch_realise
from pyrskip.inference.geometry import mipmaps, pool, realise
from pyrskip.inference.policy import UNLIMITED, Budget, Rule
from pyrskip.models.projector import pool as torch_pool
from pyrskip.observation import Observation
from pyrskip.pyramid import Pyramid
from pyrskip.pyramid import mipmaps as torch_mipmaps
from tests.exports import GEOMETRY, tiny_gate
from tests.models import SIDE, SIZES, tiny_model

PYRAMID = Pyramid(SIDE, 3, 8, (2, 1, 1))
sizes = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE))


@given(size=sizes)
def test_geometry_is_the_pyramids(size: tuple[int, int]) -> None:
    torch_size, numpy_size = torch.tensor([size]), np.array([size])
    np.testing.assert_array_equal(GEOMETRY.pixels(numpy_size), PYRAMID.pixels(torch_size).numpy())
    np.testing.assert_array_equal(GEOMETRY.cells(numpy_size), PYRAMID.cells(torch_size).numpy())
    np.testing.assert_array_equal(GEOMETRY.tile_corner, PYRAMID.tile_corner.numpy())
    np.testing.assert_array_equal(GEOMETRY.tile_level, PYRAMID.tile_level.numpy())


@settings(max_examples=40)
@given(size=sizes, seed=st.integers(0, 99))
def test_mipmaps_are_the_pyramids(size: tuple[int, int], seed: int) -> None:
    rows, columns = size
    image = np.random.default_rng(seed).integers(0, 256, (3, rows, columns), dtype=np.uint8)
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    canvas[0, :, :rows, :columns] = torch.from_numpy(image) / 255
    levels = torch_mipmaps(canvas, torch.tensor([size]), 3)
    for tile in range(GEOMETRY.tiles):
        cells = GEOMETRY.cells(np.array([size]))[0, tile]
        if cells.all():
            level = int(GEOMETRY.tile_level[tile])
            wanted = PYRAMID.crop(levels[level], tile)[0, :, : cells[0] * 8, : cells[1] * 8].numpy()
            np.testing.assert_allclose(
                GEOMETRY.crop(mipmaps(image, 3)[level], tile, cells), wanted, atol=1e-6
            )


@given(
    asked=st.lists(st.integers(0, 70), min_size=4, max_size=4),
    cells=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=4, max_size=4),
)
def test_realised_tokens_are_the_decisions(asked: list[int], cells: list[tuple[int, int]]) -> None:
    wanted = torch_realise(torch.tensor(asked), torch.tensor(cells))
    np.testing.assert_array_equal(realise(np.array(asked), np.array(cells)), wanted.numpy())


@given(
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)), share=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_pooling_is_the_projectors(cells: tuple[int, int], share: tuple[float, float]) -> None:
    size = [max(1, round(s * c)) for s, c in zip(share, cells, strict=True)]
    features = torch.randn(1, 5, *cells, generator=torch.Generator().manual_seed(0))
    wanted, _ = torch_pool(features, torch.tensor([cells]), torch.tensor([size]))
    got = pool(features[0].numpy(), np.array(size))
    np.testing.assert_allclose(got, wanted[0].flatten(1).T.numpy(), atol=1e-6)


budgets = st.one_of(
    st.builds(BudgetRule, cap=st.one_of(st.none(), st.integers(1, 30))),
    st.builds(
        BudgetRule,
        total=st.integers(0, 90),
        floor=st.integers(1, 9),
        cap=st.one_of(st.none(), st.integers(1, 30)),
        weights=st.one_of(st.none(), st.tuples(*[st.floats(0, 5)] * 6)),
    ),
)


def served(rule: BudgetRule) -> Budget:
    return Budget(rule.total, rule.floor, rule.cap, rule.weights)


@given(budget=budgets, size=sizes, chosen=st.integers(0, 63))
@settings(max_examples=200)
def test_budgets_are_those_of_training(budget: BudgetRule, size: tuple[int, int], chosen: int) -> None:
    selection = torch.tensor([bool(chosen >> i & 1) for i in range(6)])
    capacity = PYRAMID.capacity(torch.tensor([size]))
    wanted = budget.tokens(selection[None], capacity)
    got = served(budget).tokens(selection.numpy()[None], capacity.numpy())
    np.testing.assert_array_equal(got, wanted.numpy())


@pytest.mark.parametrize("policy", ["bernoulli", "categorical", "utility"])
@pytest.mark.parametrize("most", [None, 3, 20, 50])
def test_the_mode_is_the_trained_policys(policy: str, most: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    model = tiny_model(grid=(2, 1, 1))
    gate = tiny_gate(model, policy=policy, budget=BudgetRule(total=40, floor=2))
    gate.tilt.fill_(0.1)
    capacity = PYRAMID.capacity(torch.tensor(SIZES)).repeat(40, 1)
    rows, outputs = len(capacity), PYRAMID.tiles if policy == "bernoulli" else len(gate.layout.actions)
    raw = torch.randn(rows, outputs, generator=generator)
    cost, price = (
        torch.rand(rows, len(gate.layout.actions), generator=generator),
        torch.rand(rows, generator=generator),
    )
    glance = torch.zeros(rows, gate.layout.channels, 2, 2)
    seen = Observation(
        torch.zeros(rows, 1, 1), torch.ones(rows, 1), glance, glance[:, 0] == 0, capacity, cost, price
    )
    trained = gate.policy(seen, raw)
    budget = gate.layout.budget
    selection = ActionSet.by_level(PYRAMID).selection.numpy()
    rule = Rule(policy, gate.config.temperature, 0.1, selection, served(budget))
    limit = np.full(rows, UNLIMITED if most is None else most)
    decided = rule.decide(raw.numpy(), capacity.numpy(), cost.numpy(), price.numpy(), limit)
    mode = trained.mode(most)
    np.testing.assert_array_equal(decided.asked, mode.numpy())
    if most is None:
        np.testing.assert_allclose(decided.confidence, trained.log_prob(mode).exp().numpy(), rtol=1e-4)
        assert (decided.margin >= 0).all()
