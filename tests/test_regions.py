"""Claims about regions: where tiles lie, what the evidence of tiles predicts, what greedy search keeps, and
which selections are tried to learn from."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.decision import ActionConfig, ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates.gate import GateConfig
from pyrskip.gates.region import overlap, places
from pyrskip.models.native import NativeModel
from pyrskip.observation import Layout
from pyrskip.policies import POLICIES
from pyrskip.policies.evidence import EvidencePolicy, missed
from pyrskip.proposals import propose
from pyrskip.pyramid import Pyramid
from pyrskip.report.detail import SIDE, finest, foveate
from pyrskip.report.selections import levels_of
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.table import COSTS, RolloutTable
from pyrskip.training.estimators import missed_cross_entropy
from pyrskip.training.rules import RULES, rule_config
from tests.exports import UNIT, tiny_gate
from tests.models import every_tile, tiny_batch, tiny_model
from tests.tables import synthetic_pyramid, synthetic_table

PYRAMID = Pyramid(64, 3, 8, (2, 2, 1))
ACTIONS = ActionSet.by_level(PYRAMID)
CAPACITY = torch.tensor([[16, 16, 16, 16, 4, 4, 4, 4, 4], [16, 8, 0, 0, 4, 2, 0, 0, 4]])
FREE = PYRAMID.tiles - 1


def policy_of(outputs: Tensor, price: float | Tensor = 0.1, capacity: Tensor = CAPACITY) -> EvidencePolicy:
    """outputs [B, T]; a token costs a hundredth."""
    rows = len(outputs)
    charged = torch.as_tensor(price).expand(rows)
    of = capacity[:rows]
    return EvidencePolicy(outputs, of / 100, charged, of, ACTIONS, BudgetRule(), 0.05)


def logits(rows: int = 2, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, PYRAMID.tiles, generator=torch.Generator().manual_seed(seed)) - 1


def selections(real: Tensor) -> Iterator[Tensor]:
    """Every selection of a row's real tiles [T] that holds the glance."""
    for on in product((False, True), repeat=FREE):
        kept = torch.tensor([*on, True])
        if not (kept & ~real).any():
            yield kept


def greedy(shows: list[float], cost: list[float], price: float) -> set[int]:
    """The tiles, glance last and always kept, by the textbook's loop."""
    kept, miss = set[int](), 1 - shows[-1]
    while True:
        gain = {t: miss * shows[t] for t in range(len(shows) - 1) if t not in kept and cost[t]}
        gain = {t: g for t, g in gain.items() if g > price * cost[t]}
        if not gain:
            return kept
        best = max(gain, key=lambda t: gain[t] / cost[t])
        kept.add(best)
        miss *= 1 - shows[best]


@given(seed=st.integers(0, 10_000), price=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 10.0]))
def test_a_sort_keeps_what_greedy_search_keeps(seed: int, price: float) -> None:
    outputs = logits(seed=seed)
    mode = policy_of(outputs, price).mode()
    for row, capacity in enumerate(CAPACITY):
        wanted = greedy(outputs[row].sigmoid().tolist(), (capacity / 100).tolist(), price)
        assert set(mode.selection[row, :-1].nonzero().flatten().tolist()) == wanted
        assert mode.selection[row, -1]


def test_where_tiles_cost_alike_no_selection_is_worth_more_than_the_mode() -> None:
    capacity = torch.tensor([[4] * PYRAMID.tiles])
    for seed, price in product(range(5), (0.2, 1.0, 4.0)):
        policy = policy_of(logits(1, seed), price, capacity)
        every = torch.stack(list(selections(capacity[0] > 0)))
        worth = policy.worth(every[None])[0]
        assert policy.worth(policy.mode().selection[:, None])[0, 0] >= worth.max() - 1e-6


@given(seed=st.integers(0, 10_000), max_tokens=st.integers(1, 90), price=st.sampled_from([0.0, 0.3, 2.0]))
def test_a_decision_never_exceeds_its_limit_and_gives_up_the_worst_of_a_unit_of_cost_first(
    seed: int, max_tokens: int, price: float
) -> None:
    policy = policy_of(logits(seed=seed), price)
    free, limited = policy.mode(), policy.mode(max_tokens)
    assert (limited.tokens.sum(-1) <= max_tokens).all() and limited.selection[:, -1].all()
    assert not (limited.selection & ~free.selection).any()
    ratio = policy.outputs.sigmoid() / policy.capacity.clamp(min=1)
    for row in range(2):
        kept, gone = limited.selection[row, :-1], (free.selection & ~limited.selection)[row, :-1]
        if kept.any() and gone.any():
            assert ratio[row, :-1][kept].min() >= ratio[row, :-1][gone].max()


@pytest.mark.parametrize("most", [None, 12, 30])
def test_outputs_that_move_by_less_than_the_margin_make_the_same_decision(most: int | None) -> None:
    outputs = logits(200)
    capacity = CAPACITY.repeat(100, 1)
    policy = policy_of(outputs, 0.5, capacity)
    mode = policy.mode(most)
    margin = policy.margin(mode, most)
    assert (margin >= 0).all() and (margin > 1e-3).float().mean() > 0.8
    for seed in range(10):
        noise = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
        # a sum of what all tiles' chances move by
        moved = outputs + noise * (margin / 8).clamp(max=1)[:, None]
        assert policy_of(moved, 0.5, capacity).mode(most).tokens.equal(mode.tokens)


def test_a_missed_answer_is_one_that_no_kept_tile_shows() -> None:
    outputs, kept = logits(1), torch.stack(list(selections(CAPACITY[0] > 0)))
    chance = 1 - missed(outputs, kept[None]).exp()[0]
    for one, selection in zip(chance.tolist(), kept.tolist(), strict=True):
        miss = 1.0
        for logit, on in zip(outputs[0].tolist(), selection, strict=True):
            miss *= 1 - on / (1 + np.exp(-logit))
        assert one == pytest.approx(1 - miss, abs=1e-6)


def test_the_cross_entropy_is_that_of_the_chance_and_finite_where_the_chance_is_certain() -> None:
    miss, right = torch.tensor([0.9, 0.5, 0.01]).log(), torch.tensor([0.2, 1.0, 0.0])
    wanted = torch.nn.functional.binary_cross_entropy(1 - miss.exp(), right, reduction="none")
    torch.testing.assert_close(missed_cross_entropy(miss, right), wanted)
    certain = torch.tensor([0.0, -200.0], requires_grad=True)
    loss = missed_cross_entropy(certain, torch.tensor([1.0, 0.0])).sum()
    loss.backward()
    assert loss.isfinite() and certain.grad is not None and certain.grad.isfinite().all()


def test_evidence_finds_what_each_tile_shows_from_selections_whose_answers_are_right_or_wrong() -> None:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    real = torch.ones(PYRAMID.tiles, dtype=torch.bool)
    planted = torch.tensor([0.02, 0.7, 0.02, 0.02, 0.02, 0.4, 0.02, 0.02, 0.3])
    kept = propose(PYRAMID, real, 5_000, rng)
    chance = 1 - missed(planted.logit()[None], kept[None]).exp()[0]
    right = (torch.rand(len(kept), generator=generator) < chance).float()
    outputs = EvidencePolicy.start(
        GateConfig(policy="evidence"), Layout({}, PYRAMID.tiles, ACTIONS, BudgetRule())
    ).requires_grad_()
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        missed_cross_entropy(missed(outputs[None], kept[None])[0], right).mean().backward()
        optimizer.step()
    assert (outputs.sigmoid() - planted).abs().max() < 0.08


@given(seed=st.integers(0, 1000), valid=st.lists(st.booleans(), min_size=8, max_size=8))
def test_what_is_tried_holds_the_glance_something_beside_it_and_no_padding(
    seed: int, valid: list[bool]
) -> None:
    real = torch.tensor([*valid, True])
    kept = propose(PYRAMID, real, 20, np.random.default_rng(seed))
    assert kept[:, -1].all() and not (kept & ~real).any()
    assert (kept[:, :-1].any(-1) == any(valid)).all()
    assert propose(PYRAMID, real, 20, np.random.default_rng(seed)).equal(kept)


def test_what_is_tried_is_a_few_tiles_often_neighbours_and_sometimes_all_of_a_level() -> None:
    pyramid = Pyramid(256, 3, 8, (4, 2, 1))
    kept = propose(pyramid, torch.ones(pyramid.tiles, dtype=torch.bool), 2000, np.random.default_rng(0))
    fine = kept[:, :16]
    count = fine.sum(-1)
    assert 0.3 < (count == 0).float().mean() < 0.5 and 0.05 < (count == 16).float().mean() < 0.2
    assert (count[(count > 0) & (count < 16)].float().mean()) < 3
    pairs = fine[count == 2].nonzero()[:, 1].view(-1, 2)
    apart = (pairs[:, 0] // 4 - pairs[:, 1] // 4).abs() + (pairs[:, 0] % 4 - pairs[:, 1] % 4).abs()
    assert 0.5 < (apart == 1).float().mean() < 0.75  # of two anywhere, a fifth
    assert 0.5 * fine.float().mean() < fine.float().mean(0).min()


def test_places_are_the_pyramids_and_overlaps_the_share_of_each_cell() -> None:
    level, box = places(PYRAMID.grid)
    assert level.equal(PYRAMID.tile_level) and torch.allclose(box, PYRAMID.tile_box)
    share = overlap(torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.5, 0.75]]), 2, 2)
    assert share.tolist() == [[1, 0, 1, 0], [0, 0, 0.25, 0]]
    assert torch.allclose(overlap(box, 3, 5)[-1], torch.ones(15))


@pytest.mark.parametrize("language", ["cross", "decoder"])
def test_what_tiles_cost_alone_adds_up_to_what_a_selection_costs(language: str) -> None:
    model: NativeModel = tiny_model((2, 2, 1), language=language)
    batch = tiny_batch()
    whole = (batch.size[batch.image_of] == 64).all(-1)  # of others, tiles of a level differ
    capacity, size, words = every_tile(model, batch), batch.size[batch.image_of], model.prompt_tokens(batch)
    actions = ActionSet.by_level(model.pyramid)

    def cost(asked: Tensor) -> Tensor:
        return model.cost(asked, size[:, None].expand(-1, asked.shape[1], -1)[:, 0], words).flops

    listed = cost(actions.tokens(capacity, BudgetRule()))
    layout = Layout({}, model.pyramid.tiles, actions, BudgetRule(), model.pyramid.grid)
    tiles = layout.tile_costs(listed, capacity)
    assert tiles[:, -1].eq(0).all() and (tiles[:, :-1] > 0).equal(capacity[:, :-1] > 0)
    kept = propose(model.pyramid, torch.ones(9, dtype=torch.bool), 20, np.random.default_rng(0))
    real = cost(kept * capacity[:, None])
    told = listed[:, actions.index("glance"), None] + (tiles[:, None] * kept).sum(-1)
    error = ((told - real).abs() / real)[whole].max()
    assert whole.any() and error < (1e-9 if language == "cross" else 0.1)


def test_a_selection_is_named_by_the_levels_of_which_it_keeps_a_tile() -> None:
    kept = torch.zeros(4, 9, dtype=torch.bool)
    kept[:, -1] = True
    kept[1, 2], kept[2, 5], kept[3, :6] = True, True, True
    names = [ACTIONS.names[i] for i in ACTIONS.touched(kept, PYRAMID.tile_level).tolist()]
    assert names == ["glance", "0", "1", "0,1"]
    rungs = ActionSet.rungs(PYRAMID, (0, 64, 256))
    assert [rungs.names[i] for i in rungs.touched(kept, PYRAMID.tile_level).tolist()] == names


def test_a_foveated_picture_shows_each_place_as_finely_as_it_was_kept() -> None:
    side = torch.arange(64)
    image = (255 * ((side[:, None] + side[:40]) % 2)).to(torch.uint8).expand(3, -1, -1)  # padded on the right
    kept = torch.zeros(9, dtype=torch.bool)
    kept[[0, 7, 8]] = True
    seen = np.array(foveate(levels_of(image, PYRAMID), kept, PYRAMID))
    assert seen.shape == (SIDE, SIDE * 40 // 64, 3)
    assert set(np.unique(seen[: SIDE // 2, : SIDE // 2])) == {0, 255}
    assert abs(seen[: SIDE // 2, SIDE // 2 :].astype(int) - 128).max() <= 1
    assert abs(seen[SIDE // 2 :].astype(int) - 128).max() <= 1


def test_a_region_is_as_fine_as_the_finest_tile_that_is_kept_over_it() -> None:
    pyramid = Pyramid(384, 3, 16, (3, 2, 1))
    kept = torch.zeros(2, pyramid.tiles, dtype=torch.bool)
    kept[:, -1] = True
    kept[0, 4] = kept[0, 9] = True  # the middle of level 0, the upper left of level 1
    found = finest(kept, pyramid)
    assert found.shape == (2, 6, 6) and found[1].eq(2).all()
    assert found[0].tolist() == [
        [1, 1, 1, 2, 2, 2],
        [1, 1, 1, 2, 2, 2],
        [1, 1, 0, 0, 2, 2],
        [2, 2, 0, 0, 2, 2],
        [2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2],
    ]


def test_a_model_that_answers_teaches_tiles_one_by_one_and_a_table_does_not() -> None:
    policy, rungs = POLICIES["bernoulli"], BudgetRule(rungs=(0, 64))
    config, grid = GateConfig(name="region", policy="bernoulli"), (4, 2, 1)
    policy.check(config, ActionConfig(), BudgetRule(), grid, listless=True)
    for budget, listless in ((BudgetRule(), False), (rungs, True)):
        with pytest.raises(UserError, match="gate.policy=bernoulli with"):
            policy.check(config, ActionConfig(), budget, grid, listless)
    assert {name for name, rule in RULES.items() if rule.listless} == {"gumbel", "reinforce"}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_decision_on_tiles_does_not_depend_on_batch_mates(half: bool) -> None:
    model, batch = tiny_model((2, 2, 1)), tiny_batch()
    gate = tiny_gate(model, "region", "evidence")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for price in (0.02, 0.1, 0.3):
            gated = Gated(model, gate, UNIT, price)
            together = gated.decide(batch, gated.glance(batch)).tokens
            assert len(torch.unique(together, dim=0)) > 2
            for row in range(len(batch)):
                alone = batch.rows([row])
                assert gated.decide(alone, gated.glance(alone)).tokens.equal(together[row : row + 1])


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (lambda: GateConfig(name="region"), "gate.policy=utility with gate.name=region.*bernoulli, evidence"),
        (
            lambda: POLICIES["evidence"].check(
                GateConfig(policy="evidence"), ActionConfig(), BudgetRule(), (4, 2, 1)
            ),
            r"gate.policy=evidence with pyramid.grid=\[4, 2, 1\] and actions.drawn=0.*actions=regions",
        ),
        (
            lambda: POLICIES["evidence"].check(
                GateConfig(policy="evidence"), ActionConfig(drawn=4), BudgetRule(rungs=(0, 64)), (4, 2, 1)
            ),
            r"gate.policy=evidence with budget.rungs=\[0, 64\]",
        ),
        (
            lambda: RULES["evidence"].check(
                rule_config("evidence")(online=True), GateConfig(policy="evidence"), RewardConfig()
            ),
            "rule.online=true with rule.name='evidence'",
        ),
        (lambda: ActionConfig(drawn=-1), "actions.drawn=-1: allowed: 0 to 4096"),
    ],
)
def test_what_regions_cannot_do_is_refused(refused: object, says: str) -> None:
    assert callable(refused)
    with pytest.raises(UserError, match=says):
        refused()


def drawn_table() -> RolloutTable:
    """A table with three selections of each question's own."""
    table, rng = synthetic_table(images=4), np.random.default_rng(0)
    every = torch.ones(3, dtype=torch.bool)
    drawn = torch.stack([propose(synthetic_pyramid(), every, 3, rng) for _ in range(len(table))])
    more = torch.rand(len(table), 3, generator=torch.Generator().manual_seed(0))
    cost = Cost(*(torch.cat([getattr(table.cost, name), more.double()], dim=1) for name in COSTS))
    columns = {name: torch.cat([getattr(table, name), more], dim=1) for name in ("score", "probability")}
    return replace(table, drawn=drawn, cost=cost, **columns)


def test_a_table_keeps_selections_of_questions_own_and_tells_what_comes_of_them(tmp_path: Path) -> None:
    table = drawn_table()
    table.save(tmp_path)
    again, whole = RolloutTable.load(tmp_path), RolloutTable.concatenate([table, table])
    some = table.take(torch.tensor([5, 2]))
    assert table.drawn is not None and again.drawn is not None and some.drawn is not None
    assert again.drawn.equal(table.drawn) and some.drawn.equal(table.drawn[[5, 2]])
    assert whole.drawn is not None and whole.drawn.shape[0] == 2 * len(table)
    environment = TableEnvironment(again, synthetic_pyramid(), BudgetRule(), table.mean_full_flops)
    rows, own = torch.arange(len(table)), table.drawn[:, 1]
    tokens = own * synthetic_pyramid().capacity(table.size)[table.image_of]
    column = environment.column(rows, Decision(tokens))
    assert table.steps(rows, column).bool().equal(own) and (column >= table.first_drawn).all()
    assert environment.score(rows, Decision(tokens)).equal(table.score[rows, column])
    held, score = environment.tried(rows, soft=False)
    assert held.shape == (len(table), 4 + 3, 3) and score[:, 4:].equal(table.score[:, -3:])
    with pytest.raises(UserError, match="none of the rollout table's actions"):
        environment.score(rows, Decision(torch.zeros_like(tokens)))


@pytest.mark.parametrize("wrong", [lambda t: t.drawn[:, :2], lambda t: t.drawn[:1], lambda t: None])
def test_a_table_whose_selections_are_not_its_columns_is_refused(
    wrong: Callable[[RolloutTable], Tensor | None], tmp_path: Path
) -> None:
    table = drawn_table()
    replace(table, drawn=wrong(table)).save(tmp_path)
    with pytest.raises(UserError, match="holds no rollout table that can be read"):
        RolloutTable.load(tmp_path)
