"""The gate that reads the question alone: for servers that must know the token count before they see the
image."""

from torch import Tensor, nn

from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.observation import Layout, Observation


class WordPool(nn.Module):
    """Masked mean of projected word embeddings. [B, W, Q], [B, W] -> [B, D]."""

    def __init__(self, query_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(query_width), nn.Linear(query_width, width), nn.GELU())

    def forward(self, query: Tensor, mask: Tensor) -> Tensor:
        words = self.project(query.float()) * mask[..., None]
        pooled: Tensor = words.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return pooled


@GATES.register("predictor")
class PredictorGate(Gate):
    """The level-predictor MLP."""

    needs = ("query",)

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.words = WordPool(layout.width("query"), config.width)

    def inputs(self) -> int:
        return self.config.width

    def look(self, seen: Observation) -> Tensor:
        pooled: Tensor = self.words(seen["query"], seen["query_mask"])
        return pooled
