"""Pruner `visionzip`: VisionZip (arXiv:2412.04467): the tokens that the encoder attends to most, and means of
the others; the question is not read."""

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.pruners.pruner import PRUNERS, Kept, Prunable, Pruner, rank, unit

CONTEXTUAL = 5, 32
"""Share of the tokens that stay that are means of others, rounded down: the paper's 10 of 64, 20 of 128 and
30 of 192."""


@PRUNERS.register("visionzip")
class VisionZip(Pruner):
    """Dominant tokens are those of the highest salience, which stands for the attention of CLS here. Of the
    others every so many-th is a target, evenly from the first on; each of the rest joins the target that it
    is most like, by cosine of the projected tokens (the paper's are the encoder's keys), and a target becomes
    the mean of itself and those. Tokens keep their order."""

    needs = ("salience",)

    def prune(self, seen: Prunable) -> Kept:
        order = rank(seen.beside["salience"][0], seen.real)
        rows = []
        for row, stays in enumerate(self.stays(seen.real.sum(-1)).tolist()):
            tokens, tile = seen.row(row)
            merged = stays * CONTEXTUAL[0] // CONTEXTUAL[1]
            rest = (order[row, : len(tile)] >= stays - merged).nonzero()[:, 0]
            targets = rest[torch.arange(merged, device=rest.device) * (len(rest) // max(merged, 1))]
            keep = torch.ones(len(tile), dtype=torch.bool, device=tile.device)
            keep[rest] = False
            if merged:
                tokens = _joined(tokens, targets, rest)
                keep[targets] = True
            rows.append((tokens[keep], keep.nonzero()[:, 0]))
        return Kept.stacked(rows, seen)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of cosines between what joins and its targets."""
        stays = self.stays(tokens)
        merged = stays * CONTEXTUAL[0] // CONTEXTUAL[1]
        joining = tokens - stays
        return 2.0 * language.width * joining.double() * merged


def _joined(tokens: Tensor, targets: Tensor, rest: Tensor) -> Tensor:
    """tokens [n, D] with each target the mean of itself and those of the rest that are most like it."""
    joining = rest[~torch.isin(rest, targets)]
    alike = unit(tokens[joining]) @ unit(tokens[targets]).T
    target = targets[alike.argmax(-1)]
    total = tokens.index_add(0, target, tokens[joining])
    size = torch.ones(len(tokens), dtype=tokens.dtype, device=tokens.device)
    size = size.index_add(0, target, torch.ones_like(size[joining]))
    return total / size[:, None]
