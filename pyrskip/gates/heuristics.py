"""Decisions that nobody learned: by words of the question, and by likeness of question and level.

Axes: N questions, T tiles, L levels. They pick among listed actions, by the name of what is kept beside the glance.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrskip.decision import ActionSet
from pyrskip.errors import choose

KEYWORDS = {
    "local": r"read(s|ing)?|texts?|signs?|written|words?|numbers?|letters?|tiny|small",
    "counting": r"how many|count(s|ing)?",
    "global": r"colou?rs?|scenes?|weather|mood|describe|overall",
}
"""Kind of question -> words that tell it; the first that matches wins, the one that needs most first."""


def question_kind(text: str) -> str:
    """'local', 'counting' or 'global' where a keyword says so, else 'mid'."""
    for kind, words in KEYWORDS.items():
        if re.search(rf"\b({words})\b", text.lower()):
            return kind
    return "mid"


def keyword_levels(text: str, levels: int) -> tuple[int, ...]:
    """Levels kept beside the glance: the finest two for details and counting, none for the scene, else the coarsest."""
    kind = question_kind(text)
    if kind == "global":
        return ()
    wanted = (0, 1) if kind in ("local", "counting") else (max(1, levels - 2),)
    return tuple(level for level in wanted if level < levels - 1)


def keyword_actions(texts: Sequence[str], actions: ActionSet, levels: int) -> Tensor:
    """The listed action of each question's keywords, [N]. Raises UserError where the action set does not list it."""
    return torch.tensor([_listed(keyword_levels(text, levels), actions) for text in texts], dtype=torch.int64)


def cosine_actions(similarity: Tensor, actions: ActionSet, tile_level: Tensor, k: int) -> Tensor:
    """The listed action that keeps the k levels beside the glance that are most like the question, [N].

    similarity [N, T]: cosine of the question with each tile's mean token, -inf for padding; a level counts by its best
    tile; tile_level [T]; 1 <= k < L. To know the likeness every level must be encoded, so this pays for all of them.
    """
    finer = int(tile_level.max())
    level = torch.stack([similarity[:, tile_level == i].amax(-1) for i in range(finer)], dim=-1)
    kept = level.topk(k, dim=-1).indices.sort(-1).values
    return torch.tensor([_listed(tuple(row), actions) for row in kept.tolist()], dtype=torch.int64)


def _listed(levels: tuple[int, ...], actions: ActionSet) -> int:
    name = ",".join(map(str, levels)) or "glance"
    if name not in actions.names:
        raise choose("action", name, actions.names)
    return actions.index(name)
