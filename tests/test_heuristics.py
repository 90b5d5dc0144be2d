"""Heuristics: keywords and likeness pick listed actions."""

import pytest
import torch

from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates.heuristics import cosine_actions, keyword_actions, keyword_levels, question_kind
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
