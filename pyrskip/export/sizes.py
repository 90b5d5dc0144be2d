"""What a number of pictures, such as their tokens, follows from: found by measuring some sizes.

Axes: N sizes, R rows, C columns of a picture, in pixels.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pyrskip.errors import UserError
from pyrskip.inference.outside import BySize

PROBES = 500
FEW = 40
"""Probes where a server is asked about every size."""
CLOSE = 1e-6
"""Relative tolerance of FLOPs, which a model may compute in float32."""
THIN = 32
"""Pixels of the short side of pictures that are probed as well: processors treat what is less than a token
in ways of their own."""
LINE = 64
"""Pixels of the short side of pictures whose long side is every one that there is: small, so that nothing is
too large; an eighth of the largest where that is more, so that nothing is too small."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Measure = Callable[[Ints], Floats]
Kinds = Callable[[], Ints]
"""The number of the kind of every size [R, C]: pictures of a kind are alike to the model."""


def by_size(
    measure: Measure, side: int, probes: int = PROBES, kinds: Sequence[Kinds] = (), rtol: float = CLOSE
) -> BySize:
    """The rule behind a number of every picture of up to `side` pixels a side: the shortest that gives it for
    all squares and at `probes` random sizes, else the table of all sizes.

    measure: sizes [N, 2] -> [N] above 0; it may raise UserError or ValueError for a size that the model does
    not take. kinds: each tried in turn, so that one size of a kind is measured; those that the probes refute
    are not believed, and where all are, every size is measured. Raises UserError in place of a table where
    there are FEW probes.
    """

    def found(size: Ints) -> Floats:
        return measured(measure, size)

    def fits(rule: BySize, size: Ints) -> bool:
        return np.allclose(rule.known(size), found(size), rtol=rtol, atol=0)

    rng = np.random.default_rng(0)
    random = rng.integers(1, side + 1, (probes, 2))
    squares = np.repeat(np.arange(1, side + 1)[:, None], 2, axis=1)
    for rule in _formulas(found, squares):
        if all(fits(rule, size) for size in (random[:FEW], squares, random[FEW:])):  # a few refute most
            return rule
    if probes == FEW:
        raise UserError(
            "model.remote.processor='': the tokens that the server counts follow no rule, and it would have "
            f"to be asked about {side**2} sizes of pictures; allowed: a folder with the model's processor"
        )
    thin = rng.permuted(rng.integers(1, [min(side, THIN) + 1, side + 1], (probes, 2)), axis=1)
    for way in kinds:
        rule = _table(way(), found)
        if fits(rule, random) and fits(rule, thin):
            return rule
    return BySize.table(found(every(side)).reshape(side, side))


def by_lines(measure: Measure, side: int) -> Ints:
    """Kinds of sizes whose rows are alike along a line of small columns, and whose columns are alike along
    one of small rows: right where rows and columns are rounded on their own."""
    line = min(side, max(LINE, side // 8))
    long, short = np.arange(1, side + 1), np.full(side, line)
    rows, columns = (
        np.cumsum(np.diff(found, prepend=found[0]) != 0)
        for found in (
            measured(measure, np.stack([long, short], axis=1)),
            measured(measure, np.stack([short, long], axis=1)),
        )
    )
    kinds: Ints = rows[:, None] * side + columns
    return kinds


def every(side: int) -> Ints:
    """All sizes, [R x C, 2]."""
    sizes: Ints = np.indices((side, side)).reshape(2, -1).T + 1
    return sizes


def measured(measure: Measure, size: Ints) -> Floats:
    """The measure of each of sizes [N, 2]; 0 for one that the model does not take."""
    try:
        return measure(size)
    except (UserError, ValueError):
        if len(size) == 1:
            return np.zeros(1)
        half = len(size) // 2
        return np.concatenate([measured(measure, size[:half]), measured(measure, size[half:])])


def _formulas(found: Measure, squares: Ints) -> Iterator[BySize]:
    """Rules that squares suggest: one number, or one for every begun square of pixels."""
    yield BySize("fixed", more=float(found(squares[-1:])[0]))
    (first,) = found(squares[:1])
    for number in range(1, len(squares)):
        (value,) = found(squares[number : number + 1])
        if value != first:
            each = float(value - first) / 3  # from one square of pixels to four
            yield BySize("pixels", more=float(first) - each, each=each, side=number)
            return


def _table(kinds: Ints, found: Measure) -> BySize:
    """kinds [R, C]; found once of each."""
    _, first, of = np.unique(kinds, return_index=True, return_inverse=True)
    size = np.stack([first // kinds.shape[1] + 1, first % kinds.shape[1] + 1], axis=1)
    return BySize.table(found(size)[of.reshape(kinds.shape)])
