"""Decisions of a list, for tests that walk over all of them. Axes: B rows, T tiles, S actions."""

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates, Decision


def of_every_action(actions: ActionSet, capacity: Tensor, budget: BudgetRule | None = None) -> list[Decision]:
    """The decision of each action for all rows. capacity [B, T] -> S decisions of B rows."""
    candidates = Candidates(actions.tokens(capacity, budget or BudgetRule()))
    rows = len(capacity)
    return [candidates.take(torch.full((rows,), action)) for action in range(len(actions))]


def different(decisions: list[Decision]) -> list[Decision]:
    """Those of one row each, every one once."""
    return [d for i, d in enumerate(decisions) if d.action is not None and d.action.tolist() == [i]]


def repeated(decision: Decision, rows: int) -> Decision:
    """A decision of one row, for many."""
    assert decision.action is not None
    return Decision(decision.tokens.expand(rows, -1), decision.action.expand(rows))


def same(one: Decision, other: Decision) -> bool:
    """Whether two decisions ask for the same, by the same action."""
    assert one.action is not None and other.action is not None
    return one.tokens.equal(other.tokens) and one.action.equal(other.action)
