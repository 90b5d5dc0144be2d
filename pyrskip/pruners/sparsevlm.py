"""Pruner `sparsevlm`: SparseVLM (arXiv:2410.04417): behind layers 2, 6 and 15 of 32, visual tokens leave that
the words of the question that rate pictures hardly attend to, and some of them come back merged."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.pruners.inside import InsidePruner
from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable, rank, rounded_up

TABLE = {0: (0, 0, 0), 64: (66, 30, 17), 128: (303, 110, 36), 192: (300, 200, 110), 576: (576, 576, 576)}
"""Tokens of 576 that a mean budget leaves behind each step; between these budgets in proportion."""
WHOLE = 576
RECYCLED = 0.3
"""Share of what leaves that comes back, merged."""
NEIGHBOURS = 5
"""Of the density that clusters are found by."""


@PRUNERS.register("sparsevlm")
class SparseVlm(InsidePruner):
    """Raters are the words whose share of the pictures' softmax over words, averaged over visual tokens, is
    above the mean word's, by the products of projected tokens and embedded words. A token's score is the
    attention of the raters on it, heads and raters averaged. Of the tokens that a step drops the best 30% are
    clustered by density peaks into floor(n / 10) + 1, and each cluster stays as its mean, beside those that
    the table has. ratio and tokens are the paper's budgets, over 576: a mean over its layers. How many stay
    by the rank of the raters' attention, as in its first version, is not had: what a decision costs must be
    known before it is taken."""

    needs = ("text", "attention")
    places = (2, 6, 15)
    rows = "words"

    def begin(self, seen: Prunable) -> Mapping[str, tuple[Tensor, ...]]:
        words, mask = seen.beside["text"]
        return {"raters": (raters(seen.tokens, seen.real, words, mask),)}

    def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
        attention, _ = seen.beside["attention"]
        (rating,) = seen.beside["raters"]
        score = (attention * rating[..., None]).sum(1) / rating.sum(-1, keepdim=True).clamp(min=1)
        order = rank(score, seen.real)
        rows = []
        for row, stays in enumerate(self.kept(number, whole).tolist()):
            tokens, tile = seen.row(row)
            place = order[row, : len(tile)]
            stays = min(stays, len(tile))
            keep = place < stays
            best = stays + int(_recycled(torch.tensor(len(tile) - stays)))
            again = ((place >= stays) & (place < best)).nonzero()[:, 0]
            if len(again):
                centres, of = density_peaks(tokens[again], len(again) // 10 + 1)
                total = torch.zeros_like(tokens[again]).index_add(0, of, tokens[again])
                size = torch.bincount(of, minlength=len(again))[:, None]
                keep[again[centres]] = True
                tokens = tokens.index_copy(0, again[centres], (total / size.clamp(min=1))[centres])
            rows.append((tokens[keep], keep.nonzero()[:, 0]))
        return Kept.stacked(rows, seen)

    def kept(self, number: int, whole: Tensor) -> Tensor:
        """How many tokens a step leaves as they are."""
        ratio = self.stays(whole).double() / whole.clamp(min=1)
        if not self.config.tokens:
            ratio = torch.full_like(whole, self.config.ratio, dtype=torch.float64)
        budgets, left = np.array(list(TABLE)) / WHOLE, np.array([of[number] for of in TABLE.values()]) / WHOLE
        share = torch.from_numpy(np.interp(ratio.cpu().numpy(), budgets, left)).to(whole.device)
        return rounded_up(share * whole)

    def left(self, number: int, before: Tensor, whole: Tensor) -> Tensor:
        stays = torch.minimum(self.kept(number, whole), before)
        recycled = _recycled(before - stays)
        return stays + _clusters(recycled) * (recycled > 0)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of attention, of choosing the raters, and of the distances between what is merged."""
        flops = super().flops(tokens, words, language)
        flops = flops + 2.0 * language.width * tokens.double() * words
        read = self.read(tokens, language.layers)
        for run, number in self.steps(language.layers).items():
            dropped = read[run - 1] - torch.minimum(self.kept(number, tokens), read[run - 1])
            flops = flops + 2.0 * language.width * _recycled(dropped).double() ** 2
        return flops


def _recycled(dropped: Tensor) -> Tensor:
    """How many of so many dropped tokens come back."""
    return (dropped.double() * RECYCLED + 1e-6).floor().long()


def _clusters(recycled: Tensor) -> Tensor:
    return recycled // 10 + 1


def raters(tokens: Tensor, real: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """The words [U, W] bool that rate pictures."""
    likely = (tokens.double() @ words.double().transpose(1, 2)).masked_fill(~mask[:, None], float("-inf"))
    share = (likely.softmax(-1) * real[..., None]).sum(1) / real.sum(-1, keepdim=True).clamp(min=1)
    mean = share.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return mask & (share > mean)


def density_peaks(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Clusters of tokens [n, D] by density peaks (Rodriguez and Laio 2014) with the density of the nearest
    neighbours (DPC-KNN, Du et al. 2016): the places of the centres [count], and each token's centre, its
    place [n].

    Density is exp(-mean squared distance to the 5 nearest others); a centre has much of it and is far from
    anything denser, of equals the first. A token is of the centre that it is nearest to.
    """
    n, width = tokens.shape
    square = (tokens**2).sum(-1)
    distance = (square[:, None] + square - 2 * tokens @ tokens.T).clamp(min=0).sqrt() / width**0.5
    near = distance.masked_fill(torch.eye(n, dtype=torch.bool, device=tokens.device), float("inf"))
    nearest = near.topk(min(NEIGHBOURS, n - 1), largest=False).values
    density = (-(nearest**2).mean(-1)).exp() if n > 1 else torch.ones_like(square)
    first = torch.arange(n, device=tokens.device)
    denser = (density > density[:, None]) | ((density == density[:, None]) & (first < first[:, None]))
    far = torch.where(denser, distance, float("inf")).amin(-1)
    far = torch.where(far.isinf(), distance.max(), far)
    centres = (density * far).argsort(descending=True, stable=True)[:count].sort().values
    of = centres[distance[:, centres].argmin(-1)]
    of[centres] = centres
    return centres, of
