"""Batches that do not fit an accelerator's memory."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from pyrskip.errors import UserError
from pyrskip.sample import Batch

T = TypeVar("T")


def in_halves(work: Callable[[Batch], T], batch: Batch) -> list[T]:
    """What comes of a batch, or in the order of its images of its halves, and of theirs, where it does not
    fit the accelerator's memory. Raises UserError where a single image does not."""
    images = len(batch.image)
    try:
        return [work(batch)]
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())[:120]
    # behind the error, which holds what was allocated
    if images < 2:
        raise UserError(
            f"an image with its {len(batch)} questions does not fit the accelerator's memory ({said}); "
            "smaller: pyramid.size, language.width"
        )
    print(f"  {images} images do not fit the accelerator's memory: in halves", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = images // 2
    return in_halves(work, batch.part(0, middle)) + in_halves(work, batch.part(middle, images))
