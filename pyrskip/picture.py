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
