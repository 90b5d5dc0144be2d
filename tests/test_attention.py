"""Claims about attention: it is torch's, in half precision on a CPU as elsewhere; and a key's weight
multiplies its term, at 0 as at 1."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.models import attention as attention_module
from pyrskip.models.attention import attention, weighted_attention

ALL = torch.ones(1, 1, 1, 9, dtype=torch.bool)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, n, 8, generator=generator).to(dtype).requires_grad_() for n in (5, 9, 9)]


@pytest.mark.parametrize("explicit", [0, 1 << 26], ids=["fused", "products"])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_is_float32_rounded(
    explicit: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "EXPLICIT", explicit)
    allowed = torch.rand(3, 1, 5, 9, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    if allowed is not None:
        allowed[..., 0] = True
    half = inputs(torch.bfloat16)
    whole = [t.detach().float().requires_grad_() for t in half]
    wanted = F.scaled_dot_product_attention(*whole, attn_mask=allowed)
    got = attention(*half, allowed)
    assert got.dtype == torch.bfloat16
    # scores, shares and results are each rounded by 0.008 at most, half a step of bfloat16 at 4
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


def far_above(k: Tensor, key: int, by: float) -> Tensor:
    """Keys whose scores with `ones_like(query)` are those of k, but for one, which is so far above 0."""
    moved = k.detach().clone()
    moved[:, :, key] = by * k.shape[-1] ** -0.5
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("above", [0.0, 50.0, 200.0, 1e4])
def test_a_key_of_weight_0_is_as_if_it_were_not_there(above: float, dtype: torch.dtype) -> None:
    q, k, v = inputs(dtype)
    ones, weight = torch.ones_like(q), torch.ones(3, 1, 1, 9, dtype=dtype)
    weight[..., 2] = 0
    weight.requires_grad_()
    moved = far_above(k, 2, above).requires_grad_()
    got = weighted_attention(ones, moved, v, ALL, weight)
    kept = [n for n in range(9) if n != 2]
    wanted = F.scaled_dot_product_attention(ones, moved[:, :, kept], v[:, :, kept])
    # two ways to the same: in each a score, a sum of 8 products whose sizes add up to at most 5, is off by 40
    # eps, its exponential by as much of itself, and sums of 8 terms and a division add 10 eps
    near = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, wanted, rtol=near, atol=near)
    got.sum().backward()
    assert moved.grad is not None and moved.grad[:, :, 2].eq(0).all()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (weight, moved, v))


@pytest.mark.parametrize("above", [0.0, 50.0, 200.0])
@pytest.mark.parametrize("at", [0.0, 1e-3, 1.0])
def test_gradients_to_weights_are_those_of_finite_differences(at: float, above: float) -> None:
    q, k, v = inputs(torch.float64)
    keys, ones = far_above(k, 2, above), torch.ones_like(q)
    weight = torch.ones(3, 1, 1, 9, dtype=torch.float64)
    weight[..., 2], weight[..., 5] = at, 0.25

    def summed(moved: Tensor) -> Tensor:
        return weighted_attention(ones, keys, v.detach(), ALL, moved).sum()

    given = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(summed(given), given)
    for key in (2, 5):
        # into [0, 1], by 1e-4 of the key's weight, or where that is 0 of the others' share of attention
        value = float(weight[0, 0, 0, key])
        step = 1e-4 * (-value or math.exp(-above))
        points = []
        for times in range(5):
            moved = weight.clone()
            moved[0, 0, 0, key] += times * step
            points.append(summed(moved))
        # five points on one side: relative to the slope the error is near the step's fourth power, 1e-16, and
        # the rounding of 1e-16 over the step, 1e-12
        difference = sum(c * p for c, p in zip((-25, 48, -36, 16, -3), points, strict=True)) / (12 * step)
        torch.testing.assert_close(slope[0, 0, 0, key], difference, rtol=1e-6, atol=1e-6)


def test_queries_without_any_weight_spoil_no_gradient() -> None:
    q, k, v = inputs(torch.float32)
    weight = torch.ones(3, 1, 1, 9)
    weight[1] = 0
    weight.requires_grad_()
    got = weighted_attention(q, k, v, ALL, weight)
    assert got.isfinite().all()
    got.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (weight, q, k, v))


@pytest.mark.parametrize("at", [1e-45, 1e-30, 1e-19, 1e-3])
def test_a_faint_key_far_above_the_others_flushes_nothing(at: float) -> None:
    """Its term and the others' are one size: the result is between the values."""
    q, k, v = inputs(torch.float32)
    weight = torch.ones(3, 1, 1, 9)
    weight[..., 2] = at
    keys = far_above(k, 2, -math.log(float(weight[0, 0, 0, 2])))
    got = weighted_attention(torch.ones_like(q), keys, v, ALL, weight)
    assert got.isfinite().all() and got.ne(0).all()
    assert (got <= v.amax(2, keepdim=True)).all() and (got >= v.amin(2, keepdim=True)).all()
