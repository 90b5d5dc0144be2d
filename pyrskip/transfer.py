"""Copies to an accelerator that the CPU does not wait for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. To a GPU it is copied while the CPU goes on, out of pinned memory, which torch
    keeps until that is done; from one, the copy is waited for."""
    if tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one number format, in one copy."""
    if device.type == "cpu":
        return list(tensors)
    parts = sent(torch.cat([tensor.flatten() for tensor in tensors]), device).split(
        [tensor.numel() for tensor in tensors]
    )
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
