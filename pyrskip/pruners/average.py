"""Pruner `average`: means of neighbours: plain downsampling, beside which a pruner must show its gain
(VTC-Bench, arXiv:2510.07143)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable, Pruner


@PRUNERS.register("average")
class AveragePruner(Pruner):
    """Of n tokens in their order K stay, the means of neighbours along a row of the map: adaptive average
    pooling in one dimension, tile by tile. A tile has its share of K by its tokens, by largest remainder, the
    finer tile first; one that has none is left out."""

    def prune(self, seen: Prunable) -> Kept:
        rows = []
        for row, stays in enumerate(self.stays(seen.real.sum(-1)).tolist()):
            tokens, tile = seen.row(row)
            tiles, counts = tile.unique(return_counts=True)
            shares = apportioned(counts.double(), stays).tolist()
            means = [
                F.adaptive_avg_pool1d(tokens[tile == of].T[None], share)[0].T
                for of, share in zip(tiles.tolist(), shares, strict=True)
                if share
            ]
            of = tiles.repeat_interleave(torch.tensor(shares, device=tile.device, dtype=torch.int64))
            rows.append((torch.cat(means) if means else tokens[:0], of))
        return Kept.stacked(rows, seen)


def apportioned(weight: Tensor, total: int) -> Tensor:
    """Whole shares [P] of a total by weights [P], by largest remainder; of equal remainders the first."""
    exact = weight * total / weight.sum().clamp(min=1e-12)
    share = (exact + 1e-9).floor().long()
    left = total - int(share.sum())
    share[(exact - share).argsort(descending=True, stable=True)[:left]] += 1
    return share
