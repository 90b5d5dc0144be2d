"""When to skip a region, by rules that no reward taught: it does not stand out, its texture is homogeneous,
the question names another side, or it shows what the next coarser level does.

Axes: N questions, T tiles. Each gives what is kept, [N, T] bool, the glance always; padding may be kept.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.gates.measures import finest, rank
from pyrskip.gates.pixels import MEASURES
from pyrskip.pyramid import Pyramid

CRITERIA = {"skip:salience": "peak", "skip:texture": "entropy"}
"""Rule -> the measure of a tile whose low values are skipped."""
KEPT = (0.2, 0.5)
"""Shares of a level's tiles that these rules keep, over all images of the gate's rollouts."""
SIDES = {
    "left": (0, 0.0, 0.5),
    "right": (0, 0.5, 1.0),
    "top|upper": (1, 0.0, 0.5),
    "bottom|lower": (1, 0.5, 1.0),
}
"""Words of a side -> axis, from where to where."""
PATCHES = 200 / 32**2
"""Share of places that ARR-COC's public code keeps, whatever the image: 200 of 32 x 32."""


def measured(statistics: Tensor, known: Tensor, name: str, share: float, pyramid: Pyramid) -> Tensor:
    """The tiles whose measure is among the highest share of those of their level. statistics [N, T, M], known
    [K, T, M]: of the images that thresholds are taken from."""
    column = MEASURES.index(name)
    own = ranks(statistics[..., column], known[..., column], pyramid)
    return _glanced(own >= 1 - share, pyramid)


def unlike(agreement: Tensor, known: Tensor, share: float, pyramid: Pyramid) -> Tensor:
    """The tiles that are among the share of their level which is least like the next coarser one. agreement
    [N, T] (`pyrskip.models.tiles`), known [K, T]: of the images that thresholds are taken from."""
    return _glanced(ranks(-agreement, -known, pyramid) >= 1 - share, pyramid)


def foreseen(statistics: Tensor, known: Tensor, agreement: Tensor, real: Tensor, pyramid: Pyramid) -> Tensor:
    """Agreement as the glance's own pixels tell it: the linear function of a level's measures that is nearest
    to it by least squares. statistics [N, T, M]; known [K, T, M], agreement [K, T] and real [K, T] bool of
    the images that it is fitted to, padding apart -> [N, T] float64, 0 of the glance."""
    found = torch.zeros(statistics.shape[:2], dtype=torch.float64)
    for level in range(pyramid.levels - 1):
        of = pyramid.tile_level == level
        have, fit = (F.pad(s[:, of].double(), (0, 1), value=1.0) for s in (statistics, known))
        some = real[:, of]
        weight = torch.linalg.lstsq(fit[some], agreement[:, of][some].double()[:, None]).solution
        found[:, of] = (have @ weight).squeeze(-1)
    return found


def named_side(texts: Sequence[str], pyramid: Pyramid) -> Tensor:
    """All tiles, but for those that lie wholly on the other side, at every level, of the one that a question
    names. One that names two opposite sides asks which it is."""
    kept = torch.ones(len(texts), pyramid.tiles, dtype=torch.bool)
    for row, text in enumerate(texts):
        found = [of for words, of in SIDES.items() if re.search(rf"\b({words})\b", text.lower())]
        for axis, start, end in found:
            if sum(of[0] == axis for of in found) == 1:
                low, high = pyramid.tile_box[:, axis], pyramid.tile_box[:, axis + 2]
                kept[row] &= (low < end) & (high > start)
    return _glanced(kept, pyramid)


def by_thresholds(relevance: Tensor, times: float, pyramid: Pyramid) -> Tensor:
    """One level's tile at each place, by ARR-COC's thresholds (`measures.finest`). relevance [N, T] in 0..1,
    of which the finest level's counts."""
    g = pyramid.grid[0]
    level = finest(relevance[:, : g * g].flatten(), pyramid.levels, times).view(-1, g * g)
    centre = (pyramid.tile_box[: g * g, :2] + pyramid.tile_box[: g * g, 2:]) / 2
    inside = (centre[:, None] > pyramid.tile_box[:, :2]) & (centre[:, None] < pyramid.tile_box[:, 2:])
    of_place = inside.all(-1) & (pyramid.tile_level == level[..., None])  # [N, places, T]
    return _glanced(of_place.any(1), pyramid)


def top_places(relevance: Tensor, real: Tensor, pyramid: Pyramid) -> Tensor:
    """PATCHES of the finest level's tiles, those of the highest relevance [N, T], one at least. real [N, T]
    bool."""
    places = pyramid.grid[0] ** 2
    own = relevance[:, :places].masked_fill(~real[:, :places], -1.0)
    best = own.topk(max(1, round(PATCHES * places)), dim=-1).indices
    kept = torch.zeros_like(real).scatter(1, best, True)
    return _glanced(kept & real, pyramid)


def ranks(values: Tensor, known: Tensor, pyramid: Pyramid) -> Tensor:
    """The share of known values [K, T] of its level that are below each [N, T], from 0 to 1, float64."""
    found = torch.zeros(values.shape, dtype=torch.float64)
    for level in range(pyramid.levels):
        of = pyramid.tile_level == level
        found[:, of] = rank(values[:, of].flatten(), known[:, of].flatten()).view(len(values), -1)
    return found


def _glanced(kept: Tensor, pyramid: Pyramid) -> Tensor:
    """A selection with the glance added."""
    return kept | (torch.arange(pyramid.tiles) == pyramid.glance)
