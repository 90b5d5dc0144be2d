"""Arrays of inference that have no home in a graph: a map's pooled tokens, padded ids.

Axes: B rows, W words, C channels, h x w cells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrskip.pyramid import bins

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def pool(features: Floats, pooled: Ints) -> Floats:
    """Adaptive average pooling of a map of valid cells: [C, rows, columns] to [h * w, C]."""
    channels, *cells = features.shape
    if tuple(cells) != tuple(pooled):
        rows, columns = (
            bins(np.array([cell]), np.array([n]), n, cell)[0]
            for cell, n in zip(cells, pooled.tolist(), strict=True)
        )
        features = np.einsum("hr,crk,wk->chw", rows, features, columns, optimize=True)
    return np.ascontiguousarray(features.reshape(channels, -1).T)


def pad_ids(rows: Sequence[Sequence[int]]) -> tuple[Ints, NDArray[Any]]:
    """Token ids as [B, W] int64, 0 in padding, and which are words [B, W] bool."""
    width = max(map(len, rows))
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
    return ids, np.arange(width) < np.array([len(row) for row in rows])[:, None]
