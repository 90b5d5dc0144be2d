"""Claims about policies over tiles that need no list, `topk` and `quadtree`: what they say of selections,
held against an enumeration of all of them, and what they refuse.

T tiles: 4 of level 0, 4 of level 1 or 1, and the glance; of the second row some are padding.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet
from pyrskip.errors import UserError
from pyrskip.gates.gate import GateConfig
from pyrskip.observation import Layout
from pyrskip.policies import POLICIES
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.policies.quadtree import QuadtreePolicy
from pyrskip.policies.topk import TopKPolicy
from pyrskip.pyramid import Pyramid

GRIDS = ((2, 2, 1), (2, 1, 1))
SIZE = torch.tensor([[64, 64], [64, 23]])
every = pytest.mark.parametrize(("kind", "grid", "row"), list(product(("topk", "quadtree"), GRIDS, (0, 1))))


def policy_of(kind: str, logit: Tensor, grid: tuple[int, ...] = (2, 2, 1), row: int = 0) -> BernoulliPolicy:
    """logit [B, T], the glance's for the budget of topk."""
    pyramid = Pyramid(64, 3, 8, grid)
    capacity = pyramid.capacity(SIZE)[row].expand(len(logit), -1)
    actions = ActionSet.by_level(pyramid)
    if kind == "topk":
        return TopKPolicy(logit, logit[:, -1], capacity, actions, BudgetRule())
    return QuadtreePolicy(logit, grid, capacity, actions, BudgetRule())


def logits(grid: tuple[int, ...], rows: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(1, sum(g * g for g in grid), generator=generator).repeat(rows, 1)


def selections(policy: BernoulliPolicy) -> Tensor:
    """Every selection of the first row's real tiles that holds the glance, [K, T] bool."""
    tiles = [(False, True) if free else (False,) for free in policy.free[0].tolist()[:-1]]
    return torch.tensor([[*on, True] for on in product(*tiles)])


def nested(kept: Tensor, grid: tuple[int, ...]) -> bool:
    fine, coarse = kept[:4].view(2, 2), kept[4:-1].view(grid[1], grid[1])
    return bool((coarse.expand(2, 2) | ~fine).all())


@every
def test_what_is_said_of_selections_is_what_the_enumeration_says(
    kind: str, grid: tuple[int, ...], row: int
) -> None:
    policy = policy_of(kind, logits(grid, seed=row), grid, row)
    kept = selections(policy)
    log_probs = policy.log_probs(kept[None])[0].double()
    chance = log_probs.exp()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
    possible = chance > 0
    if not isinstance(policy, TopKPolicy):
        assert possible.tolist() == [nested(of, grid) for of in kept]
    else:
        count = kept[possible].sum(-1) - 1
        assert count.min() == policy.count.floor() and count.max() == policy.count.ceil()
        assert policy.marginals()[0, :-1].sum() == pytest.approx(float(policy.count), abs=1e-5)
    # as likely as exp(sum of the logits), among those of as many tiles
    sums = (policy.logit[0] * (kept & policy.free[0])).sum(-1).double()
    for number in kept.sum(-1).unique() if kind == "topk" else [None]:
        of = possible & (True if number is None else kept.sum(-1) == number)
        if of.any():
            torch.testing.assert_close(
                chance[of] / chance[of].sum(), sums[of].softmax(0), atol=1e-6, rtol=1e-5
            )
    assert torch.allclose((chance @ kept.double()).float(), policy.marginals()[0], atol=1e-5)
    entropy = -(chance[possible] * log_probs[possible]).sum()
    assert float(policy.entropy()) == pytest.approx(float(entropy), abs=1e-5)
    mode = policy.mode().selection[0]
    if isinstance(policy, TopKPolicy):  # of the likelier number
        chance = chance.where(kept.sum(-1) - 1 == policy.count.round(), 0.0)
    assert kept[chance.argmax()].equal(mode)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("kind", ["topk", "quadtree"])
def test_samples_are_as_likely_as_they_are_said_to_be(kind: str, row: int) -> None:
    torch.manual_seed(0)
    grid, count = (2, 1, 1), 20_000
    policy = policy_of(kind, logits(grid, count, seed=row), grid, row)
    kept, place = selections(policy), 2 ** torch.arange(6)
    chance = policy_of(kind, logits(grid, seed=row), grid, row).log_probs(kept[None])[0].double().exp()
    for drawn in (policy.sample().selection, policy.rsample(0.5).keep > 0.5):
        found = torch.bincount((drawn * place).sum(-1), minlength=64)[(kept * place).sum(-1)] / count
        assert float(found.sum()) == pytest.approx(1)
        assert ((found - chance).abs() <= 4 * (chance * (1 - chance) / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize("kind", ["topk", "quadtree"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    logit = logits((2, 1, 1), seed=3).double()
    weight = torch.linspace(-1, 1, 6)

    def value(of: Tensor) -> Tensor:
        policy = policy_of(kind, of.float(), (2, 1, 1))
        kept = policy.mode()
        return (policy.marginals() * weight).sum() + policy.entropy().sum() + policy.log_prob(kept).sum()

    moved = logit.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(moved), moved)
    assert gradient.abs().max() > 0.05
    for tile in range(6):
        step = torch.zeros_like(logit)
        step[0, tile] = 1e-2
        slope = (value(logit + step) - value(logit - step)) / 2e-2
        assert float(gradient[0, tile]) == pytest.approx(float(slope), abs=2e-3)


@pytest.mark.parametrize("most", [4, 8, 20, 30])
def test_under_a_limit_a_quadtree_stays_nested_and_a_topk_keeps_the_best(most: int) -> None:
    for seed, grid in product(range(20), GRIDS):
        for kind in ("topk", "quadtree"):
            policy = policy_of(kind, logits(grid, seed=seed) + 1, grid)
            free, kept = policy.mode().selection[0], policy.mode(most)
            assert kept.tokens.sum() <= most and not (kept.selection[0] & ~free).any()
            if kind == "quadtree":
                assert nested(kept.selection[0], grid)
            else:
                here, gone = kept.selection[0, :-1], (free & ~kept.selection[0])[:-1]
                logit = policy.logit[0, :-1]
                assert not here.any() or not gone.any() or logit[here].min() >= logit[gone].max()


@pytest.mark.parametrize("most", [None, 12, 30])
@pytest.mark.parametrize("kind", ["topk", "quadtree"])
def test_logits_that_move_by_less_than_the_margin_keep_the_same_tiles(kind: str, most: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logit = 1.5 * torch.randn(300, 9, generator=generator)
    policy = policy_of(kind, logit)
    mode = policy.mode(most)
    margin = policy.margin(mode, most)
    assert (margin >= 0).all() and (margin > 1e-3).float().mean() > 0.8
    for _ in range(10):
        move = (torch.rand(logit.shape, generator=generator) - 0.5) * margin.clamp(max=3)[:, None] * 0.999
        assert policy_of(kind, logit + move).mode(most).tokens.equal(mode.tokens)


def test_a_given_share_is_what_every_row_keeps_and_the_tilt_moves_it() -> None:
    layout = Layout({}, 9, ActionSet.by_level(Pyramid(64, 3, 8, (2, 2, 1))), BudgetRule(), (2, 2, 1))
    for share, kept in ((0.25, 2), (0.5, 4), (0.9, 7)):
        config = GateConfig(name="region", policy="topk", share=share)
        start = TopKPolicy.start(config, layout)
        assert start.tolist() == [0.0] * 8 + [config.open_bias]
        policy = policy_of("topk", torch.full((1, 9), torch.tensor(share).logit().item()))
        assert policy.mode().selection[0, :-1].sum() == kept


def test_a_quadtree_starts_with_every_tile_as_open_under_its_parent() -> None:
    for grid in (*GRIDS, (4, 2, 1), (6, 3, 1)):
        pyramid = Pyramid(192, 3, 8, grid)
        layout = Layout({}, pyramid.tiles, ActionSet.by_level(pyramid), BudgetRule(), grid)
        start = QuadtreePolicy.start(GateConfig(policy="quadtree", open_bias=1.5), layout)
        capacity = pyramid.capacity(torch.tensor([[192, 192]]))
        policy = QuadtreePolicy(start[None], grid, capacity, layout.actions, layout.budget)
        torch.testing.assert_close(policy.odds[0, :-1], torch.full((pyramid.tiles - 1,), 1.5))


def test_a_gate_alone_counts_the_tokens_of_the_model_that_answers_and_decides_alike() -> None:
    for kind in ("topk", "quadtree"):
        policy = policy_of(kind, logits((2, 2, 1)) + 2)
        counted = policy.counting(2 * policy.capacity)
        assert counted.mode().selection.equal(policy.mode().selection)
        assert counted.mode(40).selection.equal(policy.mode(20).selection)
        assert counted.mode(40).tokens.sum() <= 40


@pytest.mark.parametrize(
    ("policy", "grid", "listless", "says"),
    [
        (
            "quadtree",
            (3, 2, 1),
            True,
            r"gate.policy=quadtree with pyramid.grid=\[3, 2, 1\].*do not nest.*4, 2, 1",
        ),
        (
            "quadtree",
            (4, 2, 1),
            False,
            r"pyramid.grid=\[4, 2, 1\] decides on single tiles and needs all 1048576",
        ),
        ("topk", (4, 2, 1), False, r"gate.policy=topk with pyramid.grid=\[4, 2, 1\] decides on single tiles"),
    ],
)
def test_what_tiles_cannot_do_is_refused(
    policy: str, grid: tuple[int, ...], listless: bool, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        POLICIES[policy].check(GateConfig(policy=policy), ActionConfig(), BudgetRule(), grid, listless)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2])
def test_a_share_that_leaves_no_choice_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"gate.share={share}: allowed: above 0 and below 1"):
        GateConfig(policy="topk", share=share)
