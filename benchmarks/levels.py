"""How far features of a tile are those of the next coarser level, and how much of that the glance foretells.

python benchmarks/levels.py run=<directory>

run=<directory> of a run whose flex stage is done, on a grid. Of each level but the glance: the correlation
that `skip:redundant` goes by, its mean and its deviation over tiles of 100 test images, and the share of its
variance that `skip:foreseen` foretells, which is fitted to 200 images that were trained on; and of the half
of the tiles that agree least, how many are in the half that is foretold, where chance gives one half.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.gates.pixels import measures
from pyrskip.gates.skipping import foreseen
from pyrskip.models.native import NativeModel
from pyrskip.models.tiles import agreement, encode_tiles

IMAGES = {"train": 200, "test": 100}
AT_ONCE = 20


@torch.no_grad()
def seen(model: NativeModel, data: ShardDataset, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Measures [I, T, M], agreement [I, T] and what is no padding [I, T] bool of the first images."""
    pyramid, found = model.pyramid, []
    for rows in torch.arange(min(count, len(data))).split(AT_ONCE):
        batch = collate(data.__getitems__(rows.tolist()), pyramid.size)
        everything = torch.ones(len(batch), pyramid.tiles, dtype=torch.bool)
        features = encode_tiles(model.vision, pyramid, batch, everything)
        glance = features.levels[-1]
        valid = pyramid.pixels(batch.size)[:, pyramid.glance]
        side = torch.arange(glance.shape[-1])
        inside = (side[:, None] < valid[:, :1, None]) & (side < valid[:, 1:, None])
        own = measures(glance, inside, pyramid.grid)
        cells = pyramid.cells(batch.size)
        found.append((own, agreement(pyramid, features.maps, cells), cells.prod(-1) > 0))
    measured, agrees, real = (torch.cat(column) for column in zip(*found, strict=True))
    return measured, agrees, real


def main(run: Path) -> None:
    model = NativeModel.load(run / "flex")
    pyramid = model.pyramid
    known, own = (
        seen(model, ShardDataset(run / "data", split, pyramid.size), count) for split, count in IMAGES.items()
    )
    told = foreseen(own[0], *known, pyramid)
    print("level  mean  deviation  foretold  in its half")
    for level in range(pyramid.levels - 1):
        of = (pyramid.tile_level == level) & own[2]
        true, said = own[1][of].double(), told[of]
        foretold = 1 - (true - said).square().mean() / true.var(correction=0)
        least, lowest = (x < x.median() for x in (true, said))
        shared = (least & lowest).sum() / least.sum()
        print(f"{level:5}{true.mean():6.2f}{true.std():11.2f}{foretold:10.2f}{shared:13.2f}")


if __name__ == "__main__":
    main(Path(dict(argument.split("=", 1) for argument in sys.argv[1:])["run"]))
