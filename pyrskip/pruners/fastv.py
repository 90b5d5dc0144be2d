"""Pruner `fastv`: FastV (arXiv:2403.06764): behind layer 2 of 32, visual tokens that the last token of the
prompt hardly attends to leave."""

from torch import Tensor

from pyrskip.pruners.inside import InsidePruner
from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable


@PRUNERS.register("fastv")
class FastV(InsidePruner):
    """The tokens stay that the last token attends to most, heads averaged."""

    places = (2,)

    def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
        return Kept.of(seen, self.highest(seen.beside["attention"][0][:, -1], seen))
