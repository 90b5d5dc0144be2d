"""Pruner `pyramid_drop`: PyramidDrop (arXiv:2410.17247): visual tokens leave in steps, behind layers 8, 16
and 24 of 32, an equal share of those that are there at each."""

from torch import Tensor

from pyrskip.pruners.inside import InsidePruner
from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable, rank, rounded_up


@PRUNERS.register("pyramid_drop")
class PyramidDrop(InsidePruner):
    """At each step the tokens stay that the last token of the prompt attends to most, heads averaged. ratio
    and tokens say what the last step leaves: the paper's 50%, 25% and 12.5% are ratio=0.125."""

    places = (8, 16, 24)

    def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
        attention, left = seen.beside["attention"][0], self.left(number, seen.real.sum(-1), whole)
        return Kept.of(seen, rank(attention[:, -1], seen.real) < left[:, None])

    def left(self, number: int, before: Tensor, whole: Tensor) -> Tensor:
        last = number + 1 == len(self.places)
        if not self.config.tokens:
            share = whole.double() * self.config.ratio ** ((number + 1) / len(self.places))
        else:
            end = self.stays(whole).double()
            share = whole.double() ** (1 - (number + 1) / len(self.places))
            share = share * end ** ((number + 1) / len(self.places))
        return self.stays(whole) if last else rounded_up(share)
