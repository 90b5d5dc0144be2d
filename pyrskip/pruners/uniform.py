"""Pruner `uniform`: every so many-th token, whatever it shows: plain downsampling, beside which a pruner must
show its gain (VTC-Bench, arXiv:2510.07143)."""

import torch
from torch import Tensor

from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable


@PRUNERS.register("uniform")
class UniformPruner(KeepingPruner):
    """Of n tokens, in their order, K stay: the middles of K runs of equal length, places
    floor((2 i + 1) n / 2 K)."""

    blind = True

    def keep(self, seen: Prunable) -> Tensor:
        count = seen.real.sum(-1, keepdim=True)
        stays = self.stays(count)
        places = torch.arange(seen.real.shape[1], device=count.device)
        middles = (2 * places + 1) * count // (2 * stays).clamp(min=1)
        keep = torch.zeros_like(seen.real, dtype=torch.int64)
        return keep.scatter_add(1, middles.clamp(max=len(places) - 1), (places < stays).long()) > 0
