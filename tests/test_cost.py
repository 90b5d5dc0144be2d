"""Costs: published numbers, consistency between prefill and decode, and formulas against what torch really runs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrskip.cost import Convention, Transformer, decode_flops, kv_bytes, measured_flops, prefill_flops
from pyrskip.errors import UserError

examples = settings(max_examples=60, deadline=None)
PTP = Transformer(layers=24, width=2048, heads=16, kv_heads=16, mlp=8192, gated=True)
MIB = 2**20


@st.composite
def specs(draw: st.DrawFn) -> Transformer:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 4))
    return Transformer(
        layers=draw(st.integers(1, 4)),
        width=heads * draw(st.integers(1, 8)),
        heads=heads,
        kv_heads=kv_heads,
        mlp=draw(st.integers(1, 64)),
        gated=draw(st.booleans()),
        vocab=draw(st.integers(0, 100)),
    )


class Decoder(nn.Module):
    """The layers and head that a Transformer spec describes, without norms or embeddings."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        self.spec = spec
        d, kv, m = spec.width, spec.kv_width, spec.mlp
        shapes = [(d, d), (d, kv), (d, kv), (d, d), (m, d)] + [(d, m)] * (2 if spec.gated else 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes) for _ in range(spec.layers)
        )
        self.head = nn.Linear(d, spec.vocab) if spec.vocab else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        heads, kv_heads = self.spec.heads, self.spec.kv_heads
        for query, key, value, out, down, up, *gate in self.layers:
            q, k, v = (
                layer(x).unflatten(-1, (h, -1)).transpose(1, 2)
                for layer, h in ((query, heads), (key, kv_heads), (value, kv_heads))
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + out(y.transpose(1, 2).flatten(2))
            x = x + down(F.silu(gate[0](x)) * up(x) if gate else F.silu(up(x)))
        return self.head(x[:, -1:])


def test_prefill_equals_the_published_flops() -> None:
    assert prefill_flops(PTP, 1792) == 2 * 24 * (4 * 1792 * 2048**2 + 2 * 1792**2 * 2048 + 3 * 1792 * 2048 * 8192)
    assert prefill_flops(PTP, 1792) == pytest.approx(6.404e12, rel=1e-4)
    assert prefill_flops(PTP, 896) == pytest.approx(3.044e12, rel=1e-4)


def test_the_cache_takes_the_published_bytes() -> None:
    assert kv_bytes(PTP, 1792) == 336 * MIB
    assert kv_bytes(PTP, torch.tensor([1792, 896])).tolist() == [336 * MIB, 168 * MIB]
    assert kv_bytes(PTP, 1792, bytes_per_value=4) == 672 * MIB


@examples
@given(specs(), st.lists(st.integers(1, 4000), min_size=1, max_size=4), st.sampled_from(["full", "causal"]))
def test_a_batch_costs_what_its_samples_cost(spec: Transformer, tokens: list[int], attention: str) -> None:
    convention = Convention(attention=attention)  # type: ignore[arg-type]
    batch = torch.tensor(tokens, dtype=torch.int32)
    flops = prefill_flops(spec, batch, convention=convention)
    assert flops.dtype == torch.float64
    assert flops.tolist() == [prefill_flops(spec, n, convention=convention) for n in tokens]
    decode = decode_flops(spec, batch, batch, convention=convention)
    assert decode.tolist() == [decode_flops(spec, n, n, convention=convention) for n in tokens]
    assert kv_bytes(spec, batch).tolist() == [kv_bytes(spec, n) for n in tokens]


@examples
@given(specs(), st.integers(1, 500), st.integers(0, 50))
def test_decoding_a_token_costs_what_a_longer_causal_prompt_adds(spec: Transformer, context: int, steps: int) -> None:
    causal = Convention(attention="causal")
    longer = prefill_flops(spec, context + steps, convention=causal) - prefill_flops(spec, context, convention=causal)
    assert decode_flops(spec, context, steps) == longer + steps * 2 * spec.width * spec.vocab


@examples
@given(specs(), st.integers(1, 500))
def test_macs_are_half_of_flops(spec: Transformer, tokens: int) -> None:
    macs = Convention(unit="macs")
    assert 2 * prefill_flops(spec, tokens, convention=macs) == prefill_flops(spec, tokens)
    assert 2 * decode_flops(spec, tokens, 3, convention=macs) == decode_flops(spec, tokens, 3)


def test_causal_attention_counts_only_pairs_that_look_back() -> None:
    saved = prefill_flops(PTP, 100) - prefill_flops(PTP, 100, convention=Convention(attention="causal"))
    assert saved == 24 * 4 * 2048 * (100 * 99 / 2)


def test_grouped_queries_shrink_keys_values_and_cache_alone() -> None:
    grouped = Transformer(layers=24, width=2048, heads=16, kv_heads=4, mlp=8192, gated=True)
    assert 4 * kv_bytes(grouped, 1792) == kv_bytes(PTP, 1792)
    saved = 24 * 2 * 1792 * 2 * 2048 * (2048 - 512)
    assert prefill_flops(PTP, 1792) - prefill_flops(grouped, 1792) == saved


def test_a_plain_mlp_has_two_matrices_and_the_head_is_paid_for_one_position() -> None:
    gated = Transformer(layers=1, width=8, heads=2, kv_heads=1, mlp=16, gated=True)
    plain = Transformer(layers=1, width=8, heads=2, kv_heads=1, mlp=16, gated=False, vocab=50)
    assert prefill_flops(gated, 10) - prefill_flops(plain, 10) == 2 * 10 * 8 * 16 - 2 * 8 * 50


@settings(max_examples=10, deadline=None)
@given(specs(), st.integers(1, 12))
def test_the_prefill_formula_equals_what_a_transformer_runs(spec: Transformer, tokens: int) -> None:
    assert measured_flops(Decoder(spec), torch.zeros(1, tokens, spec.width)) == prefill_flops(spec, tokens)


def test_measured_linear_and_convolution_equal_their_formulas() -> None:
    assert measured_flops(nn.Linear(6, 7), torch.zeros(5, 6)) == 2 * 5 * 6 * 7
    convolution = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    assert measured_flops(convolution, torch.zeros(2, 4, 10, 12)) == 2 * 2 * 10 * 12 * 8 * (4 // 2) * 9


@pytest.mark.parametrize("train", [True, False])
def test_fused_layers_are_not_counted_as_free(train: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).train(train)
    spec = Transformer(layers=1, width=32, heads=4, kv_heads=4, mlp=64, gated=False)
    assert measured_flops(layer, torch.zeros(1, 10, 32)) == prefill_flops(spec, 10)
    lstm = nn.LSTM(8, 16, batch_first=True).train(train)
    assert measured_flops(lstm, torch.zeros(1, 5, 8)) == 2 * 5 * 4 * 16 * (8 + 16)


def test_measuring_leaves_the_module_and_the_backends_as_they_were() -> None:
    mha, mkldnn = torch.backends.mha, torch.backends.mkldnn
    before = mha.get_fastpath_enabled(), mkldnn.enabled, torch.backends.cudnn.enabled
    module = nn.Dropout().train()
    measured_flops(module, torch.zeros(3))
    with pytest.raises(TypeError):
        measured_flops(nn.Linear(2, 2), None)
    assert module.training
    assert before == (mha.get_fastpath_enabled(), mkldnn.enabled, torch.backends.cudnn.enabled)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "transformer.layers=0"),
        ({"vocab": -1}, "transformer.vocab=-1"),
        ({"heads": 5}, "transformer.heads=5 must divide width=32"),
        ({"kv_heads": 3}, "multiple of kv_heads=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    sizes = {"layers": 1, "width": 32, "heads": 4, "kv_heads": 4, "mlp": 64} | change
    with pytest.raises(UserError, match=message):
        Transformer(**sizes, gated=True)


def test_an_unknown_convention_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UserError, match="allowed: causal, full"):
        Convention(attention="sparse")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="allowed: flops, macs"):
        Convention(unit="tops")  # type: ignore[arg-type]
