"""Claims about rules that skip regions and that nobody learned."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyrskip.evaluation.methods import METHODS
from pyrskip.evaluation.regions import NAMES, rules
from pyrskip.gates.pixels import MEASURES
from pyrskip.gates.skipping import by_thresholds, measured, named_side, ranks, top_places
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable
from tests.tables import synthetic_table

PYRAMID = Pyramid(256, 4, 8, (4, 2, 2, 1))
FINE, T = 16, PYRAMID.tiles


def statistics(rows: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(rows, T, len(MEASURES), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_measure_keeps_the_highest_share_of_each_level_and_the_glance(share: float) -> None:
    known = statistics(400, seed=1)
    kept = measured(known, known, "peak", share, PYRAMID)
    assert kept[:, -1].all()
    for level in range(3):
        of = PYRAMID.tile_level == level
        assert float(kept[:, of].float().mean()) == pytest.approx(share, abs=0.01)
        values = known[..., MEASURES.index("peak")][:, of]
        if share < 1:
            assert values[kept[:, of]].min() > values[~kept[:, of]].max()


def test_a_rank_is_a_tiles_own_and_among_its_level() -> None:
    values = statistics()[..., 0]
    found = ranks(values, values, PYRAMID)
    assert found.min() == 0 and found.max() < 1
    raised = values.clone()
    raised[:, PYRAMID.tile_level == 1] += 5  # another level's are no yardstick
    assert ranks(raised, values, PYRAMID)[:, :FINE].equal(found[:, :FINE])
    assert ranks(values[:3], values, PYRAMID).equal(found[:3])


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("what is on the left?", (0, 1), (0, 1, 2, 3)),
        ("what does the sign in the upper right say?", (2, 3), (0, 1)),
        ("is the dog on the left or on the right?", (0, 1, 2, 3), (0, 1, 2, 3)),
        ("is it on the left, right, top or bottom?", (0, 1, 2, 3), (0, 1, 2, 3)),
        ("what is left at the bottom?", (0, 1), (2, 3)),
        ("what is brightest?", (0, 1, 2, 3), (0, 1, 2, 3)),
    ],
)
def test_what_lies_on_the_other_side_of_a_named_one_is_skipped_at_every_level(
    text: str, columns: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    kept = named_side([text], PYRAMID)[0]
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    for row in rows:
        wanted[row, list(columns)] = True
    assert kept[:FINE].view(4, 4).equal(wanted)
    for low in (16, 20):  # levels 1 and 2, of quarters
        assert kept[low : low + 4].view(2, 2).equal(wanted[::2, ::2])
    assert kept[-1]


def test_relevance_over_the_sources_thresholds_gives_each_place_one_level() -> None:
    relevance = torch.zeros(1, T, dtype=torch.float64)
    relevance[0, :FINE] = torch.tensor(
        [0.9, 0.81, 0.8, 0.6, 0.51, 0.5, 0.4, 0.31, 0.3, 0.1, *[0.0] * 6], dtype=torch.float64
    )
    kept = by_thresholds(relevance, 1.0, PYRAMID)[0]
    assert kept[:FINE].nonzero().flatten().tolist() == [0, 1]  # above 0.8
    assert (kept[16:20].nonzero().flatten()).tolist() == [0, 1]  # 0.8, 0.6 and 0.51 lie in the upper quarters
    assert (kept[20:24].nonzero().flatten()).tolist() == [0, 1]  # 0.5, 0.4 and 0.31 as well
    assert kept[-1]


def test_the_public_codes_rule_keeps_as_many_places_of_every_picture() -> None:
    relevance, real = statistics()[..., 0], torch.ones(30, T, dtype=torch.bool)
    kept = top_places(relevance, real, PYRAMID)
    assert kept[:, :FINE].sum(-1).eq(3).all()  # 200 of 1,024 is 3 of 16
    assert not kept[:, FINE:-1].any() and kept[:, -1].all()
    best = relevance[:, :FINE].where(kept[:, :FINE], 2.0).amin(-1)
    assert (best >= relevance[:, :FINE].where(~kept[:, :FINE], -1.0).amax(-1)).all()


def gridded() -> RolloutTable:
    """A table of pictures that fill half of the canvas, with measures."""
    table = synthetic_table(images=4)
    images, questions = len(table.image_keys), len(table)
    signals = {**table.signals, "image": {**table.signals["image"], "statistics": statistics(images)}}
    similarity = torch.rand(questions, T, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[256, 128]]).expand(images, 2)
    return replace(table, signals=signals, similarity=similarity, size=size)


def test_every_rule_says_what_it_keeps_and_keeps_no_padding() -> None:
    table = gridded()
    found = dict(rules({"gate": table, "val": table}, "val", PYRAMID))
    assert tuple(sorted(found)) == tuple(sorted(NAMES)) and set(NAMES) <= set(METHODS)
    real = PYRAMID.capacity(table.size[:1])[0] > 0
    for kept in found.values():
        assert kept.shape[1:] == (len(table), T) and kept[..., -1].all() and not kept[..., ~real].any()


def test_rules_leave_out_what_a_table_does_not_hold() -> None:
    table = replace(gridded(), similarity=None)
    assert set(dict(rules({"gate": table, "val": table}, "val", PYRAMID))) == {
        "skip:side",
        "skip:salience",
        "skip:texture",
    }
    bare = replace(table, signals={**table.signals, "image": {}})
    assert set(dict(rules({"gate": bare, "val": table}, "val", PYRAMID))) == {"skip:side"}
