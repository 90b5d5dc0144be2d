"""Decide, look, answer: the one way from a question to an answer, for a model with its gate and for an export
of both.

Axes: B questions.

Training's check of real inference, evaluation, timing, an export's parity, predict and serve all call
`answer`. The glance is encoded once: what the gate looked at is part of what the answer reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Rows = TypeVar("Rows", contravariant=True)
Seen = TypeVar("Seen")
Decided = TypeVar("Decided")


class Answering(Protocol[Rows, Seen, Decided]):
    """A model with its gate. Rows: questions; Seen: what has been encoded so far; Decided: the questions'
    decisions."""

    def glance(self, rows: Rows) -> Seen:
        """Encode the glance alone."""
        ...

    def decide(self, rows: Rows, seen: Seen) -> Decided:
        """What the gate's mode decides from the questions and the glance."""
        ...

    def look(self, rows: Rows, seen: Seen, decided: Decided) -> Seen:
        """Encode what is kept and not encoded yet."""
        ...

    def write(self, rows: Rows, seen: Seen, decided: Decided) -> list[str]:
        """The answers, from what is kept alone."""
        ...


@dataclass(frozen=True)
class Answers(Generic[Seen, Decided]):
    """texts: B answers; decided: what was decided; seen: what was encoded for it."""

    texts: list[str]
    decided: Decided
    seen: Seen


def answer(
    model: Answering[Rows, Seen, Decided], rows: Rows, mark: Callable[[str], None] = lambda phase: None
) -> Answers[Seen, Decided]:
    """Answer questions from what the gate decides to look at.

    mark: called with 'glance', 'gate', 'encode' and 'answer', each when it is done.
    """
    seen = model.glance(rows)
    mark("glance")
    decided = model.decide(rows, seen)
    mark("gate")
    seen = model.look(rows, seen, decided)
    mark("encode")
    texts = model.write(rows, seen, decided)
    mark("answer")
    return Answers(texts, decided, seen)
