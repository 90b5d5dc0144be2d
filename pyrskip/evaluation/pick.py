"""Which answers people should look at: wrong ones more often than they occur, up to a third, or a good gate
would have none to show."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrskip.rollouts.table import RolloutTable


def pick(action: Tensor, table: RolloutTable, count: int) -> list[int]:
    """Rows of a table to show, wrong answers first. action [N]: the gate's decisions."""
    wrong = table.score[torch.arange(len(table)), action] < 0.5
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    first = _in_turn(order[wrong[order]].tolist(), table.types)[: count // 3]
    return first + _in_turn(order[~wrong[order]].tolist(), table.types)[: count - len(first)]


def _in_turn(rows: Sequence[int], types: Sequence[str]) -> list[int]:
    """The rows, question types in turn."""
    seen: dict[str, int] = {}
    ranked = []
    for row in rows:
        seen[types[row]] = seen.get(types[row], 0) + 1
        ranked.append((seen[types[row]], types[row], row))
    return [row for _, _, row in sorted(ranked)]
