"""What a decision costs: tokens, FLOPs, KV-cache bytes.

Costs are computed, never quoted. One multiply-add is 2 FLOPs or 1 MAC; softmax, norms, activations and
embedding look-ups are not counted. Attention over a prompt of n tokens counts either all n^2 pairs ("full":
what papers quote and dense kernels do) or the n (n + 1) / 2 that a causal model needs ("causal"). What is
counted is what inference runs, or what a paper's formula says of the same sizes. A `Convention` says which;
the default is full FLOPs of what runs. Counts are float64, exact for whole numbers up to 2^53.

The formulas take numbers, numpy arrays and tensors alike, and torch is imported where something is measured
alone: a service without torch counts with this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pyrskip.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Attention = Literal["full", "causal"]
Unit = Literal["flops", "macs"]
Counted = Literal["run", "ptp", "fastv"]
PUBLISHED = {"ptp": 3, "fastv": 2}
"""Papers' formulas of a decoder layer, 4 n d^2 + 2 n^2 d + k n d m: name -> k. PTP (arXiv:2509.15704) and
PyramidDrop (arXiv:2410.17247) have 3, FastV (arXiv:2403.06764, equation 5) has 2."""
Count = TypeVar("Count", float, "NDArray[np.float64]", "Tensor")


@dataclass(frozen=True)
class Convention:
    """How to count. attention: the pairs of a prompt, full or causal; unit: flops or macs; count: of the
    language model what inference runs, or one of PUBLISHED. Else raises UserError."""

    attention: Attention = "full"
    unit: Unit = "flops"
    count: Counted = "run"

    def __post_init__(self) -> None:
        for name, kind in (("attention", Attention), ("unit", Unit), ("count", Counted)):
            if getattr(self, name) not in get_args(kind):
                raise unknown_name(f"cost.{name}", getattr(self, name), get_args(kind))

    @property
    def per_mac(self) -> int:
        return 2 if self.unit == "flops" else 1


FULL = Convention()


@dataclass(frozen=True)
class Transformer:
    """The sizes of a decoder that decide its cost.

    heads divides width and kv_heads divides heads (fewer: grouped-query attention). mlp: hidden width; gated:
    three MLP matrices instead of two. vocab: size of the output head, 0 for none. cross: visual tokens are no
    part of the sequence; every layer has a cross-attention that reads their keys and values, and a learned
    one beside them. lean: of a prompt the last layer computes keys and values alone, and the rest of its work
    for the last token, whose output is read. Raises UserError where sizes do not fit.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    gated: bool
    vocab: int = 0
    cross: bool = False
    lean: bool = False

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
    """FLOPs (or MACs) to read a prompt of `tokens` (a number, or any shape; at least 1) and predict one token
    after it.

    Per layer 2 n d (d + d_kv) + 2 d pairs + matrices n d m multiply-adds, then d vocab once for the output
    head; in the last layer of a lean model 2 n d d_kv + 2 d^2 + 2 d n + matrices d m. Published formulas
    count every layer alike, and no head.
    """
    n = _float64(tokens)
    pairs = n * n if convention.attention == "full" else n * (n + 1) / 2
    layer = _layer_macs(spec, convention, n, n, pairs)
    last = _layer_macs(spec, convention, n, 1.0, n) if _is_lean(spec, convention) else layer
    return convention.per_mac * ((spec.layers - 1) * layer + last + _head_macs(spec, convention))


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
    layer = _layer_macs(spec, convention, rows, rows, pairs)
    return convention.per_mac * (spec.layers * layer + rows * _head_macs(spec, convention))


def answer_flops(
    spec: Transformer, visual: Count, words: Count, answer: Count | int, *, convention: Convention = FULL
) -> Count:
    """FLOPs (or MACs) of reading `visual` tokens and `words` of a prompt, and of `answer` tokens written
    after them.

    With cross-attention a layer adds 2 n d d_kv multiply-adds for the keys and values of n visual tokens, and
    for each text token that it computes more than keys and values of 2 d^2 for its query and what it read and
    2 d (n + 1) for what it compares and sums.
    """
    if not spec.cross:
        context = visual + words
        prefill = prefill_flops(spec, context, convention=convention)
        return prefill + decode_flops(spec, context, answer, convention=convention)
    n, m = _float64(visual), _float64(words)
    steps = float(answer) if isinstance(answer, int) else _float64(answer)
    rows = spec.layers * (m + steps) - (m - 1 if _is_lean(spec, convention) else 0)
    memory = 2 * spec.layers * n * spec.width * spec.kv_width
    read = rows * (2 * spec.width * spec.width + 2 * spec.width * (n + 1))
    text = prefill_flops(spec, words, convention=convention) + decode_flops(
        spec, words, answer, convention=convention
    )
    return text + convention.per_mac * (memory + read)


def layered_flops(
    spec: Transformer,
    visual: Sequence[Count],
    words: Count,
    answer: Count | int,
    *,
    convention: Convention = FULL,
) -> Count:
    """`answer_flops` where layers read different numbers of visual tokens: one for each."""
    layer, last = replace(spec, layers=1, vocab=0, lean=False), replace(spec, layers=1)
    total = answer_flops(last, visual[-1], words, answer, convention=convention)
    for tokens in visual[:-1]:
        total = total + answer_flops(layer, tokens, words, answer, convention=convention)
    return total


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
    with torch.no_grad(), fused_kernels_off(), counter:
        module(*inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Cost:
    """Cost of decisions: tokens, FLOPs and KV-cache bytes, all of one shape [...]."""

    tokens: Tensor
    flops: Tensor
    kv_bytes: Tensor


def _is_lean(spec: Transformer, convention: Convention) -> bool:
    return spec.lean and convention.count not in PUBLISHED


def _layer_macs(
    spec: Transformer, convention: Convention, keys: Count | float, rows: Count | float, pairs: Count
) -> Count:
    """Multiply-adds of a layer: keys and values of `keys` tokens, queries, output and MLP of `rows`, scores
    and sums of `pairs`. A published formula takes keys for as wide as queries."""
    width, kv, matrices = spec.width, spec.kv_width, 3 if spec.gated else 2
    if convention.count in PUBLISHED:
        kv, matrices = width, PUBLISHED[convention.count]
    own = 2 * width * width + matrices * width * spec.mlp
    return keys * (2 * width * kv) + rows * own + pairs * (2 * width)


def _head_macs(spec: Transformer, convention: Convention) -> int:
    """Multiply-adds of the output head at one position."""
    return 0 if convention.count in PUBLISHED else spec.width * spec.vocab


def _float64(count: Count) -> Count:
    # of torch's and numpy's, tensors alone have double(); the product is float64 for whole numbers and arrays
    # of them
    doubled: Any = count.double() if hasattr(count, "double") else count * 1.0
    return cast(Count, doubled)


@contextmanager
def fused_kernels_off() -> Iterator[None]:
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
