"""How far tiles' features are from those of their level encoded whole, with halos of several widths.

python benchmarks/halo.py run=<directory>

run=<directory> of a run whose flex stage is done, on a grid: 24 of its test images are encoded. At the
borders between tiles of level 0 and inside of them, the root mean square of the difference over that of the
features; and the FLOPs of encoding level 0, over those without a halo.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiles import encode_flops, encode_tiles

IMAGES = 24
WIDEST = 3


@torch.no_grad()
def main(run: Path) -> None:
    model = NativeModel.load(run / "flex")
    pyramid = model.pyramid
    data = ShardDataset(run / "data", "test", pyramid.size)
    batch = collate([data[i] for i in range(IMAGES)], pyramid.size)
    g, cells = pyramid.grid[0], pyramid.side(0) // pyramid.stride
    edge = torch.arange(cells) % (cells - 1) == 0
    border = torch.ones(g, 1, dtype=torch.bool) & edge  # of each tile, the outer side of the level too
    border[0, 0] = border[-1, -1] = False
    row = border.flatten()
    at_border = row[:, None] | row

    uncut = replace(pyramid, grid=(1, *pyramid.grid[1:]))
    keep = torch.zeros(len(batch), uncut.tiles, dtype=torch.bool)
    keep[:, 0] = True
    whole = encode_tiles(model.vision, uncut, batch, keep).maps[0]
    size = torch.tensor([[pyramid.size, pyramid.size]])
    alone = encode_flops(model.vision, replace(pyramid, halo=0), size)[0, : g * g].sum()
    print("halo  at borders  inside  FLOPs")
    for halo in range(WIDEST + 1):
        other = replace(pyramid, halo=halo)
        keep = (pyramid.tile_level == 0).expand(len(batch), -1)
        maps = encode_tiles(model.vision, other, batch, keep).maps[: g * g]
        found = torch.cat([torch.cat(maps[g * r : g * (r + 1)], dim=-1) for r in range(g)], dim=-2)
        apart = ((found - whole).square().sum(1).mean(0) / whole.square().sum(1).mean()).sqrt()
        cost = encode_flops(model.vision, other, size)[0, : g * g].sum() / alone
        print(f"{halo:4}{apart[at_border].mean():12.2f}{apart[~at_border].mean():8.2f}{cost:7.2f}")


if __name__ == "__main__":
    main(Path(dict(argument.split("=", 1) for argument in sys.argv[1:])["run"]))
