"""Pruner `divprune`: DivPrune (arXiv:2503.02175): the visual tokens that differ most from each other."""

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable, unit


@PRUNERS.register("divprune")
class DivPrune(KeepingPruner):
    """Max-min diversity, greedily: the token that is farthest from its nearest other, by cosine distance,
    then again and again the one that is farthest from those taken. Of equals the first."""

    def keep(self, seen: Prunable) -> Tensor:
        tokens, real = unit(seen.tokens), seen.real
        rows, count = torch.arange(len(real), device=real.device), real.shape[1]
        distance = 1 - tokens @ tokens.transpose(1, 2)
        far = distance.masked_fill(~real[:, None], 4.0)  # what is not there is near to nothing
        far = far.masked_fill(torch.eye(count, dtype=torch.bool, device=real.device), 4.0)
        nearest, keep = far.amin(-1), torch.zeros_like(real)
        stays = self.stays(real.sum(-1))
        for taken in range(int(stays.amax()) if len(stays) else 0):
            place = nearest.masked_fill(keep | ~real, -1.0).argmax(-1)
            keep[rows, place] |= taken < stays
            nearest = torch.minimum(nearest, distance[rows, place]) if taken else distance[rows, place]
        return keep

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        return 2.0 * language.width * tokens.double() ** 2  # of cosines
