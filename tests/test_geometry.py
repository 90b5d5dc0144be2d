"""Claims about what inference computes without torch: it is what training computes with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.decision import realise as torch_realise
from pyrskip.inference.arrays import pool
from pyrskip.inference.policy import UNLIMITED, Budget, Rule, realise
from pyrskip.models.projector import pool as torch_pool
from pyrskip.observation import Observation
from pyrskip.picture import mipmaps
from pyrskip.pyramid import bins
from pyrskip.pyramid import mipmaps as torch_mipmaps
from tests.exports import PYRAMID, tiny_gate
from tests.models import SIDE, SIZES, tiny_model

sizes = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE))


@given(size=sizes, share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_geometry_of_arrays_is_that_of_tensors(size: tuple[int, int], share: tuple[float, float]) -> None:
    of_torch, of_numpy = torch.tensor([size, (SIDE, 5)]), np.array([size, (SIDE, 5)])
    cells = PYRAMID.cells(of_numpy)
    np.testing.assert_array_equal(PYRAMID.pixels(of_numpy), PYRAMID.pixels(of_torch).numpy(), strict=True)
    np.testing.assert_array_equal(cells, PYRAMID.cells(of_torch).numpy(), strict=True)
    np.testing.assert_array_equal(PYRAMID.capacity(of_numpy), PYRAMID.capacity(of_torch).numpy(), strict=True)
    for tile in np.flatnonzero(cells.all((0, 2))).tolist():
        pooled = (cells[:, tile] * share).round().astype(np.int64).clip(min=1)
        shape = int(pooled[:, 0].max()), int(pooled[:, 1].max())
        wanted = PYRAMID.where(of_torch, tile, torch.from_numpy(pooled), shape)
        for got, of in zip(PYRAMID.where(of_numpy, tile, pooled, shape), wanted, strict=True):
            np.testing.assert_array_equal(got, of.numpy(), strict=True)
        counts = cells[:, tile, 0], pooled[:, 0]
        of = bins(*map(torch.from_numpy, counts), shape[0], 8)
        np.testing.assert_array_equal(bins(*counts, shape[0], 8), of.numpy(), strict=True)


@settings(max_examples=40)
@given(size=sizes, seed=st.integers(0, 99))
def test_mipmaps_are_the_pyramids(size: tuple[int, int], seed: int) -> None:
    rows, columns = size
    image = np.random.default_rng(seed).integers(0, 256, (3, rows, columns), dtype=np.uint8)
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    canvas[0, :, :rows, :columns] = torch.from_numpy(image) / 255
    levels = torch_mipmaps(canvas, torch.tensor([size]), 3)
    for level, made in enumerate(mipmaps(image, 3)):
        height, width = made.shape[1:]
        wanted = levels[level][0].numpy()
        np.testing.assert_allclose(made, wanted[:, :height, :width], atol=1e-6)
        assert not wanted[:, height:].any() and not wanted[:, :, width:].any()


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
    # in float32: either rounds two sums of at most 9 terms of size 4 by 9 x 2e-7 each
    np.testing.assert_allclose(got, wanted[0].flatten(1).T.numpy(), atol=1e-5)


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
