"""From feature maps to the language model's tokens: pool to the decided size, project, add where each token
looks.

Axes: U unique maps, C channels, R x K map rows x columns, h x w pooled rows x columns, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.models.norm import RMSNorm
from pyrskip.pyramid import bins
from pyrskip.transfer import sent

FLOOR = 1e-3
"""Smallest variance that is whitened, as a share of the features' mean: directions with less are noise."""


def pool(maps: Tensor, cells: Tensor, size: Tensor) -> Tensor:
    """Adaptive average pooling, each map's valid cells to a size of its own.

    maps [U, C, R, K]; on the CPU: cells [U, 2] valid rows and columns, size [U, 2] with 1 <= size <= cells
    -> [U, C, h, w] with h, w the largest sizes, of which each map's own are valid.
    """
    height, width = (int(n) for n in size.amax(0))
    rows = sent(bins(cells[:, 0], size[:, 0], height, maps.shape[2]), maps.device)
    columns = sent(bins(cells[:, 1], size[:, 1], width, maps.shape[3]), maps.device)
    return torch.einsum("uhr,ucrk,uwk->uchw", rows.to(maps.dtype), maps, columns.to(maps.dtype))


class Projector(nn.Module):
    """Adaptive pooling is before it, then whitening, SwiGLU (TokenFLEX, arXiv:2504.03154), position and
    level.

    mean [C], whiten [C, C]: features are taken as (x - mean) whiten, with unit covariance: what tells letters
    or icons apart varies little next to what tells sky from grass, and would be learned last. Position is
    added to features of unit size, at unit size itself: they would soon outgrow it, and where things are
    would be learned last. dropout: of whitened features, in training alone; a trainer sets how many.
    """

    FREQUENCIES = 6
    mean: Tensor
    whiten: Tensor

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        hidden = 2 * width
        self.dropout = nn.Dropout(0.0)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whiten", torch.eye(channels))
        self.gate_up = nn.Linear(channels, 2 * hidden)
        self.down = nn.Linear(hidden, width)
        self.position = nn.Linear(4 * self.FREQUENCIES + 2, width)
        self.level = nn.Embedding(levels, width)
        self.norm, self.out_norm = RMSNorm(width), RMSNorm(width)
        nn.init.normal_(self.position.weight, std=(2 * self.FREQUENCIES) ** -0.5)
        nn.init.normal_(self.level.weight, std=0.3)

    def forward(self, features: Tensor, centre: Tensor, extent: Tensor, level: Tensor) -> Tensor:
        """features [..., n, C], centre and extent [..., n, 2] in image coordinates (longest side = 1), level
        [n] -> [..., n, D]."""
        gate, up = self.gate_up(self.dropout((features - self.mean) @ self.whiten)).chunk(2, dim=-1)
        frequency = math.pi * 2.0 ** torch.arange(self.FREQUENCIES, device=centre.device)
        angle = (centre[..., None] * frequency).flatten(-2)
        where = torch.cat([angle.sin(), angle.cos(), extent], dim=-1).to(features.dtype)
        seen = self.norm(self.down(F.silu(gate) * up))
        tokens: Tensor = self.out_norm(seen + self.position(where) + self.level(level))
        return tokens

    @torch.no_grad()
    def fit_whitening(self, mean: Tensor, covariance: Tensor) -> None:
        """Set it from the features' mean [C] and covariance [C, C]: ZCA, with a floor on the variances."""
        variance, directions = torch.linalg.eigh(covariance.double())
        scale = (variance.clamp(min=0) + FLOOR * variance.mean()).rsqrt()
        self.whiten.copy_(directions * scale @ directions.T)
        self.mean.copy_(mean)

    def flops_per_token(self) -> int:
        linears = (self.gate_up, self.down, self.position)
        return 2 * self.whiten.numel() + sum(
            2 * linear.in_features * linear.out_features for linear in linears
        )
