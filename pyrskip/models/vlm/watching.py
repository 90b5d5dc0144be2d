"""Queries and keys of modules while they run: attention weights can be computed from them for the rows that
are wanted, and what computes the module's own output stays as fast as it is.

Axes: B batch, H heads, Q queries, K keys, d width of a head.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Call:
    """A call of torch's attention. q [B, H, Q, d], k [B, H or fewer, K, d]; mask: of scores, as torch takes
    it; scale: of scores."""

    q: Tensor
    k: Tensor
    mask: Tensor | None
    scale: float

    def of(self, row: int) -> "Call":
        """Of one of the B alone."""
        mask = self.mask
        if mask is not None:
            mask = mask.expand(len(self.q), -1, -1, -1)[[row]]
        return Call(self.q[[row]], self.k[[row]], mask, self.scale)

    def shares(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """Attention [B, R, K] of these rows [R] int64, heads averaged, in float32. keys [B, R, K] bool: those
        that they see, where the call's mask does not say."""
        q, heads = self.q[:, :, rows], self.q.shape[1]
        total = q.new_zeros(len(q), len(rows), self.k.shape[2], dtype=torch.float32)
        for head in range(heads):  # one at a time: a picture has thousands of cells
            scores = (q[:, head] @ self.k[:, head * self.k.shape[1] // heads].transpose(1, 2)) * self.scale
            scores = scores.float()
            if self.mask is not None and keys is None:
                mask = self.mask[:, head if self.mask.shape[1] > 1 else 0]
                mask = mask[:, rows] if mask.shape[1] > 1 else mask
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            if keys is not None:
                scores = scores.masked_fill(~keys, -torch.inf)
            total += scores.softmax(-1)
        return total / heads


class Watching(TorchFunctionMode):
    """Within, the calls of torch's attention that these modules make, by module, in order. A module inside of
    another that is watched has its own."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.modules = list(modules)
        self.calls: dict[nn.Module, list[Call]] = {}
        self._inside: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Watching":
        for module in self.modules:
            self._hooks.append(module.register_forward_pre_hook(lambda m, _: self._inside.append(m)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._inside:
            q, k = args[:2] if len(args) > 1 else (kwargs["query"], kwargs["key"])
            scale = kwargs.get("scale")
            call = Call(q, k, kwargs.get("attn_mask"), q.shape[-1] ** -0.5 if scale is None else scale)
            self.calls.setdefault(self._inside[-1], []).append(call)
        return func(*args, **kwargs)
