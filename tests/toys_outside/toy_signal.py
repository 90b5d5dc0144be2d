"""A signal: the mean colour of the glance."""

from torch import Tensor

from pyrskip.models.tiers import GatedModel
from pyrskip.signals import SIGNALS, Signal


@SIGNALS.register("toy_signal")
class MeanColour(Signal):
    """toy_signal [B, 3] in 0..1."""

    per = "image"
    source = "pixels"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.shapes = {"toy_signal": (3,)}

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        pixels, inside = source
        return ((pixels * inside[:, None]).sum((-1, -2)) / inside.sum((-1, -2))[:, None],)
