"""Signal `glance`: the encoded coarsest level."""

from collections.abc import Sequence

from torch import Tensor

from pyrskip.models.tiers import GatedModel
from pyrskip.signals.signal import SIGNALS, Signal


@SIGNALS.register("glance")
class Glance(Signal):
    """glance [B, C, h, w] float32 and glance_mask [B, h, w] bool."""

    per = "image"
    source = "glance"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        side = model.pyramid.side(model.pyramid.levels - 1) // model.vision.stride
        self.shapes = {"glance": (model.vision.channels, side, side), "glance_mask": (side, side)}

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        return model.glance_flops(size) * model.convention.per_mac / 2
