"""Claims about the projector: it averages valid cells alone, and whitens what it reads."""

import pytest
import torch
import torch.nn.functional as F

from pyrskip.models.projector import pool
from tests.models import tiny_batch, tiny_model


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 8), (7, 3), (1, 1)])
def test_pooling_a_full_map_is_torchs_adaptive_pooling(rows: int, columns: int) -> None:
    maps = torch.rand(1, 3, rows, columns)
    cells = torch.tensor([[rows, columns]])
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            pooled = pool(maps, cells, torch.tensor([[height, width]]))
            assert torch.allclose(pooled, F.adaptive_avg_pool2d(maps, (height, width)), atol=1e-6)


def test_pooling_averages_valid_cells_only_whatever_else_is_in_the_batch() -> None:
    cells, size = (
        torch.tensor([[8, 8], [5, 7], [1, 3], [6, 6]]),
        torch.tensor([[4, 4], [2, 3], [1, 3], [6, 6]]),
    )
    maps = torch.rand(4, 2, 8, 8)
    dirty = maps.clone()
    for row, (rows, columns) in enumerate(cells.tolist()):
        dirty[row, :, rows:], dirty[row, :, :, columns:] = 1e4, 1e4
    pooled = pool(dirty, cells, size)
    for row, (height, width) in enumerate(size.tolist()):
        own = maps[row, :, : cells[row, 0], : cells[row, 1]]
        assert torch.allclose(
            pooled[row, :, :height, :width], F.adaptive_avg_pool2d(own, (height, width)), atol=1e-5
        )


def test_whitened_features_have_unit_covariance() -> None:
    model = tiny_model()
    batch = tiny_batch()
    model.whiten([batch])
    cells = model.pyramid.cells(batch.size)
    everything = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    square = []
    for tile, maps in enumerate(model.encode(batch, everything).maps):
        found = torch.cat(
            [
                m[:, :rows, :columns].flatten(1).T
                for m, (rows, columns) in zip(maps, cells[:, tile], strict=True)
            ]
        )
        white = (found - model.projector.mean) @ model.projector.whiten
        square.append(white.T @ white / len(white))
    value = torch.linalg.eigvalsh(torch.stack(square).mean(0))
    assert float(value.max()) < 1.001  # directions with next to no variance stay small
    assert float(value.max()) > 0.9
