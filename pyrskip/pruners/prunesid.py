"""Pruner `prunesid`: PruneSID (arXiv:2603.09480): visual tokens grouped by principal components, and in each
group those that are attended to and not alike."""

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.pruners.pruner import PRUNERS, KeepingPruner, Prunable, rank, unit

PER_GROUP, THRESHOLD, MOST = 4, 32, (5, 64)
"""Tokens that stay for a principal component; what the threshold of likeness is over; a group keeps at most
5 ceil(k / 64)."""


@PRUNERS.register("prunesid")
class PruneSid(KeepingPruner):
    """The tokens are the variables of a principal component analysis of sigmoid(tokens), the features its
    samples, with k / 4 components where k stay; a token is of the component of its largest loading. In a
    group, the most salient first (salience stands for the attention of CLS here), a token falls to one before
    it that it is more like, by cosine, than k / 32 times the mean of all pairs. Groups keep one token and a
    share of the rest by how many survive, at most 5 ceil(k / 64), their survivors before others, the salient
    first; what is missing is filled up with survivors of any group, then with others, by salience."""

    needs = ("salience",)

    def keep(self, seen: Prunable) -> Tensor:
        salience = seen.beside["salience"][0].double()

        def pick(row: int, count: int) -> Tensor:
            tokens, _ = seen.row(row)
            order = rank(salience[row, None, : len(tokens)], torch.ones(1, len(tokens), dtype=torch.bool))[0]
            return picked(tokens, order, count)

        return self.by_row(seen, pick)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of the covariance of tokens and of their cosines; what finds the components is no matrix
        product."""
        return 4.0 * language.width * tokens.double() ** 2


def picked(tokens: Tensor, order: Tensor, count: int) -> Tensor:
    """The places [count] of those of tokens [n, D] that stay; order [n]: each one's place by salience."""
    n = len(tokens)
    group = groups(tokens, count // PER_GROUP)
    cosine = unit(tokens) @ unit(tokens).T
    pairs = cosine.sum() - cosine.diagonal().sum()
    threshold = count / THRESHOLD * pairs / max(n * (n - 1), 1)
    survives = torch.ones(n, dtype=torch.bool, device=tokens.device)
    by_salience = order.argsort()
    for place in by_salience.tolist():
        if survives[place]:
            alike = (group == group[place]) & (cosine[place] > threshold) & (order > order[place])
            survives &= ~alike
    # of what survives first, by salience
    first = order + n * (~survives)
    taken = torch.zeros_like(survives)
    kinds, of = group.unique(return_inverse=True)
    kinds = torch.arange(len(kinds), device=tokens.device)
    size = torch.bincount(of, minlength=len(kinds))
    alive = torch.bincount(of[survives], minlength=len(kinds))
    most = torch.minimum(torch.minimum(size, alive), torch.tensor(MOST[0] * -(-count // MOST[1])))
    rest = (alive.cumsum(0).double() * max(count - len(kinds), 0) / alive.sum()).round().long()
    share = torch.minimum(1 + rest.diff(prepend=rest.new_zeros(1)), most)
    for kind in kinds.tolist():
        own = (of == kind).nonzero()[:, 0]
        taken[own[first[own].argsort()[: share[kind]]]] = True
    # too few: filled up; too many groups for the budget: the most salient of what was taken
    wanted = first + 2 * n * (~taken)
    return wanted.argsort()[:count]


def groups(tokens: Tensor, components: int) -> Tensor:
    """The principal component [n] that each of tokens [n, D] loads on most."""
    samples = tokens.sigmoid().T
    samples = samples - samples.mean(0)
    directions = torch.linalg.eigh(samples.T @ samples).eigenvectors
    # of more there is nothing but rounding
    components = max(min(components, samples.shape[0] - 1), 1)
    loading: Tensor = directions.flip(-1)[:, :components].abs()
    return loading.argmax(-1)
