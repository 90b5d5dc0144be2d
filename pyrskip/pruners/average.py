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

    blind = True

    def prune(self, seen: Prunable) -> Kept:
        rows = []
        for row, stays in enumerate(self.stays(seen.real.sum(-1)).tolist()):
            tokens, tile = seen.row(row)
            tiles, counts = tile.unique(return_counts=True)
            shares = apportioned(counts.double(), stays).tolist()
            means, places = [tokens[:0]], [tile[:0]]
            for of, share in zip(tiles.tolist(), shares, strict=True):
                if share:
                    own = (tile == of).nonzero()[:, 0]
                    means.append(F.adaptive_avg_pool1d(tokens[own].T[None], share)[0].T)
                    places.append(own[middles(len(own), share, own.device)])
            rows.append((torch.cat(means), torch.cat(places)))
        return Kept.stacked(rows, seen)


def middles(count: int, share: int, device: torch.device) -> Tensor:
    """The middle [share] of each window of `adaptive_avg_pool1d` over so many."""
    window = torch.arange(share, device=device)
    first, last = window * count // share, -(-(window + 1) * count // share) - 1
    return (first + last) // 2


def apportioned(weight: Tensor, total: int) -> Tensor:
    """Whole shares [P] of a total by weights [P], by largest remainder; of equal remainders the first."""
    exact = weight * total / weight.sum().clamp(min=1e-12)
    share = (exact + 1e-9).floor().long()
    left = total - int(share.sum())
    share[(exact - share).argsort(descending=True, stable=True)[:left]] += 1
    return share
