"""Pictures before they are tensors: the one way that an image is opened and fitted, in training and in
service alike."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def fitted(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The image as uint8 [3, h, w] with h, w <= size: shrunk by area filtering where larger, never
    enlarged."""
    image = image.convert("RGB")
    wanted = fitted_size(image.width, image.height, size)
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1).copy()


def fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image that was fitted."""
    scale = min(1.0, size / max(width, height))
    return (width, height) if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


def mipmaps(image: NDArray[np.uint8], levels: int) -> list[NDArray[np.float32]]:
    """Levels of one image in 0..1, finest first: a pixel is the mean of those below it. [3, h, w] -> L x [3,
    ., .]. `pyrskip.pyramid.mipmaps` does the same for padded batches of tensors."""
    total = image.astype(np.float32)
    count = np.ones(total.shape[1:], dtype=np.float32)
    result = [total / np.float32(255)]
    for _ in range(levels - 1):
        total, count = _sum_by_four(total), _sum_by_four(count)
        result.append(total / (count * np.float32(255)))
    return result


def _sum_by_four(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of 2 x 2 blocks; what a ragged edge lacks counts as 0. [..., h, w] -> [..., ceil(h / 2), ceil(w /
    2)]."""
    rows, columns = x.shape[-2:]
    if rows % 2 or columns % 2:
        x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows % 2), (0, columns % 2)])
    total: NDArray[np.float32] = (x[..., ::2, ::2] + x[..., ::2, 1::2]) + (
        x[..., 1::2, ::2] + x[..., 1::2, 1::2]
    )
    return total
