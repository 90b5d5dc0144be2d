"""The default gate: the question asks the glance."""

import torch
from torch import Tensor, nn

from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.gates.glance import GlancePool
from pyrskip.gates.predictor import WordPool
from pyrskip.observation import Layout, Observation


@GATES.register("joint")
class JointGate(Gate):
    """The pooled question attends over the glance's cells; both are read together."""

    needs = ("query", "glance")

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.words = WordPool(layout.width("query"), config.width)
        self.cells = GlancePool(layout.width("glance", 0), config.width)
        self.ask = nn.Linear(config.width, config.width)

    def inputs(self) -> int:
        return 4 * self.config.width

    def look(self, seen: Observation) -> Tensor:
        question = self.words(seen["query"], seen["query_mask"])
        return torch.cat(
            [question, self.cells(seen["glance"], seen["glance_mask"], self.ask(question))], dim=-1
        )
