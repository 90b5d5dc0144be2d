"""Copies to an accelerator that the CPU does not wait for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. Out of the CPU's memory it is copied while the CPU goes on: pageable memory is
    read before the call returns, so that it may be written anew. Into it, the copy is waited for."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one number format, in one copy."""
    if device.type == "cpu":
        return list(tensors)
    parts = sent(torch.cat([tensor.flatten() for tensor in tensors]), device).split(
        [tensor.numel() for tensor in tensors]
    )
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
