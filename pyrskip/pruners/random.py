"""Pruner `random`: any tokens, the same places for every image: what a pruner that looks must beat."""

import torch
from torch import Tensor

from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable


@PRUNERS.register("random")
class RandomPruner(KeepingPruner):
    """Tokens stay in a fixed pseudo-random order of their index in the row, whatever they hold."""

    blind = True

    def keep(self, seen: Prunable) -> Tensor:
        index = torch.arange(seen.real.shape[1], device=seen.real.device)
        return self.highest(scrambled(index).double().expand(seen.real.shape), seen)


def scrambled(index: Tensor) -> Tensor:
    """int64 numbers as random as can be told from their index alone (SplitMix64, Steele et al. 2014)."""
    x = (index + 1) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """The number of these 64 bits with a sign."""
    return number - (1 << 64 if number >> 63 else 0)
