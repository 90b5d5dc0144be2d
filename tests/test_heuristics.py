"""Heuristics: keywords and likeness pick listed actions."""

import pytest
import torch

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates.heuristics import (
    SHARES,
    STRATEGIES,
    cosine_actions,
    keyword_actions,
    keyword_levels,
    nearest,
    proportional_actions,
    question_kind,
    spread,
    strategy_actions,
    strategy_weights,
    whole,
)
from pyrskip.pyramid import Pyramid


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What color is the car?", "global"),
        ("Describe the overall scene.", "global"),
        ("What does the sign say?", "local"),
        ("What colour is the tiny letter?", "local"),
        ("How many dogs are there?", "counting"),
        ("Is there a red shape?", "mid"),
        ("Which country, and who is already smaller?", "mid"),
    ],
)
def test_keywords_tell_the_kind(text: str, kind: str) -> None:
    assert question_kind(text) == kind


def test_levels_beyond_the_pyramid_are_dropped() -> None:
    assert keyword_levels("read the sign", 4) == (0, 1)
    assert keyword_levels("read the sign", 2) == (0,)
    assert keyword_levels("read the sign", 1) == ()
    assert keyword_levels("who is it?", 5) == (3,)
    assert keyword_levels("who is it?", 2) == ()


def test_keywords_map_to_listed_actions() -> None:
    actions = ActionSet.by_level(Pyramid(64, 3, 8))
    picked = keyword_actions(["what color is it?", "is it a circle?", "read it"], actions, 3)
    assert [actions.names[a] for a in picked.tolist()] == ["glance", "1", "0,1"]


def test_an_action_that_is_not_listed_is_refused() -> None:
    every = ActionSet.by_level(Pyramid(64, 3, 8))
    some = ActionSet(every.selection[:1], every.names[:1])
    with pytest.raises(UserError, match="allowed: glance"):
        keyword_actions(["read it"], some, 3)


def test_cosine_keeps_the_levels_whose_best_tile_is_most_like_the_question() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    actions = ActionSet.by_level(pyramid)
    # tiles: four of level 0, one of level 1, the glance, whose likeness never counts
    similarity = torch.tensor([[0.0, 0.0, 0.9, 0.0, 0.5, 1.0], [-0.3, -0.2, -0.9, float("-inf"), -0.1, 1.0]])
    picked = cosine_actions(similarity, actions, pyramid.tile_level, 1)
    assert [actions.names[a] for a in picked.tolist()] == ["0", "1"]
    assert cosine_actions(similarity, actions, pyramid.tile_level, 2).eq(actions.full).all()


LADDER = (0, 64, 144, 256)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_strategy_weighs_five_levels_as_proposed_and_others_by_their_place(kind: str) -> None:
    assert (
        strategy_weights(kind, Pyramid(1024, 5, 16)).tolist() == list(STRATEGIES[kind])
        and sum(STRATEGIES[kind]) == 1000
    )
    stretched = strategy_weights(kind, Pyramid(64, 3, 8)).tolist()
    assert stretched == [STRATEGIES[kind][level] for level in (0, 2, 4)]
    tiled = strategy_weights(kind, Pyramid(64, 3, 8, (2, 1, 1)))
    assert tiled[:4].sum() == stretched[0] and tiled[4:].tolist() == stretched[1:]


def test_a_question_without_a_strategy_gets_tokens_in_proportion_to_capacity() -> None:
    pyramid = Pyramid(64, 3, 8)
    assert strategy_weights("mid", pyramid).equal(whole(pyramid).double())


def test_what_is_spread_is_what_the_budget_rule_gives() -> None:
    pyramid = Pyramid(256, 4, 8)
    weights, keep = strategy_weights("counting", pyramid), ActionSet.by_level(pyramid).selection
    tokens = spread(weights, SHARES, keep, pyramid).unflatten(0, (len(SHARES), len(keep)))
    for share, given in zip(SHARES, tokens, strict=True):
        rule = BudgetRule(
            total=round(share * int(whole(pyramid).sum())), floor=1, weights=tuple(weights.tolist())
        )
        assert given.equal(rule.tokens(keep, whole(pyramid)))


def test_tokens_of_rungs_are_nearest_to_themselves_and_others_to_their_neighbour() -> None:
    pyramid = Pyramid(64, 3, 8)
    actions = ActionSet.rungs(pyramid, LADDER)
    asked = actions.tokens(whole(pyramid)[None], BudgetRule(rungs=LADDER))[0]
    assert nearest(asked, pyramid, actions).tolist() == list(range(len(actions)))
    # of 64 and 16: 25 is nearer to 16 than to 36, 13 nearer to 16 than to 9
    found = int(nearest(torch.tensor([[25, 13, 4]]), pyramid, actions)[0])
    assert actions.names[found] == "0:64,1"


def test_the_strategy_follows_the_keywords() -> None:
    pyramid = Pyramid(64, 3, 8)
    actions = ActionSet.rungs(pyramid, LADDER)
    texts = [
        "Transcribe all visible text",
        "Describe the scene",
        "How many cars are there?",
        "Is it a circle?",
    ]
    text, scene, count, other = (
        actions.rung[a].tolist() for a in strategy_actions(texts, 0.3, pyramid, actions)
    )  # type: ignore[index]
    # reading and counting spend on the finest level what a scene spends on the next
    assert text[0] > scene[0] and count[0] > scene[0] and scene[1] > text[1]
    # in proportion to capacity every level gives the same share
    assert other[0] == other[1]


def test_capacity_weights_take_the_same_rung_of_every_level_that_is_kept() -> None:
    pyramid = Pyramid(256, 4, 8)
    actions = ActionSet.rungs(pyramid, LADDER)
    assert actions.rung is not None
    taken = [actions.rung[a, :-1] for a in proportional_actions(whole(pyramid).double(), pyramid, actions)]
    assert len(taken) > 8 and all(len(rung[rung > 0].unique()) <= 1 for rung in taken)
