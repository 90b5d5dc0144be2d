"""Selections of single tiles by rules that nobody learned, from rollout tables alone.

Axes: N questions, T tiles, P points of a method.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyrskip.gates import skipping
from pyrskip.gates.pixels import MEASURES
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable

TIMES = (0.5, 1.0, 2.5)
"""How many times as many places as the published thresholds let through are looked at closely."""
WEIGHTS = {"entropy": 0.3, "peak": 0.3, "coupling": 0.4}
"""ARR-COC's, of information, salience and query-content coupling."""
REDUNDANT, FORESEEN = "skip:redundant", "skip:foreseen"
NAMES = (*skipping.CRITERIA, "skip:side", FORESEEN, REDUNDANT, "arr_coc:regions", "arr_coc:top")


def rules(tables: Mapping[str, RolloutTable], split: str, pyramid: Pyramid) -> Iterator[tuple[str, Tensor]]:
    """Method -> what it keeps, [P, N, T] bool: padding never. Those of measures only where tables hold them,
    those of neighbouring levels where they hold what these have in common, ARR-COC's where they hold the
    question's likeness to every tile."""
    table, gate = tables[split], tables["gate"]
    real = (pyramid.capacity(table.size) > 0)[table.image_of]
    texts = [table.texts[i] for i in table.query_of.tolist()]
    yield "skip:side", (skipping.named_side(texts, pyramid) & real)[None]
    agree, agreed = table.agreement, gate.agreement
    if agree is not None and agreed is not None:
        kept = [skipping.unlike(agree[table.image_of], agreed, share, pyramid) for share in skipping.KEPT]
        yield REDUNDANT, torch.stack(kept) & real
    if "statistics" not in table.signals["image"] or "statistics" not in gate.signals["image"]:
        return
    own, known = (of.signals["image"]["statistics"] for of in (table, gate))
    own = own[table.image_of]
    for name, measure in skipping.CRITERIA.items():
        kept = [skipping.measured(own, known, measure, share, pyramid) for share in skipping.KEPT]
        yield name, torch.stack(kept) & real
    if agreed is not None:
        there = pyramid.capacity(gate.size) > 0
        predicted, fitted = (skipping.foreseen(of, known, agreed, there, pyramid) for of in (own, known))
        kept = [skipping.unlike(predicted, fitted, share, pyramid) for share in skipping.KEPT]
        yield FORESEEN, torch.stack(kept) & real
    if table.similarity is None or gate.similarity is None:
        return
    columns = {name: MEASURES.index(name) for name in WEIGHTS if name in MEASURES}
    ranks = {name: skipping.ranks(own[..., i], known[..., i], pyramid) for name, i in columns.items()}
    ranks["coupling"] = skipping.ranks(table.similarity, gate.similarity, pyramid)
    weighed = torch.stack([weight * ranks[name] for name, weight in WEIGHTS.items()]).sum(0)
    kept = [skipping.by_thresholds(weighed, times, pyramid) for times in TIMES]
    yield "arr_coc:regions", torch.stack(kept) & real
    even = torch.stack([ranks[name] for name in WEIGHTS]).mean(0)
    yield "arr_coc:top", skipping.top_places(even, real, pyramid)[None]
