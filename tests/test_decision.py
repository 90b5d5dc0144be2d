"""Decisions: what is realised of the tokens asked, and the listed actions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrskip.budget import BudgetRule
from pyrskip.decision import (
    ActionConfig,
    ActionSet,
    Candidates,
    blind,
    distinct,
    one_picture,
    realise,
    reference,
)
from pyrskip.errors import UserError
from pyrskip.pyramid import Pyramid

SIDES = st.integers(1, 32)
ASKED = st.integers(1, 1100)


def realised(asked: int, rows: int, columns: int) -> tuple[int, int]:
    height, width = realise(torch.tensor(asked), torch.tensor([rows, columns])).tolist()
    return height, width


@given(asked=ASKED, rows=SIDES, columns=SIDES)
def test_realised_tokens_exceed_neither_what_is_asked_nor_the_map(
    asked: int, rows: int, columns: int
) -> None:
    height, width = realised(asked, rows, columns)
    assert 1 <= height <= rows and 1 <= width <= columns and height * width <= asked


@given(asked=ASKED, rows=SIDES, columns=SIDES)
def test_more_than_half_of_what_is_asked_is_realised_where_the_map_has_it(
    asked: int, rows: int, columns: int
) -> None:
    height, width = realised(asked, rows, columns)
    assert 2 * height * width > min(asked, rows * columns)


@given(extra=st.integers(0, 50), rows=SIDES, columns=SIDES)
def test_a_map_is_realised_whole_where_its_capacity_is_asked(extra: int, rows: int, columns: int) -> None:
    assert realised(rows * columns + extra, rows, columns) == (rows, columns)


@given(asked=ASKED, rows=SIDES, columns=SIDES)
def test_what_is_realised_follows_the_aspect_of_the_map(asked: int, rows: int, columns: int) -> None:
    height, width = realised(asked, rows, columns)
    ideal = (asked * rows / columns) ** 0.5, (asked * columns / rows) ** 0.5
    # one side is the ideal one rounded down (as far as the map goes), the other takes the tokens that are
    # left
    tall = min(rows, asked, max(1, int(ideal[0] + 1e-9)))
    wide = min(columns, asked, max(1, int(ideal[1] + 1e-9)))
    assert height == tall or width == wide
    assert height * width == max(tall * min(columns, asked // tall), wide * min(rows, asked // wide))
    if rows == columns:
        assert abs(height - width) <= 2


@pytest.mark.parametrize("side", [4, 8, 16])
def test_square_maps_never_give_fewer_tokens_for_more_asked(side: int) -> None:
    asked = torch.arange(1, side * side + 2)
    given_tokens = realise(asked, torch.tensor([side, side]).expand(len(asked), 2)).prod(-1)
    assert given_tokens.diff().ge(0).all()


def test_the_tokens_of_tokenflex_are_squares() -> None:
    assert [realised(n, 16, 16) for n in (64, 144, 256)] == [(8, 8), (12, 12), (16, 16)]


def test_nothing_is_realised_where_nothing_is_asked_or_the_tile_is_padding() -> None:
    asked = torch.tensor([[0, 5, 5, 5]])
    cells = torch.tensor([[[4, 4], [0, 0], [0, 3], [4, 4]]])
    assert realise(asked, cells).tolist() == [[[0, 0], [0, 0], [0, 0], [2, 2]]]


def test_the_actions_of_a_pyramid_are_all_sets_of_levels_that_hold_the_glance() -> None:
    pyramid = Pyramid(64, 4, 8)
    actions = ActionSet.by_level(pyramid)
    assert actions.names == ("glance", "2", "1", "1,2", "0", "0,2", "0,1", "0,1,2")
    for name, selection in zip(actions.names, actions.selection, strict=True):
        kept = [] if name == "glance" else [int(level) for level in name.split(",")]
        assert selection.nonzero().flatten().tolist() == [*kept, 3]
        assert actions.index(name) == actions.names.index(name)
    assert actions.selection.unique(dim=0).shape[0] == len(actions) == 2**3
    assert actions.names[actions.full] == "0,1,2"


def test_an_action_keeps_or_skips_all_tiles_of_a_level() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 2, 1))
    actions = ActionSet.by_level(pyramid)
    for name, selection in zip(actions.names, actions.selection, strict=True):
        levels = {int(level) for level in name.split(",") if level != "glance"} | {2}
        assert selection.tolist() == [int(level) in levels for level in pyramid.tile_level]


def test_without_a_total_an_action_asks_for_all_that_its_tiles_can_give() -> None:
    pyramid = Pyramid(64, 3, 8)
    actions = ActionSet.by_level(pyramid)
    capacity = pyramid.capacity(torch.tensor([[64, 64], [9, 40]]))
    tokens = actions.tokens(capacity, BudgetRule())
    assert tokens.shape == (2, len(actions), 3)
    assert tokens.equal(actions.selection[None] * capacity[:, None])


def test_under_a_total_every_action_spends_it_or_all_that_it_can() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    actions = ActionSet.by_level(pyramid)
    capacity = pyramid.capacity(torch.tensor([[64, 64], [9, 40], [1, 1]]))
    tokens = actions.tokens(capacity, BudgetRule(total=24, floor=2))
    able = (actions.selection[None] * capacity[:, None]).sum(-1)
    assert tokens.sum(-1).equal(able.clamp(max=24))
    assert ((tokens > 0) == (actions.selection[None] & (capacity[:, None] > 0))).all()


def test_more_levels_than_can_be_listed_are_refused() -> None:
    with pytest.raises(UserError, match=r"pyramid\.levels=14 gives 8192 selections; at most 4096"):
        ActionSet.by_level(Pyramid(1 << 13, 14, 1))


def test_rungs_list_every_share_of_every_level_and_the_whole_glance() -> None:
    pyramid = Pyramid(64, 3, 8)
    actions = ActionSet.rungs(pyramid, (0, 64, 144, 256))
    assert len(actions) == 4**2 == len(set(actions.names))
    assert (
        actions.names[:5] == ("glance", "1:64", "1:144", "1", "0:64") and actions.names[actions.full] == "0,1"
    )
    # whole levels have the names that they have without rungs
    assert set(ActionSet.by_level(pyramid).names) <= set(actions.names)
    tokens = actions.tokens(torch.tensor([[64, 16, 4], [3, 0, 1]]), BudgetRule(rungs=(0, 64, 144, 256)))
    assert tokens[0, :, 1].tolist() == [0, 4, 9, 16] * 4 and tokens[0, :, 2].eq(4).all()
    assert tokens[0, ::4, 0].tolist() == [0, 16, 36, 64] and tokens[1, ::4, 0].tolist() == [0, 1, 2, 3]
    assert tokens[1, :, 1].eq(0).all()


def test_an_action_set_is_what_the_budget_lists() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    assert ActionSet.of(pyramid, BudgetRule(total=9, floor=1)).names == ActionSet.by_level(pyramid).names
    actions = ActionSet.of(pyramid, BudgetRule(rungs=(0, 1)))
    assert (
        actions.selection.equal(ActionSet.by_level(pyramid).selection)
        and actions.names == ActionSet.by_level(pyramid).names
    )


def test_more_rungs_than_can_be_listed_are_refused() -> None:
    with pytest.raises(UserError, match=r"on pyramid\.levels=8 gives 16384 decisions; at most 4096"):
        ActionSet.rungs(Pyramid(1 << 7, 8, 1), (0, 1, 2, 3))


def test_single_tiles_list_every_set_and_name_whole_levels_as_ever() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    actions = ActionSet.of(pyramid, BudgetRule(), ActionConfig("tile"))
    assert (
        len(actions)
        == 2**5
        == len(set(actions.names))
        == len({tuple(row) for row in actions.selection.tolist()})
    )
    assert actions.selection[:, pyramid.glance].all()
    by_level = ActionSet.by_level(pyramid)
    for name, selection in zip(by_level.names, by_level.selection, strict=True):
        assert actions.selection[actions.index(name)].equal(selection)
    assert actions.selection[actions.index("0.1,0.3,1")].tolist() == [False, True, False, True, True, True]
    assert actions.names[actions.full] == "0,1"


@pytest.mark.parametrize("rungs", [None, (0, 64, 256)])
def test_a_sample_holds_whole_levels_and_different_others_cheap_and_dear(
    rungs: tuple[int, ...] | None,
) -> None:
    pyramid, budget = Pyramid(256, 4, 8, (4, 2, 1, 1)), BudgetRule(rungs=rungs)
    config = ActionConfig("tile", 100, 3)
    actions = ActionSet.of(pyramid, budget, config)
    assert len(actions) == 100 == len(set(actions.names)) and set(ActionSet.by_level(pyramid).names) <= set(
        actions.names
    )
    assert actions.selection[:, pyramid.glance].all() and actions.names[actions.full] == "0,1,2"
    tokens = actions.tokens(pyramid.capacity(torch.tensor([[256, 256]])), budget)[0]
    assert len({tuple(row) for row in tokens.tolist()}) == 100
    share = tokens.sum(-1) / tokens[actions.full].sum()
    assert (share < 0.25).sum() > 10 and (share > 0.5).sum() > 10
    again = ActionSet.of(pyramid, budget, config)
    assert again.selection.equal(actions.selection) and again.names == actions.names
    assert ActionSet.of(pyramid, budget, ActionConfig("tile", 100, 4)).names != actions.names


def test_a_sample_as_large_as_the_set_is_the_set() -> None:
    pyramid = Pyramid(64, 3, 8)
    listed = ActionSet.of(pyramid, BudgetRule(), ActionConfig("level", 4))
    assert listed.names == ActionSet.by_level(pyramid).names


def test_a_set_that_is_too_large_says_how_large_and_can_be_sampled() -> None:
    pyramid = Pyramid(256, 4, 8, (4, 2, 1, 1))
    with pytest.raises(
        UserError, match=r"grid=\[4, 2, 1, 1\] gives 2097152 selections; at most 4096 .*actions\.sample="
    ):
        ActionSet.of(pyramid, BudgetRule(), ActionConfig("tile"))
    with pytest.raises(
        UserError, match=r"actions\.sample=7 has no room for the 8 selections of whole levels.*allowed: 8 to"
    ):
        ActionSet.of(pyramid, BudgetRule(), ActionConfig("tile", 7))


def test_one_picture_is_the_finest_level_that_is_not_cut() -> None:
    assert one_picture(Pyramid(64, 3, 8)).tolist() == [True, False, False]
    assert one_picture(Pyramid(64, 3, 8, (2, 1, 1))).tolist() == [False] * 4 + [True, False]
    assert one_picture(Pyramid(64, 3, 8, (2, 2, 1))).tolist() == [False] * 8 + [True]


def test_the_reference_is_the_finest_level_alone_and_the_blind_decision_nothing() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    assert reference(pyramid).tolist() == [True] * 4 + [False] * 2
    assert not blind(pyramid).any()


def brute_force_first(tokens: torch.Tensor) -> list[list[int]]:
    """By comparing every two lists of tokens, [B][S]."""
    return [[row.index(decision) for decision in row] for row in tokens.tolist()]


@given(
    tokens=st.integers(1, 4).flatmap(
        lambda tiles: st.lists(
            st.lists(st.sampled_from([0, 1, 2, 64, 4096]), min_size=tiles, max_size=tiles),
            min_size=1,
            max_size=12,
        )
    )
)
def test_the_first_action_of_each_decision_is_that_of_a_search(tokens: list[list[int]]) -> None:
    rows = torch.tensor([tokens, tokens[::-1]])
    assert Candidates(rows).first.tolist() == brute_force_first(rows)


PADDED = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=3)


@given(
    sizes=PADDED,
    rungs=st.sampled_from([None, (0, 1), (0, 1, 2, 3), (0, 64, 256), (0, 64, 144, 256)]),
    unit=st.sampled_from(["level", "tile"]),
)
def test_actions_that_differ_in_padding_or_in_rungs_that_coincide_are_one_decision(
    sizes: list[tuple[int, int]], rungs: tuple[int, ...] | None, unit: str
) -> None:
    grid = (2, 1, 1) if unit == "tile" and rungs is None else (1, 1, 1)
    pyramid, budget = Pyramid(64, 3, 8, grid), BudgetRule(rungs=rungs)
    actions = ActionSet.of(pyramid, budget, ActionConfig(unit))
    tokens = actions.tokens(pyramid.capacity(torch.tensor(sizes)), budget)
    candidates = Candidates(tokens)
    assert candidates.first.tolist() == brute_force_first(tokens)
    for action in range(len(actions)):
        decision = candidates.take(torch.full((len(sizes),), action))
        assert decision.action is not None and decision.tokens.equal(tokens[:, action])
        assert decision.action.equal(candidates.first[:, action])
        assert decision.selection.equal(tokens[:, action] > 0)


def test_a_small_image_makes_fewer_decisions_than_a_large_one() -> None:
    pyramid, budget = Pyramid(64, 3, 8, (2, 1, 1)), BudgetRule()
    actions = ActionSet.of(pyramid, budget, ActionConfig("tile"))
    first = Candidates(actions.tokens(pyramid.capacity(torch.tensor([[64, 64], [20, 60]])), budget)).first
    assert [len(row.unique()) for row in first] == [32, 8]  # two of the tiles are padding
    ladder = BudgetRule(rungs=(0, 64, 256))
    actions = ActionSet.of(Pyramid(64, 3, 8), ladder)
    first = Candidates(actions.tokens(torch.tensor([[64, 16, 4], [1, 1, 1]]), ladder)).first
    assert [len(row.unique()) for row in first] == [9, 4]  # a quarter of one token is one token


def test_crops_are_the_quadrants_halves_and_the_centre_of_level_0_and_cost_their_pixels() -> None:
    pyramid = Pyramid(64, 2, 8, (4,))
    actions = ActionSet.of(pyramid, BudgetRule(), ActionConfig("crop"))
    assert len(actions) == 11 and actions.names[0] == "glance" and actions.names[actions.full] == "0"
    assert actions.selection[:, pyramid.glance].all() and actions.selection[0].sum() == 1
    assert len(actions.selection.unique(dim=0)) == 11
    left = actions.selection[actions.index("0.left"), :-1].view(4, 4)
    assert left[:, :2].all() and not left[:, 2:].any()
    centre = actions.selection[actions.index("0.centre"), :-1].view(4, 4)
    assert centre[1:3, 1:3].all() and centre.sum() == 4
    tokens = actions.tokens(pyramid.capacity(torch.tensor([[64, 64], [64, 32]])), BudgetRule()).sum(-1)
    # 64 tokens in level 0 and 16 in the glance; half of the second image's canvas is padding
    quadrant, half = 16 + 16, 32 + 16
    assert tokens[0].tolist() == [16, *[quadrant] * 4, *[half] * 4, quadrant, 80]
    of_half = dict(zip(actions.names, tokens[1].tolist(), strict=True))
    assert of_half["0.right"] == of_half["glance"] == 8 and of_half["0.left"] == of_half["0"] == 40


def test_crops_that_a_pyramid_does_not_have_are_refused() -> None:
    for pyramid, budget in (
        (Pyramid(64, 2, 8, (2,)), BudgetRule()),
        (Pyramid(64, 3, 4, (4, 1, 1)), BudgetRule()),
        (Pyramid(64, 2, 8, (4,)), BudgetRule(rungs=(0, 1))),
    ):
        with pytest.raises(UserError, match=r"actions\.unit=crop .*pyramid\.grid=\[4\]"):
            ActionSet.of(pyramid, budget, ActionConfig("crop"))
    with pytest.raises(UserError, match=r"actions\.sample=4 with actions\.unit=crop"):
        ActionConfig("crop", sample=4)


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(-(2**62), 2**62)), max_size=20))
def test_distinct_rows_are_those_of_torch(rows: list[tuple[int, int]]) -> None:
    all_rows = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    first, kind = distinct(all_rows)
    wanted, of = torch.unique(all_rows, dim=0, return_inverse=True)
    assert all_rows[first].equal(wanted) and kind.equal(of)
