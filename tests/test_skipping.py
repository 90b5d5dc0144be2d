"""Claims about rules that skip regions and that nobody learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods import METHODS
from pyrskip.evaluation.regions import NAMES, rules
from pyrskip.gates.pixels import MEASURES
from pyrskip.gates.skipping import by_thresholds, foreseen, measured, named_side, ranks, top_places, unlike
from pyrskip.models.tiles import agreement
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.rollouts.table import RolloutTable
from tests.models import every_tile, tiny_batch, tiny_model
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


def test_tiles_agree_with_the_coarser_level_as_their_features_correlate() -> None:
    pyramid = Pyramid(32, 2, 4, (2, 1))  # tiles of 4 x 4 cells, over a glance of 4 x 4
    glance = torch.tensor(
        [[0.0, 1.0, 3.0, 5.0], [2.0, 4.0, 1.0, 0.0], [7.0, 7.0, 0.0, 1.0], [7.0, 5.0, 0.0, 1.0]]
    )
    spread = glance.repeat_interleave(2, 0).repeat_interleave(2, 1)
    tiles = [
        spread[:4, :4] + 1,
        -2 * spread[:4, 4:],
        torch.ones(4, 4),
        torch.tensor([0.0, 0, 0, 1]).expand(4, 4),
    ]
    maps = [of[None, None] for of in (*tiles, glance)]
    every = pyramid.cells(torch.tensor([[32, 32]]))
    # of the last, columns 0 0 1 1 beside 0 0 0 1: .125 / sqrt(.25 x .1875)
    assert agreement(pyramid, maps, every)[0].tolist() == pytest.approx([1, -1, 0, 3**-0.5, 0], abs=1e-6)
    # over channels as well: two that are alike in both, but for how high they are, agree
    double = [torch.cat([of * 0, of * 0 + 9], dim=1) for of in maps]
    assert agreement(pyramid, double, every)[0].tolist() == pytest.approx([1, 1, 1, 1, 0], abs=1e-6)
    # three rows and a half of cells are valid in the first tile, and padding is nothing
    part = pyramid.cells(torch.tensor([[14, 16]]))
    maps[0] = maps[0].clone()
    maps[0][..., 3:, :] = 0.0
    whole = agreement(pyramid, maps, every)[0, 0]
    assert whole < 0.99 and part[0, 0].tolist() == [4, 4]
    part[0, 0, 0] = 3
    assert agreement(pyramid, maps, part)[0].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-6)


def test_what_is_least_like_the_coarser_level_is_kept() -> None:
    known = torch.rand(400, T, generator=torch.Generator().manual_seed(2))
    kept = unlike(known, known, 0.2, PYRAMID)
    for level in range(3):
        of = PYRAMID.tile_level == level
        assert float(kept[:, of].float().mean()) == pytest.approx(0.2, abs=0.01)
        assert known[:, of][kept[:, of]].max() < known[:, of][~kept[:, of]].min()
    assert kept[:, -1].all()


def test_agreement_is_foreseen_by_a_linear_function_of_the_measures_of_each_level() -> None:
    known, own = statistics(400, seed=1), statistics(5)
    weight = torch.tensor([[0.3, -0.5, 0.0, 0.1], [0.0, 0.0, 0.2, -0.4], [0.1, 0.1, 0.1, 0.1]])
    level = PYRAMID.tile_level.clamp(max=2)

    def told(of: Tensor) -> Tensor:
        return (of * weight[level]).sum(-1) + level

    real = torch.ones(400, T, dtype=torch.bool)
    real[300:] = False  # what is padding says nothing
    found = foreseen(own, known, told(known) * real, real, PYRAMID)
    assert torch.allclose(found[:, :-1], told(own)[:, :-1].double(), atol=1e-5) and not found[:, -1].any()
    noise = torch.rand(known.shape[:2], generator=torch.Generator().manual_seed(3))
    flat = foreseen(own, known, noise, real, PYRAMID)  # of what has nothing to do with them its mean, nearly
    assert (flat[:, :-1] - 0.5).abs().max() < 0.1


def gridded() -> RolloutTable:
    """A table of pictures that fill half of the canvas, with measures."""
    table = synthetic_table(images=4)
    images, questions = len(table.image_keys), len(table)
    signals = {**table.signals, "image": {**table.signals["image"], "statistics": statistics(images)}}
    similarity = torch.rand(questions, T, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[256, 128]]).expand(images, 2)
    agreement = torch.rand(images, T, generator=torch.Generator().manual_seed(1))
    return replace(table, signals=signals, similarity=similarity, size=size, agreement=agreement)


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
        "skip:redundant",
        "skip:foreseen",
    }
    bare = replace(table, signals={**table.signals, "image": {}})
    assert set(dict(rules({"gate": bare, "val": table}, "val", PYRAMID))) == {"skip:side", "skip:redundant"}
    closed = replace(bare, agreement=None)
    assert set(dict(rules({"gate": closed, "val": closed}, "val", PYRAMID))) == {"skip:side"}


def test_who_compares_levels_has_encoded_them_all_and_who_foresees_it_has_not() -> None:
    table = gridded()
    kept = torch.zeros(1, len(table), dtype=torch.int64)
    names = ("skip:redundant", "skip:foreseen", "skip:side", "arr_coc:top")
    inputs = Inputs(
        dict.fromkeys(("gate", "val", "test"), table), PYRAMID, BudgetRule(), {}, [0], [0.3], {}, {},
        unlisted={(name, 0, "test"): kept for name in names},
    )  # fmt: skip
    found = {name: next(iter(METHODS[name].decisions(inputs, "test"))) for name in names}
    assert [found[name].encodes_all for name in names] == [True, False, False, True]
    assert [found[name].projects_all for name in names] == [False, False, False, True]


def test_rollouts_hold_how_far_levels_agree_and_a_table_keeps_it(tmp_path: Path) -> None:
    model, batch = tiny_model((2, 2, 1)), tiny_batch()
    module = RolloutModule(model, ActionSet.by_level(model.pyramid), BudgetRule(), "val")
    table = module.predict_step(batch, 0)
    assert table is not None and table.agreement is not None
    everything = model.encode(batch, every_tile(model, batch) > 0)
    wanted = agreement(model.pyramid, everything.maps, model.pyramid.cells(batch.size))
    assert torch.allclose(table.agreement, wanted, atol=1e-5) and wanted[:, :-1].abs().max() > 0.05
    assert not table.agreement[:, -1].any() and table.agreement.abs().max() <= 1 + 1e-6
    parts = [module.predict_step(batch.part(start, start + n), 0) for start, n in ((0, 2), (2, 3))]
    RolloutTable.concatenate([part for part in parts if part is not None]).save(tmp_path)
    again = RolloutTable.load(tmp_path).agreement
    assert again is not None and torch.allclose(again, wanted, atol=1e-5)
    replace(table, agreement=wanted[1:]).save(tmp_path)
    with pytest.raises(UserError, match=r"agreement is \[4, 9\], not \[5, 9\]"):
        RolloutTable.load(tmp_path)
