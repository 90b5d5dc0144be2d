"""What a method of the frontier is, and the registry of them all.

Axes: N questions, K decisions a question, S listed actions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.style import Style
from pyrskip.pruners import PrunerConfig
from pyrskip.registry import Registry


@dataclass(frozen=True)
class Decisions:
    """What a method decides on a split: a point of its frontier.

    action int64: the table's column of each question, [N] where the method decides for sure; else [K, N], of
    which each is taken with probability share [K] float64, so that a random mix is an exact expectation and
    pays what it costs. price, seed: None where the method has none. gate: the gate whose FLOPs and time it
    pays, if any. encodes_all, projects_all: it encodes, and projects, every tile before it decides. first
    [N]: the column of an earlier turn, which is paid as well, -1 where the question is answered in one; what
    both turns keep is encoded once. variant: what the name of its row adds to the method's, behind a colon.
    peer: the pruner, of `Inputs.peers`, that answers are given behind.
    """

    action: Tensor
    share: Tensor | None = None
    price: float | None = None
    seed: int | None = None
    gate: str | None = None
    encodes_all: bool = False
    projects_all: bool = False
    first: Tensor | None = None
    variant: str = ""
    peer: PrunerConfig | None = None

    def mean(self, values: Tensor) -> Tensor:
        """What is expected of values [N, S + 2] for each question, [N] float64. Holds N x K numbers."""
        if self.share is None:
            return values.gather(1, self.action[:, None]).squeeze(1).double()
        return values.gather(1, self.action.T).double() @ self.share

    def earlier(self, values: Tensor) -> Tensor:
        """What the turn before has of values [N, S + 2], for each question [N] float64; 0 where there is
        none."""
        if self.first is None:
            return torch.zeros(len(values), dtype=torch.float64)
        found = values.gather(1, self.first.clamp(min=0)[:, None]).squeeze(1).double()
        return found.where(self.first >= 0, 0.0)

    def columns(self, count: int) -> Tensor:
        """How often each of the table's columns is taken, [count] float64; sums to 1."""
        if self.share is None:
            return torch.bincount(self.action, minlength=count).double() / len(self.action)
        often = torch.stack([torch.bincount(action, minlength=count) for action in self.action])
        return self.share @ often.double() / self.action.shape[1]

    @property
    def certain(self) -> Tensor | None:
        """The action [N] of a method that decides for sure."""
        return self.action if self.share is None else None


@dataclass(frozen=True)
class Method:
    """A method, under the name that it is registered by.

    decisions: (inputs, split) -> what it decides there, a `Decisions` for each of its points; none where it
    does not apply. `inputs.tables[split]` is the table that it decides on. candidate: `pyrskip above` tests
    whether it is above the full pyramid. variants: its decisions have one each.
    """

    decisions: Callable[[Inputs, str], Iterable[Decisions]]
    style: Style = Style()  # noqa: RUF009  (frozen)
    candidate: bool = False
    variants: bool = False


METHODS: Registry[Method] = Registry("method")


def method_of(row: str) -> Method | None:
    """The method of a row of frontier.json, by its name; None where none is registered, as of a run that was
    drawn with another plug-in."""
    if row in METHODS:
        return METHODS[row]
    family: Method | None = METHODS.get(row.partition(":")[0])
    return family if family is not None and family.variants else None


def style_of(row: str) -> Style:
    """The style of a row, by its name; the default one where no method of it is registered."""
    method = method_of(row)
    return Style() if method is None else method.style
