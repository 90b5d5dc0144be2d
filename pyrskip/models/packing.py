"""Which cells of which maps a batch's decisions make into which visual tokens.

What images and decisions differ in is small, and found on the CPU; what is as long as the tokens is made
where the maps are, from tables that go there in one copy. So an accelerator is never waited for.

Axes: B questions, I images, T tiles, C channels; U views that differ, N tokens of the longest; K maps that
differ once pooled, V cells of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pyrskip.decision import distinct, realise
from pyrskip.models.projector import pool
from pyrskip.models.recorded import KEPT
from pyrskip.pyramid import Pyramid, located
from pyrskip.sample import Batch
from pyrskip.transfer import sent_together


@dataclass(frozen=True)
class Share:
    """A tile that is seen: its cells are those from start to end of all. image [K'] and map [V']: which of
    the batch's images each of its pooled maps is of, and which of these maps each cell is in; cells, size
    [K', 2] on the CPU: rows and columns before and after pooling."""

    tile: int
    start: int
    end: int
    image: Tensor
    map: Tensor
    cells: Tensor
    size: Tensor


@dataclass(frozen=True)
class Packing:
    """A row's real tokens come first, finest level first, glance last. An image's map is pooled and projected
    once for each size that its questions ask of it.

    of [B] on the CPU: each question's view; source [U, N] int64: a token's cell, counted from 1, 0 in
    padding; tile [U, N] int64, 0 in padding; real [U, N] bool; whole: that there is no padding. Of the cells:
    image, row, column, level [V] int64; centre and extent [V, 2] float32 in image coordinates.
    """

    of: Tensor
    source: Tensor
    tile: Tensor
    real: Tensor
    whole: bool
    shares: tuple[Share, ...]
    image: Tensor
    row: Tensor
    column: Tensor
    level: Tensor
    centre: Tensor
    extent: Tensor

    def cells(self, maps: Sequence[Tensor]) -> Tensor:
        """Pooled features [V, C] of the cells, of which there is at least one. maps: one [I, C, rows,
        columns] a tile."""
        parts = []
        for share in self.shares:
            here, of = slice(share.start, share.end), maps[share.tile]
            if bool((share.size == share.cells).all()):
                image = self.image[here]
            else:
                of, image = pool(of[share.image], share.cells, share.size), share.map
            rows, columns = of.shape[2:]
            place = (image * rows + self.row[here]) * columns + self.column[here]
            parts.append(of.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, place))
        return torch.cat(parts)


def pack(pyramid: Pyramid, batch: Batch, asked: Tensor, device: torch.device) -> Packing:
    """asked [B, T] on the CPU; device: of the maps."""
    size, image_of = batch.on_cpu
    if len(asked) != 1 or len(size) != 1:
        return _pack(pyramid, size, image_of, asked, device)
    # a tensor of inference mode is of no use to a training step
    mode = torch.is_inference_mode_enabled()
    return _of_one(pyramid, tuple(size[0].tolist()), tuple(asked[0].tolist()), device, mode)


@lru_cache(maxsize=KEPT)
def _of_one(
    pyramid: Pyramid, size: tuple[int, ...], asked: tuple[int, ...], device: torch.device, inference: bool
) -> Packing:
    """Of a single question. Remembered, for few differ, and they take Python longer than their tokens take a
    GPU."""
    return _pack(pyramid, torch.tensor([size]), torch.tensor([0]), torch.tensor([asked]), device)


def _pack(pyramid: Pyramid, size: Tensor, image_of: Tensor, asked: Tensor, device: torch.device) -> Packing:
    """As `pack`. size [I, 2] and image_of [B] as of `Batch.on_cpu`."""
    image_size_I2, image_of_B = size, image_of
    pixels_IT2, cells_IT2 = pyramid.pixels(image_size_I2), pyramid.cells(image_size_I2)
    size_BT2 = realise(asked, cells_IT2[image_of_B])
    # those who see nothing of any image see the same
    image_B = image_of_B.where((size_BT2 > 0).any(-1).any(-1), -1)
    first_U, of_B = distinct(torch.cat([image_B[:, None], size_BT2.flatten(1)], dim=1))
    size_UT2, image_U = size_BT2[first_U], image_B[first_U]
    count_UT = size_UT2.prod(-1)
    end_UT, total_U = count_UT.cumsum(-1), count_UT.sum(-1)
    longest = int(total_U.amax()) if len(total_U) else 0

    view_P, tile_P = count_UT.nonzero(as_tuple=True)
    pair_P4 = torch.cat([tile_P[:, None], image_U[view_P, None], size_UT2[view_P, tile_P]], dim=1)
    first_K, map_of_P = distinct(pair_P4)
    tile_K, image_K, size_K2 = pair_P4[first_K].tensor_split((1, 2), dim=1)
    tile_K, image_K = tile_K.squeeze(1), image_K.squeeze(1)
    count_K = size_K2.prod(-1)
    end_K = count_K.cumsum(0)
    start_K = end_K - count_K
    # the number of a view's tile's first cell, less the view's tokens before it
    first_UT = torch.zeros_like(count_UT)
    first_UT[view_P, tile_P] = 1 + start_K[map_of_P] - (end_UT - count_UT)[view_P, tile_P]

    # from here on where the maps are
    cells = int(end_K[-1]) if len(end_K) else 0
    frame = pyramid.frame(image_size_I2[image_K], tile_K, pixels_IT2[image_K, tile_K], size_K2)
    corner_K2, extent_K2, scale_K1 = sent_together(frame, device)
    tables = [end_UT, first_UT, total_U, image_K, size_K2, pyramid.tile_level[tile_K], count_K, start_K]
    end_UT, first_UT, total_U, at_K, there_K2, level_K, count_K, start_K = sent_together(tables, device)
    map_V = torch.repeat_interleave(torch.arange(len(at_K), device=device), count_K, output_size=cells)
    within_V = torch.arange(cells, device=device) - start_K[map_V]
    columns_V = there_K2[:, 1][map_V]
    row_V, column_V = within_V // columns_V, within_V % columns_V
    place_V2 = torch.stack([row_V, column_V], dim=-1).float()
    centre_V2, extent_V2 = located(corner_K2[map_V], extent_K2[map_V], scale_K1[map_V], place_V2)
    position_N = torch.arange(longest, device=device)
    real_UN = position_N < total_U[:, None]
    tile_UN = real_UN * torch.searchsorted(end_UT, position_N.repeat(len(end_UT), 1), right=True)
    source_UN = real_UN * (first_UT.gather(1, tile_UN) + position_N)

    shares, start = [], 0
    for tile in tile_K.unique().tolist():
        own = (tile_K == tile).nonzero().squeeze(1)
        first, last = int(own[0]), int(own[-1]) + 1
        end = int(end_K[last - 1])
        before = cells_IT2[image_K[own], tile]
        shares.append(
            Share(tile, start, end, at_K[first:last], map_V[start:end] - first, before, size_K2[own])
        )
        start = end
    image_V, level_V = at_K[map_V], level_K[map_V]
    whole = bool((count_UT.sum(-1) == longest).all())
    return Packing(
        of_B,
        source_UN,
        tile_UN,
        real_UN,
        whole,
        tuple(shares),
        image_V,
        row_V,
        column_V,
        level_V,
        centre_V2,
        extent_V2,
    )
