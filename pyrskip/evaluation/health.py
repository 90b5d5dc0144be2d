"""Whether a gate decides at all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrskip.decision import ActionSet


def health(action: Tensor, types: Sequence[str], actions: ActionSet, tile_level: Tensor) -> dict[str, Any]:
    """Whether a gate decides, or always does the same. action [N]: its decisions; types: N; tile_level [T].

    keep_rate of each level; entropy of its decisions over the questions and their mutual information with the question
    type, in nats; how many distinct decisions it takes.
    """
    selection = actions.selection[action]
    kinds = {kind: i for i, kind in enumerate(sorted(set(types)))}
    kind = torch.tensor([kinds[t] for t in types])
    decisions, types_entropy = _entropy(action), _entropy(kind)
    together = _entropy(action * len(kinds) + kind)
    return {
        "keep_rate": {
            str(level): float(selection[:, tile_level == level].any(-1).double().mean())
            for level in range(int(tile_level.max()) + 1)
        },
        "entropy": decisions,
        "distinct": len(action.unique()),
        "mutual_information": max(decisions + types_entropy - together, 0.0),
    }


def _entropy(label: Tensor) -> float:
    """Of the distribution of labels [N] int64 >= 0, nats."""
    share = label.unique(return_counts=True)[1].double() / len(label)
    return float(-(share * share.log()).sum())
