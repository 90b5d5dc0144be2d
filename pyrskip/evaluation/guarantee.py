"""A guaranteed retention: which settings of a dial keep the asked share of full's score on new images, with a
stated confidence.

What is guaranteed is of an image drawn anew, and a question drawn from those on it: the expected score is at
least `asked` x full's. The confidence is over the draw of the held-out images: at most 1 - confidence of all
such guarantees are false, each counted for itself. It needs images that are drawn as new ones will be, and
that nothing was fitted to or chosen by.

Settings are tried from the safest one on, and the first that fails ends it, so that trying many costs no
confidence: the fixed sequence of Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021,
arXiv:2110.01052). Each test is a bet against "it keeps less than asked", image by image
(Waudby-Smith and Ramdas 2020, arXiv:2010.09686, section 4): valid for any number of images, and sharp where
answers seldom differ.

Axes: N questions, M images, P settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOLDNESS = 0.9
"""The largest bet, of one that may lose everything on a single image."""
MOST_IMAGES = 100_000
"""How many images are looked for to carry a guarantee, at most."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Guarantee:
    """What was asked of a dial, and what the held-out images carry.

    asked: share of full's score, above 0; confidence: in (0, 1). guaranteed: whether a setting holds; kept:
    what the chosen one, else the safest one, keeps of full's score on the held-out images, None where that is
    0. images: held out; images_needed: about so many like them carry the safest setting, None where they
    carry it already, or where MOST_IMAGES do not. largest: what these images carry for answers that are
    full's own.
    """

    asked: float
    confidence: float
    guaranteed: bool
    kept: float | None
    images: int
    images_needed: int | None
    largest: float


def guarantee(
    score: Floats, full: Floats, cost: Sequence[float], asked: float, confidence: float
) -> tuple[int, Guarantee]:
    """The setting to take: the cheapest that holds, else the first; and what it promises.

    score [P, M] in [0, 1]: a setting's mean score on each image, the safest setting first, in an order that
    these scores did not choose; full [M]: full's; cost: P.
    """
    passed = 0
    while passed < len(score) and passes(score[passed] - asked * full, asked, confidence):
        passed += 1
    chosen = min(range(passed), key=lambda i: cost[i], default=0)
    needed = None if passed else images_needed(score[0] - asked * full, asked, confidence)
    kept = float(score[chosen].sum() / full.sum()) if full.sum() else None
    most = largest(full, confidence)
    return chosen, Guarantee(asked, confidence, passed > 0, kept, len(full), needed, most)


def by_image(score: ArrayLike, image_of: ArrayLike, images: Sequence[int]) -> Floats:
    """Mean score on each of `images`, in their order: score [P, N], image_of [N] int -> [P, M]. Each holds
    a question."""
    of, values = np.asarray(image_of), np.asarray(score, dtype=np.float64)
    count = np.bincount(of)
    means = [np.bincount(of, weights=row) / np.maximum(count, 1) for row in values]
    return np.stack(means)[:, list(images)]


def passes(margin: Floats, asked: float, confidence: float) -> bool:
    """Whether margins, in [-asked, 1], [M], in an order that they did not choose, have a mean above 0. Where
    it is not, this is true with a probability of at most 1 - confidence.

    The stake grows by 1 + bet x margin an image, and no bet knows its image: where the mean is 0 or less, the
    stake is a supermartingale, and reaches 1 / (1 - confidence) with at most that probability (Ville).
    """
    images = len(margin)
    if not images:
        return False
    width, threshold = 1 + asked, -math.log1p(-confidence)
    number = np.arange(2, images + 2)
    mean = ((1 - asked) / 2 + np.cumsum(margin)) / number
    spread = (width**2 / 4 + np.cumsum((margin - mean) ** 2)) / number
    before = np.concatenate([[width**2 / 4], spread[:-1]])
    bet = np.minimum(BOLDNESS / asked, np.sqrt(2 * threshold / (images * before)))
    return bool(np.cumsum(np.log1p(bet * margin)).max() >= threshold)


def images_needed(margin: Floats, asked: float, confidence: float) -> int | None:
    """About how many images with these margins [M], again and again, pass, to a tenth; None where MOST_IMAGES
    do not."""
    if not len(margin) or margin.mean() <= 0:
        return None
    images = float(len(margin))
    while images <= MOST_IMAGES:
        if passes(np.resize(margin, math.ceil(images)), asked, confidence):
            return math.ceil(images)
        images *= 1.1
    return None


def largest(full: Floats, confidence: float) -> float:
    """The largest retention that images carry where every answer is full's, to 0.0001; 0 where they carry
    none. full [M]: full's mean score on each image."""
    low, high = 0, 10_000
    while high - low > 1:
        middle = (low + high) // 2
        asked = middle / 10_000
        low, high = (middle, high) if passes((1 - asked) * full, asked, confidence) else (low, middle)
    return low / 10_000


def said(of: Sequence[Mapping[str, Any]]) -> str:
    """What the guarantees of one retention come to, in words. of: of each seed, as summary.json has them."""
    first, good = of[0], sum(bool(one["guaranteed"]) for one in of)
    confidence = f"with {100 * first['confidence']:g} % confidence"
    if good:
        rest = f" for {good} of {len(of)} seeds, the others take their safest price" * (good < len(of))
        return f"guaranteed {confidence} by {first['images']} held-out images{rest}"
    limit = f", which carry {first['largest']:.2%} where every answer is full's" * (
        first["asked"] > first["largest"]
    )
    return (
        f"not guaranteed {confidence} by {first['images']} held-out images{limit}; {_missing(of)}; the "
        "safest price is taken"
    )


def _missing(of: Sequence[Mapping[str, Any]]) -> str:
    needed = [one["images_needed"] for one in of]
    kept = [one["kept"] for one in of if one["kept"] is not None]
    if all(needed):
        return f"it would take about {max(needed)}"
    if not kept:
        return "full scores nothing there"
    if min(kept) <= of[0]["asked"]:
        return f"the safest price keeps {min(kept):.2%} of them, and more would not help"
    return f"it would take more than {MOST_IMAGES}"
