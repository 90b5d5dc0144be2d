"""Scores of answers, in [0, 1]."""

from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def exact(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer is one of the accepted ones, letter case and outer white space apart."""
    return float(answer.strip().lower() in {a.strip().lower() for a in accepted})
