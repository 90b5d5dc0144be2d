"""What a decision costs: tokens, FLOPs, KV-cache bytes.

Costs are computed, never quoted. One multiply-add is 2 FLOPs or 1 MAC; softmax, norms, activations and
embedding look-ups are not counted. Attention over a prompt of n tokens counts either all n^2 pairs ("full":
what papers quote and dense kernels do) or the n (n + 1) / 2 that a causal model needs ("causal"). A
`Convention` says which; the default is full FLOPs. Counts are float64, exact for whole numbers up to 2^53.

The formulas take numbers, numpy arrays and tensors alike, and torch is imported where something is measured
alone: a service without torch counts with this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pyrskip.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Attention = Literal["full", "causal"]
Unit = Literal["flops", "macs"]
Count = TypeVar("Count", float, "NDArray[np.float64]", "Tensor")


@dataclass(frozen=True)
class Convention:
    """How to count. attention: the pairs of a prompt, full or causal; unit: flops or macs. Else raises
    UserError."""

    attention: Attention = "full"
    unit: Unit = "flops"

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise unknown_name("convention.attention", self.attention, get_args(Attention))
        if self.unit not in get_args(Unit):
            raise unknown_name("convention.unit", self.unit, get_args(Unit))

    @property
    def per_mac(self) -> int:
        return 2 if self.unit == "flops" else 1


FULL = Convention()


@dataclass(frozen=True)
class Transformer:
    """The sizes of a decoder that decide its cost.

    heads divides width and kv_heads divides heads (fewer: grouped-query attention). mlp: hidden width; gated:
    three MLP matrices instead of two. vocab: size of the output head, 0 for none. cross: visual tokens are no
    part of the sequence; every layer has a cross-attention that reads their keys and values. Raises UserError
    where sizes do not fit.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    gated: bool
    vocab: int = 0
    cross: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"transformer.{name}={getattr(self, name)} must be at least 1")
        if self.vocab < 0:
            raise UserError(f"transformer.vocab={self.vocab} must be at least 0")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise UserError(
                f"transformer.heads={self.heads} must divide width={self.width} and be a multiple of "
                f"kv_heads={self.kv_heads}"
            )

    @property
    def kv_width(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.width // self.heads * self.kv_heads


def prefill_flops(spec: Transformer, tokens: Count, *, convention: Convention = FULL) -> Count:
    """FLOPs (or MACs) to read a prompt of `tokens` (a number, or any shape) and predict one token after it.

    Per layer 2 n d (d + d_kv) + 2 d pairs + matrices n d m multiply-adds, then d vocab once for the output
    head.
    """
    n = _float64(tokens)
    pairs = n * n if convention.attention == "full" else n * (n + 1) / 2
    return convention.per_mac * (_layer_macs(spec, n, pairs) + spec.width * spec.vocab)


def decode_flops(
    spec: Transformer, context: Count, steps: Count | int, *, convention: Convention = FULL
) -> Count:
    """FLOPs (or MACs) of `steps` tokens run one at a time behind a cache of `context` tokens, output head
    each.

    The i-th attends to the context, to those before it and to itself: context + i pairs in either attention
    convention.
    """
    context = _float64(context)
    rows = float(steps) if isinstance(steps, int) else _float64(steps)
    pairs = context * rows + rows * (rows + 1) / 2
    return convention.per_mac * (_layer_macs(spec, rows, pairs) + rows * spec.width * spec.vocab)


def answer_flops(
    spec: Transformer, visual: Count, words: Count, answer: Count | int, *, convention: Convention = FULL
) -> Count:
    """FLOPs (or MACs) of reading `visual` tokens and `words` of a prompt, and of `answer` tokens written
    after them.

    With cross-attention a layer adds 2 n d d_kv multiply-adds for the keys and values of n visual tokens, and
    for each of m text tokens 2 d^2 for its query and what it read and 2 d n for what it compares and sums.
    """
    if not spec.cross:
        context = visual + words
        prefill = prefill_flops(spec, context, convention=convention)
        return prefill + decode_flops(spec, context, answer, convention=convention)
    n, m = (
        _float64(visual),
        _float64(words) + (float(answer) if isinstance(answer, int) else _float64(answer)),
    )
    read = (
        spec.layers * 2 * (n * spec.width * spec.kv_width + m * spec.width * spec.width + m * n * spec.width)
    )
    text = prefill_flops(spec, words, convention=convention) + decode_flops(
        spec, words, answer, convention=convention
    )
    return text + convention.per_mac * read


def kv_bytes(spec: Transformer, tokens: Count, bytes_per_value: float = 2) -> Count:
    """Bytes of the keys and values of `tokens` (a number, or any shape) in all layers; in half precision 2 a
    value."""
    return 2 * spec.layers * spec.kv_width * bytes_per_value * _float64(tokens)


def measured_flops(module: Callable[..., object], *inputs: object) -> int:
    """FLOPs of one forward pass on these inputs, counted from the matrix products and convolutions that
    really run.

    Without gradients, in the mode (train or eval) that the module is in. Attention counts as full, whatever
    its mask.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _fused_kernels_off(), counter:
        module(*inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Cost:
    """Cost of decisions: tokens, FLOPs and KV-cache bytes, all of one shape [...]."""

    tokens: Tensor
    flops: Tensor
    kv_bytes: Tensor


def _layer_macs(spec: Transformer, rows: Count | float, pairs: Count) -> Count:
    """Multiply-adds of all layers: projections and MLP for each of `rows` tokens, scores and values for
    `pairs`."""
    projections = 2 * spec.width * (spec.width + spec.kv_width)
    mlp = (3 if spec.gated else 2) * spec.width * spec.mlp
    return spec.layers * (rows * (projections + mlp) + pairs * (2 * spec.width))


def _float64(count: Count) -> Count:
    # of torch's and numpy's, tensors alone have double(); the product is float64 for whole numbers and arrays
    # of them
    doubled: Any = count.double() if hasattr(count, "double") else count * 1.0
    return cast(Count, doubled)


@contextmanager
def _fused_kernels_off() -> Iterator[None]:
    """Run attention, transformer layers and recurrent layers as plain matrix products.

    The counter silently counts 0 for their fused kernels on a CPU, and for fused recurrent layers on a GPU.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [backend.enabled for backend in backends]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for backend in backends:
            backend.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for backend, value in zip(backends, enabled, strict=True):
            backend.enabled = value
        torch.backends.mha.set_fastpath_enabled(fast)
