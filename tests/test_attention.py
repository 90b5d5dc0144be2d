"""Claims about attention: it is torch's, in half precision on a CPU as elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.models import language
from pyrskip.models.language import attention


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, n, 8, generator=generator).to(dtype).requires_grad_() for n in (5, 9, 9)]


@pytest.mark.parametrize("explicit", [0, 1 << 26], ids=["fused", "products"])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_is_float32_rounded(
    explicit: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "EXPLICIT", explicit)
    allowed = torch.rand(3, 1, 5, 9, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    if allowed is not None:
        allowed[..., 0] = True
    half, whole = inputs(torch.bfloat16), inputs(torch.float32)
    wanted = F.scaled_dot_product_attention(*whole, attn_mask=allowed)
    got = attention(*half, allowed)
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), wanted, atol=0.03)
    got.sum().backward()
    wanted.sum().backward()
    for a, b in zip(half, whole, strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad.float(), b.grad, atol=0.05)


def test_a_query_that_is_allowed_nothing_spoils_no_gradient() -> None:
    half = inputs(torch.bfloat16)
    allowed = torch.ones(3, 1, 5, 9, dtype=torch.bool)
    allowed[1, :, 2] = False
    got = attention(*half, allowed)
    assert got.isfinite().all()
    got[0].sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in half)
