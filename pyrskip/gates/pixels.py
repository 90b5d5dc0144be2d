"""Measures of what a picture's tiles show, from their own pixels in the glance. Nothing of it is learned, and
a picture's measures depend on that picture alone.

Axes: B pictures, C channels, H x W pixels, T tiles, M measures. Padding counts as nothing.
"""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 16
"""Bins of brightness in a tile's histogram."""
NEAR, PARTS = 3, 4
"""Centre-surround: pixels a side of the centre, and as which part of the picture's side its surround."""
MEASURES = ("entropy", "edges", "surround", "peak")
BRIGHT = (0.299, 0.587, 0.114)


def measures(pixels: Tensor, inside: Tensor, grid: tuple[int, ...]) -> Tensor:
    """MEASURES of every tile, 0 where it is padding. pixels [B, 3, H, W] in 0..1, inside [B, H, W] bool;
    grid: tiles a side of each level -> [B, T, M] float32 in 0..1, but for what stands out.

    entropy: of the histogram of brightness, 1 where all are as frequent. edges: root of the mean squared
    gradient of brightness, a pixel. surround: by how much a pixel's colour differs from that of what lies
    around it (Itti, Koch and Niebur 1998, one scale), the mean; peak: the same, of a tile's highest.
    """
    mask = inside[:, None].to(pixels.dtype)
    bright = (pixels * pixels.new_tensor(BRIGHT)[:, None, None]).sum(1, keepdim=True)
    away = surround(pixels, mask)
    parts = torch.cat([_shares(bright), _gradient(bright, mask), away, away**8], dim=1)
    mean = by_tile(parts, mask, grid)
    histogram = mean[..., :BINS]
    entropy = -(histogram * histogram.clamp(min=1e-9).log()).sum(-1) / log(BINS)
    edges, around, high = mean[..., BINS:].unbind(-1)
    return torch.stack([entropy, edges.sqrt(), around, high ** (1 / 8)], dim=-1)


def surround(pixels: Tensor, mask: Tensor) -> Tensor:
    """How far the mean colour of NEAR x NEAR pixels is from that of the PARTS-th part of the picture around
    them, in brightness, red against green and blue against yellow. pixels [B, 3, H, W], mask [B, 1, H, W] ->
    [B, 1, H, W]."""
    red, green, blue = pixels.split(1, dim=1)
    bright = (pixels * pixels.new_tensor(BRIGHT)[:, None, None]).sum(1, keepdim=True)
    colours = torch.cat([bright, red - green, blue - (red + green) / 2], dim=1)
    wide = max(NEAR, pixels.shape[-1] // PARTS) // 2 * 2 + 1
    apart = _around(colours, mask, NEAR) - _around(colours, mask, wide)
    # of what differs in nothing the root has no slope, and noise would be seen
    return ((apart**2).sum(1, keepdim=True) + 1e-6).sqrt() - 1e-3


def by_tile(maps: Tensor, mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Means over each tile's valid pixels, 0 where it has none. maps [B, C, H, W], mask [B, 1, H, W] ->
    [B, T, C]."""
    both = torch.cat([maps * mask, mask], dim=1)
    levels = []
    for g in grid:
        rows, columns = (_shares_of(g, n).to(both) for n in maps.shape[-2:])
        levels.append((rows @ both @ columns.T).flatten(2).transpose(1, 2))
    total = torch.cat(levels, dim=1)
    return total[..., :-1] / total[..., -1:].clamp(min=1e-6)


def flops(side: int, grid: tuple[int, ...]) -> float:
    """Additions and multiplications of `measures` on a picture of side x side pixels, about."""
    wide = max(NEAR, side // PARTS)
    a_pixel = 3 * BINS + 4 * 2 * (NEAR + wide) + 40
    pooled = sum(2 * (BINS + 4) * (g * side * side + g * g * side) for g in grid)
    return float(a_pixel * side * side + pooled)


def _shares(bright: Tensor) -> Tensor:
    """[B, 1, H, W] in 0..1 -> [B, BINS, H, W]: a pixel shared by the two nearest bins, so that rounding moves
    little."""
    place = torch.arange(BINS, device=bright.device, dtype=bright.dtype)[:, None, None]
    return (1 - (bright * (BINS - 1) - place).abs()).clamp(min=0)


def _gradient(bright: Tensor, mask: Tensor) -> Tensor:
    """Squared difference to the next pixel below and to the right, where both are valid, [B, 1, H, W]."""
    down = (bright.diff(dim=-2) * mask[..., 1:, :] * mask[..., :-1, :]) ** 2
    right = (bright.diff(dim=-1) * mask[..., 1:] * mask[..., :-1]) ** 2
    return F.pad(down, (0, 0, 0, 1)) + F.pad(right, (0, 1))


def _around(maps: Tensor, mask: Tensor, side: int) -> Tensor:
    """Mean over the valid of side x side pixels around each, side odd. [B, C, H, W]."""
    both = torch.cat([maps * mask, mask], dim=1)
    both = F.avg_pool2d(F.avg_pool2d(both, (side, 1), 1, (side // 2, 0)), (1, side), 1, (0, side // 2))
    return both[:, :-1] / both[:, -1:].clamp(min=1e-6) * mask


def _shares_of(parts: int, count: int) -> Tensor:
    """How much of each of count pixels along a side every one of its parts covers, [parts, count]."""
    edge = torch.arange(parts)[:, None] * count / parts
    pixel = torch.arange(count)
    return (torch.minimum(edge + count / parts, pixel + 1) - torch.maximum(edge, pixel)).clamp(min=0)
