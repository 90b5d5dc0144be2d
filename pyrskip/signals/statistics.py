"""Signal `statistics`: how much each tile shows, measured on its own pixels in the glance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrskip.gates.pixels import MEASURES, flops, measures
from pyrskip.models.tiers import GatedModel
from pyrskip.signals.signal import SIGNALS, Signal


@SIGNALS.register("statistics")
class Statistics(Signal):
    """statistics [B, T, M] float32: entropy of brightness, edges, and how much stands out from what is around
    it (`pyrskip.gates.pixels`)."""

    per = "image"
    source = "pixels"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.grid = model.pyramid.grid
        self.shapes = {"statistics": (model.pyramid.tiles, len(MEASURES))}

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        pixels, inside = source
        return (measures(pixels.float(), inside, self.grid),)

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        side = model.pyramid.side(model.pyramid.levels - 1)
        own = flops(side, self.grid) * model.convention.per_mac / 2
        return torch.full((len(texts),), own, dtype=torch.float64)
