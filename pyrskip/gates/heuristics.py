"""Decisions that nobody learned: by words of the question, by likeness of question and level, by tables of
tokens.

Axes: N questions, K decisions, T tiles, L levels. They pick among listed actions, by the name of what is kept
beside the glance, or, for budgets of tokens, by the rungs nearest to what a budget gives.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrskip.budget import allocate
from pyrskip.decision import ActionSet
from pyrskip.errors import unknown_name
from pyrskip.pyramid import Pyramid

KEYWORDS = {
    "local": r"read(s|ing)?|texts?|signs?|written|words?|numbers?|letters?|tiny|small",
    "counting": r"how many|count(s|ing)?",
    "global": r"colou?rs?|scenes?|weather|mood|describe|overall",
}
"""Kind of question -> words that tell it; the first that matches wins, the one that needs most first."""

STRATEGIES = {
    "local": (400, 300, 150, 100, 50),
    "counting": (350, 300, 200, 100, 50),
    "global": (100, 150, 250, 300, 200),
}
"""Kind of question -> tokens of levels 0 to 4, of 1,000: proposed for reading text, for counting and for
describing a scene."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Totals that budgets are tried at, as shares of all tokens that an image can give."""


def question_kind(text: str) -> str:
    """'local', 'counting' or 'global' where a keyword says so, else 'mid'."""
    for kind, words in KEYWORDS.items():
        if re.search(rf"\b({words})\b", text.lower()):
            return kind
    return "mid"


def keyword_levels(text: str, levels: int) -> tuple[int, ...]:
    """Levels kept beside the glance: the finest two for details and counting, none for the scene, else the
    coarsest."""
    kind = question_kind(text)
    if kind == "global":
        return ()
    wanted = (0, 1) if kind in ("local", "counting") else (max(1, levels - 2),)
    return tuple(level for level in wanted if level < levels - 1)


def keyword_actions(texts: Sequence[str], actions: ActionSet, levels: int) -> Tensor:
    """The listed action of each question's keywords, [N]. Raises UserError where the action set does not list
    it."""
    return torch.tensor([listed(keyword_levels(text, levels), actions) for text in texts], dtype=torch.int64)


def cosine_actions(similarity: Tensor, actions: ActionSet, tile_level: Tensor, k: int) -> Tensor:
    """The listed action that keeps the k levels beside the glance that are most like the question, [N].

    similarity [N, T]: cosine of the question with each tile's mean token, -inf for padding; a level counts by
    its best tile; tile_level [T]; 1 <= k < L. To know the likeness every level must be encoded, so this pays
    for all of them.
    """
    finer = int(tile_level.max())
    level = torch.stack([similarity[:, tile_level == i].amax(-1) for i in range(finer)], dim=-1)
    kept = level.topk(k, dim=-1).indices.sort(-1).values
    return torch.tensor([listed(tuple(row), actions) for row in kept.tolist()], dtype=torch.int64)


def strategy_weights(kind: str, pyramid: Pyramid) -> Tensor:
    """The strategy's weight of each tile, [T]: its five levels stretched over the pyramid's, a level's shared
    by its tiles. A kind without a strategy has the capacities' weights."""
    if kind not in STRATEGIES:
        return whole(pyramid).double()
    place = np.linspace(0, len(STRATEGIES[kind]) - 1, pyramid.levels)
    level = torch.from_numpy(np.interp(place, range(len(STRATEGIES[kind])), STRATEGIES[kind]))
    return (level / torch.bincount(pyramid.tile_level))[pyramid.tile_level]


def strategy_actions(texts: Sequence[str], share: float, pyramid: Pyramid, actions: ActionSet) -> Tensor:
    """The listed action of each question's strategy at a share of all tokens, [N]; kinds are recognised by
    keywords."""
    every = torch.ones(1, pyramid.tiles, dtype=torch.bool)
    kinds = [question_kind(text) for text in texts]
    of_kind = {
        kind: int(
            nearest(spread(strategy_weights(kind, pyramid), (share,), every, pyramid), pyramid, actions)[0]
        )
        for kind in set(kinds)
    }
    return torch.tensor([of_kind[kind] for kind in kinds], dtype=torch.int64)


def proportional_actions(weights: Tensor, pyramid: Pyramid, actions: ActionSet) -> list[int]:
    """The listed actions that selections of whole levels come to where these weights [T] share out SHARES of
    all tokens."""
    tokens = spread(weights, SHARES, ActionSet.by_level(pyramid).selection, pyramid)
    return sorted({int(action) for action in nearest(tokens, pyramid, actions)})


def spread(weights: Tensor, shares: Sequence[float], keep: Tensor, pyramid: Pyramid) -> Tensor:
    """Tokens [K, T] of an image that fills the pyramid, for each of keep [K', T] bool at each share of all
    tokens.

    As `budget=proportional` with floor 1 gives them by weights [T]; a total beyond what is kept is clamped to
    that.
    """
    capacity = whole(pyramid)
    total = torch.tensor([round(share * int(capacity.sum())) for share in shares]).repeat_interleave(
        len(keep)
    )
    keep = keep.repeat(len(shares), 1)
    total = torch.minimum(torch.maximum(total, keep.sum(-1)), (capacity * keep).sum(-1))
    return allocate(weights.expand(keep.shape), total, floor=1, cap=capacity, keep=keep)


def nearest(tokens: Tensor, pyramid: Pyramid, actions: ActionSet) -> Tensor:
    """The listed action whose rungs are nearest to tokens [K, T], [K]. The action set lists every combination
    of rungs, the glance always whole."""
    ladder = torch.tensor(actions.ladder, dtype=torch.float64) / actions.ladder[-1]
    share = (tokens / whole(pyramid))[:, :-1, None]
    return ((share - ladder).abs().argmin(-1) * actions.radix).sum(-1)


def whole(pyramid: Pyramid) -> Tensor:
    """Capacity [T] of an image that fills the pyramid."""
    return pyramid.capacity(torch.tensor([[pyramid.size, pyramid.size]]))[0]


def listed(levels: tuple[int, ...], actions: ActionSet) -> int:
    """The number of the action that keeps these whole levels beside the glance, the finest first. Raises
    UserError where none does."""
    name = ",".join(map(str, levels)) or "glance"
    if name not in actions.names:
        raise unknown_name("action", name, actions.names)
    return actions.index(name)
