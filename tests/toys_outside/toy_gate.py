"""A gate that reads what the glance shows on average."""

from torch import Tensor

from pyrskip.gates.gate import GATES, Gate
from pyrskip.observation import Observation


@GATES.register("toy_gate")
class MeanGate(Gate):
    needs = ("glance",)

    def inputs(self) -> int:
        return self.layout.width("glance", 0)

    def look(self, seen: Observation) -> Tensor:
        inside = seen["glance_mask"][:, None]
        return (seen["glance"] * inside).sum((-1, -2)) / inside.sum((-1, -2))
