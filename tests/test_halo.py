"""Claims about halos: a tile is encoded with what lies around it, gives no more tokens for it, and is the
same in training, in inference and in an export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrskip
from pyrskip.budget import BudgetRule
from pyrskip.config import Config
from pyrskip.data.cache import fingerprint
from pyrskip.errors import UserError
from pyrskip.export.write import write_parts
from pyrskip.inference.bundle import write_checksums
from pyrskip.inference.modules import parts_of
from pyrskip.models.native import PyramidConfig
from pyrskip.models.vlm.served import AnswererConfig
from pyrskip.pyramid import Pyramid
from tests.exports import UNIT, described, expected, requests, tiny_gate
from tests.models import every_tile, mixed_decisions, tiny_batch, tiny_model

GRID = (2, 2, 1)


def test_a_window_is_the_tile_and_its_halo_within_the_image() -> None:
    pyramid = Pyramid(64, 3, 8, (4, 2, 1), halo=1)
    size = torch.tensor([[64, 64], [40, 17]])
    window = pyramid.window(size)
    assert window[0, 0].tolist() == [0, 0, 24, 24]  # a corner
    assert window[0, 5].tolist() == [8, 8, 32, 32]  # inside
    assert window[0, -1].tolist() == [0, 0, 16, 16]  # the glance
    assert window[1, 5].tolist() == [8, 8, 32, 9]  # the image ends in it
    assert window[1, 2].tolist()[2:] == [0, 0] and (window[..., 2:] > 0).all(-1).equal(
        pyramid.cells(size).prod(-1) > 0
    )
    assert np.array_equal(pyramid.window(size.numpy()), window.numpy())
    bare = replace(pyramid, halo=0)
    real = bare.pixels(size).prod(-1) > 0
    assert bare.window(size)[real][:, 2:].equal(bare.pixels(size)[real])


def test_tiles_whose_halo_is_the_whole_level_see_what_the_whole_level_does() -> None:
    halo, whole, batch = tiny_model(GRID, halo=8), tiny_model((1, 1, 1)), tiny_batch()
    found = halo.encode(batch, every_tile(halo, batch) > 0).maps
    wanted = whole.encode(batch, every_tile(whole, batch) > 0).maps
    for level in range(2):
        rows = [torch.cat(found[4 * level + 2 * r : 4 * level + 2 * r + 2], dim=-1) for r in range(2)]
        torch.testing.assert_close(torch.cat(rows, dim=-2), wanted[level], atol=1e-4, rtol=1e-4)
    alone = tiny_model(GRID).encode(batch, every_tile(halo, batch) > 0).maps
    assert (alone[0] - found[0]).abs().max() > 1e-2


@pytest.mark.parametrize("language", ["cross", "decoder"])
def test_masked_training_is_gathered_inference_with_a_halo(language: str) -> None:
    model, batch = tiny_model(GRID, language=language, halo=1), tiny_batch()
    asked = mixed_decisions(model, batch)
    everything = model.encode(batch, every_tile(model, batch) > 0)
    with torch.no_grad():
        masked = model.loss(
            batch, everything, every_tile(model, batch).where(asked == 0, asked), (asked > 0).float()
        )
        before = model.encoded
        gathered = model.loss(batch, model.encode(batch, asked > 0), asked)
    kept = int(batch.of_images(asked > 0).sum())
    assert model.encoded - before == kept < int((every_tile(model, batch) > 0).sum())
    torch.testing.assert_close(masked, gathered, atol=1e-5, rtol=1e-5)


def test_a_halo_costs_what_it_is_encoded_with_and_gives_no_tokens() -> None:
    batch = tiny_batch()
    size = batch.size[batch.image_of]
    bare, halo = tiny_model(GRID), tiny_model(GRID, halo=1)
    assert halo.pyramid.capacity(size).equal(bare.pyramid.capacity(size))
    encode = halo.encode_flops(size)
    for row, tile in ((0, 0), (0, 3), (0, 4), (0, 8)):
        rows, columns = (-(-halo.pyramid.window(size)[row, tile, 2:] // 8) * 8).tolist()
        assert encode[row, tile] == halo.vision.flops(rows, columns)
    assert (encode >= bare.encode_flops(size)).all() and (encode > bare.encode_flops(size)).any()
    assert encode[:, -1].equal(bare.encode_flops(size)[:, -1])


def test_an_export_decides_and_answers_with_a_halo_as_in_training(tmp_path: Path) -> None:
    model, batch = tiny_model(GRID, halo=1), tiny_batch()
    gate = tiny_gate(model, budget=BudgetRule(), policy="utility")
    write_parts(model, gate, described(model, gate), tmp_path, graphs=[])
    (tmp_path / "onnx").mkdir(exist_ok=True)
    for name in parts_of(model, gate, UNIT):  # backend='torch' reads no graphs
        (tmp_path / "onnx" / f"{name}.onnx").write_bytes(b"")
    write_checksums(tmp_path)
    engine = pyrskip.load(tmp_path, "torch")
    asked, texts = expected(model, gate, batch, 0.3, None)
    answers = engine.answer_many(requests(batch, price=0.3))
    assert [a.text for a in answers] == texts and len(torch.unique(asked, dim=0)) > 1
    size = batch.size[batch.image_of]
    assert [list(a.selection.tiles) for a in answers] == model.realise(asked, size).tolist()


def test_a_halo_is_part_of_what_cached_maps_depend_on_and_is_refused_where_it_means_nothing() -> None:
    bare, halo = tiny_model(GRID), tiny_model(GRID, halo=1)
    made = [fingerprint(of.config.vision, of.vision, of.pyramid, None) for of in (bare, halo)]
    assert made[1] == made[0] | {"pyramid.halo": 1}
    with pytest.raises(UserError, match="pyramid.halo=-1: allowed: at least 0"):
        Pyramid(64, 3, 8, GRID, -1)
    config = Config(model=AnswererConfig(name="hf"), pyramid=PyramidConfig(halo=1))
    with pytest.raises(UserError, match="pyramid.halo=1 with model.name=hf, to which a tile is a picture"):
        config.check_served()
