"""The region gate: the question asks the glance, and each tile hears what lies at its own place.

Axes: B batch, W words, C channels, N cells of the glance, T tiles, D hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.errors import UserError
from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.gates.predictor import WordPool
from pyrskip.observation import Layout, Observation


@GATES.register("region")
class RegionGate(Gate):
    """One vector a tile: the glance's cells at the tile's box, the same cells as the question weighs them,
    what the question found anywhere, the question, and where and on which level the tile is."""

    needs = ("query", "glance")
    regional = True

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        level, box = placed(config, layout)
        super().__init__(config, layout)
        width = config.width
        self.words = WordPool(layout.width("query"), width)
        self.norm = nn.LayerNorm(layout.width("glance", 0))
        self.cells = nn.Linear(layout.width("glance", 0) + 2, width)
        self.ask = nn.Linear(width, width)
        self.level = nn.Embedding(len(layout.grid), width)
        self.tile_level: Tensor
        self.register_buffer("tile_level", level, persistent=False)
        self.tile_box: Tensor
        self.register_buffer("tile_box", box, persistent=False)

    def inputs(self) -> int:
        return 5 * self.config.width + 4

    def look(self, seen: Observation) -> Tensor:
        glance, mask = seen["glance"], seen["glance_mask"]
        question = self.words(seen["query"], seen["query_mask"])
        cells = F.gelu(self.cells(cells_of(self.norm, glance)))
        weighed = cells * self.ask(question)[:, None]  # [B, N, D]
        score = weighed.sum(-1) * cells.shape[-1] ** -0.5
        attention = score.masked_fill(~mask.flatten(1), float("-inf")).softmax(-1)
        found = (attention[:, None] @ cells).squeeze(1)
        share = overlap(self.tile_box, *glance.shape[-2:]) * mask.flatten(1)[:, None]
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)  # [B, T, N]
        whole = torch.cat([found, question], dim=-1)[:, None].expand(-1, self.layout.tiles, -1)
        where = torch.cat([self.level(self.tile_level), self.tile_box], dim=-1)
        return torch.cat(
            [share @ cells, share @ weighed, whole, where.expand(question.shape[0], -1, -1)], dim=-1
        )


def placed(config: GateConfig, layout: Layout) -> tuple[Tensor, Tensor]:
    """`places` of a layout's grid. Raises UserError where that has not as many tiles as the layout."""
    if sum(g * g for g in layout.grid) != layout.tiles:
        raise UserError(
            f"gate.name={config.name} must know where its {layout.tiles} tiles lie, and the grid of its "
            f"layout is {list(layout.grid)}; allowed: one of as many tiles"
        )
    return places(layout.grid)


def cells_of(norm: nn.Module, glance: Tensor) -> Tensor:
    """The glance's cells, normalised, with where they lie: [B, C, h, w] -> [B, N, C + 2]."""
    rows, columns = (_middles(n, glance.device) for n in glance.shape[-2:])
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    normal = norm(glance.float().flatten(2).transpose(1, 2))
    return torch.cat([normal, position.expand(glance.shape[0], -1, -1)], dim=-1)


def places(grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The level [T] int64 and the box [T, 4] of each tile, x0, y0, x1, y1 as shares of the canvas."""
    levels, boxes = [], []
    for level, g in enumerate(grid):
        for row in range(g):
            for column in range(g):
                levels.append(level)
                boxes.append([column / g, row / g, (column + 1) / g, (row + 1) / g])
    return torch.tensor(levels), torch.tensor(boxes)


def overlap(box: Tensor, rows: int, columns: int) -> Tensor:
    """How much of each cell of a canvas of rows x columns each box covers, box [T, 4] -> [T, N] in 0..1."""
    across, down = (
        torch.minimum(box[:, end, None] * count, edge + 1) - torch.maximum(box[:, start, None] * count, edge)
        for start, end, count in ((0, 2, columns), (1, 3, rows))
        for edge in (torch.arange(count, device=box.device),)
    )
    return (down.clamp(min=0)[:, :, None] * across.clamp(min=0)[:, None]).flatten(1)


def _middles(count: int, device: torch.device) -> Tensor:
    """Where cells lie along a side, as shares of it."""
    return (torch.arange(count, device=device) + 0.5) / count
