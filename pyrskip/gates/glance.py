"""The gate that looks at the glance alone: an ablation, what the image tells without the question."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.observation import Layout, Observation


class GlancePool(nn.Module):
    """The glance's cells with their positions: attended by a vector, their mean and their maximum. -> [B, 3
    D]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels + 2, width)

    def forward(self, glance: Tensor, mask: Tensor, by: Tensor) -> Tensor:
        """glance [B, C, h, w], mask [B, h, w] bool with at least one cell a row, by [B or 1, D]."""
        mask = mask.flatten(1)
        rows, columns = ((torch.arange(n, device=glance.device) + 0.5) / n for n in glance.shape[-2:])
        position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        normal = self.norm(glance.float().flatten(2).transpose(1, 2))
        cells = F.gelu(self.project(torch.cat([normal, position.expand(glance.shape[0], -1, -1)], dim=-1)))
        scores = (cells @ by[..., None]).squeeze(-1) * cells.shape[-1] ** -0.5
        attention = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        attended = (attention[:, None] @ cells).squeeze(1)
        mean = (cells * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        peak = cells.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return torch.cat([attended, mean, peak], dim=-1)


@GATES.register("glance")
class GlanceGate(Gate):
    """A learned vector asks the glance."""

    needs = ("glance",)

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.cells = GlancePool(layout.width("glance", 0), config.width)
        self.by = nn.Parameter(torch.randn(1, config.width))

    def inputs(self) -> int:
        return 3 * self.config.width

    def look(self, seen: Observation) -> Tensor:
        pooled: Tensor = self.cells(seen["glance"], seen["glance_mask"], self.by)
        return pooled
