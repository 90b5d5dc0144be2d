"""Whether a gate decides at all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def health(steps: Tensor, types: Sequence[str], tile_level: Tensor) -> dict[str, Any]:
    """Whether a gate decides, or always does the same. steps [N, T] int64: what its decisions ask of each
    tile, 0 where it is skipped (`RolloutTable.steps`); types: N; tile_level [T].

    keep_rate of each level; entropy of its decisions over the questions and their mutual information with the
    question type, in nats; how many distinct decisions it takes.
    """
    label = labels(steps)
    return {
        "keep_rate": {str(level): rate for level, rate in keep_rates(steps > 0, tile_level).items()},
        "entropy": entropy_of(label),
        "distinct": int(label.max()) + 1,
        "mutual_information": mutual_information(label, types),
    }


def keep_rates(keep: Tensor, tile_level: Tensor) -> dict[int, float]:
    """Share of questions that keep any tile of each level. keep [N, T] bool, tile_level [T]."""
    levels = range(int(tile_level.max()) + 1)
    return {level: float(keep[:, tile_level == level].any(-1).double().mean()) for level in levels}


def labels(keep: Tensor) -> Tensor:
    """A number for each different selection, from 0. keep [N, T] bool or int64 -> [N] int64."""
    label: Tensor = torch.unique(keep, dim=0, return_inverse=True)[1]
    return label


def entropy_of(label: Tensor) -> float:
    """Of the distribution of labels [N] int64 >= 0, nats."""
    share = label.unique(return_counts=True)[1].double() / len(label)
    return float(-(share * share.log()).sum())


def mutual_information(label: Tensor, types: Sequence[str]) -> float:
    """Between labels [N] int64 >= 0 and question types (N), nats. Few samples read as more than there is."""
    kinds = {kind: i for i, kind in enumerate(sorted(set(types)))}
    kind = torch.tensor([kinds[t] for t in types], device=label.device)
    return max(entropy_of(label) + entropy_of(kind) - entropy_of(label * len(kinds) + kind), 0.0)
