"""Costs: published numbers, prefill against decode, formulas against what torch really runs, and what
decisions cost."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrskip.cost import (
    Convention,
    Cost,
    Transformer,
    answer_flops,
    decode_flops,
    kv_bytes,
    measured_flops,
    prefill_flops,
)
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.language import LANGUAGES, Decoder, Visual
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.sample import Batch
from tests.models import every_tile, mixed_decisions, tiny_batch, tiny_model

examples = settings(max_examples=60)
PTP = Transformer(layers=24, width=2048, heads=16, kv_heads=16, mlp=8192, gated=True)
AS_PTP = Convention(count="ptp")
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


class Layers(nn.Module):
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
    assert prefill_flops(PTP, 1792, convention=AS_PTP) == 2 * 24 * (
        4 * 1792 * 2048**2 + 2 * 1792**2 * 2048 + 3 * 1792 * 2048 * 8192
    )
    assert prefill_flops(PTP, 1792, convention=AS_PTP) == pytest.approx(6.404e12, rel=1e-4)
    assert prefill_flops(PTP, 896, convention=AS_PTP) == pytest.approx(3.044e12, rel=1e-4)


def test_a_published_formula_is_the_same_for_every_model_of_its_sizes() -> None:
    """Whatever the last layer skips, heads share, the MLP has and the head writes."""
    n, d, m = 1792, 2048, 8192
    for kv_heads, gated, lean, vocab in product((16, 4), (False, True), (False, True), (0, 32_000)):
        spec = Transformer(24, d, 16, kv_heads, m, gated, vocab, lean=lean)
        assert prefill_flops(spec, n, convention=AS_PTP) == prefill_flops(PTP, n, convention=AS_PTP)
        fastv = answer_flops(spec, n - 10, 10, 0, convention=Convention(unit="macs", count="fastv"))
        assert fastv == 24 * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)


def test_under_a_published_formula_a_model_pays_every_layer_in_full() -> None:
    model, batch = tiny_model(cost=CostConfig(count="ptp", answer_tokens=0)), tiny_batch()
    counted = decision_cost(model, batch, torch.zeros(len(batch), 3, dtype=torch.int64)).flops
    n, d, m = model.prompt_tokens(batch).double(), 32, 48
    assert counted.equal(2 * 2 * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m))


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
def test_decoding_a_token_costs_what_a_longer_causal_prompt_adds(
    spec: Transformer, context: int, steps: int
) -> None:
    causal = Convention(attention="causal")
    longer = prefill_flops(spec, context + steps, convention=causal) - prefill_flops(
        spec, context, convention=causal
    )
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


@settings(max_examples=10)
@given(specs(), st.integers(1, 12))
def test_the_prefill_formula_equals_what_a_transformer_runs(spec: Transformer, tokens: int) -> None:
    assert measured_flops(Layers(spec), torch.zeros(1, tokens, spec.width)) == prefill_flops(spec, tokens)


@pytest.mark.parametrize(
    ("keys", "more"),
    [(7, {}), (5, {"is_causal": True}), (7, {"attn_mask": torch.ones(5, 7, dtype=torch.bool)})],
    ids=["plain", "causal", "masked"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_is_measured_in_full_whatever_its_mask(
    keys: int, more: dict[str, Any], dtype: torch.dtype
) -> None:
    q, kv = torch.zeros(2, 4, 5, 8, dtype=dtype), torch.zeros(2, 2, keys, 8, dtype=dtype)
    attend = partial(F.scaled_dot_product_attention, enable_gqa=True, **more)
    assert measured_flops(attend, q, kv, kv) == 2 * 2 * (2 * 4 * 5 * keys * 8)


def measured(language: Decoder, call: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of a call that writes an answer, and how many tokens it decodes behind the cache."""
    with patch.object(language, "decode", wraps=language.decode) as decode:
        flops = measured_flops(call)
    return flops, decode.call_count


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_model_is_paid_for_what_it_runs(name: str, layers: int) -> None:
    language = tiny_model(language=name, layers=layers).language
    for tokens, words in ((0, 5), (9, 1), (100, 14), (1360, 14)):
        visual = Visual(
            torch.randn(1, tokens, language.width),
            torch.ones(1, tokens, dtype=torch.bool),
            torch.zeros(1, dtype=torch.int64),
        )
        question = torch.full((1, words), 5), torch.ones(1, words, dtype=torch.bool)
        flops, answer = measured(language, partial(language.generate, visual, question))
        # the mark that starts the answer is a word of the prompt
        assert flops == answer_flops(language.transformer, float(tokens), words + 1.0, answer)


@pytest.mark.parametrize("name", LANGUAGES)
def test_an_answer_is_paid_for_what_runs_from_its_pixels_on(name: str) -> None:
    model, batch = tiny_model(language=name, layers=6), tiny_batch()
    asked = mixed_decisions(model, batch)
    for row in (0, 1, 4, 8):
        flops, answer = measured(model.language, partial(model.answer, batch.rows([row]), asked[[row]]))
        model.config = replace(model.config, cost=CostConfig(answer_tokens=answer))
        counted = float(decision_cost(model, batch, asked).flops[row])
        # pooling is a matrix product for the counter, and none for the cost model
        assert counted <= flops <= 1.01 * counted


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
    with pytest.raises(UserError, match="allowed: fastv, ptp, run"):
        Convention(count="all")  # type: ignore[arg-type]


def decision_cost(model: NativeModel, batch: Batch, asked: Tensor) -> Cost:
    size = batch.size[batch.image_of]
    return model.cost(model.realise(asked, size), size, model.prompt_tokens(batch))


def test_more_tiles_cost_more(native: NativeModel) -> None:
    batch = tiny_batch()
    capacity = every_tile(native, batch)
    selections = ActionSet.by_level(native.pyramid).selection
    costs = [decision_cost(native, batch, capacity * keep) for keep in selections]
    for a, less in zip(selections, costs, strict=True):
        for b, more in zip(selections, costs, strict=True):
            if (b | a).equal(b) and not a.equal(b):
                assert all(
                    (getattr(more, n) > getattr(less, n)).all() for n in ("tokens", "flops", "kv_bytes")
                )


def test_more_tokens_of_the_same_tiles_cost_more_and_encode_as_much(native: NativeModel) -> None:
    batch = tiny_batch()
    capacity = every_tile(native, batch)[:1]
    row = batch.rows([0])
    costs = [
        float(decision_cost(native, row, (capacity * share).ceil().long()).flops)
        for share in (0.25, 0.5, 1.0)
    ]
    assert costs[0] < costs[1] < costs[2]
    assert costs[0] > float(native.encode_flops(row.size)[0].sum())


def test_a_cost_is_the_encoders_the_projectors_and_the_language_models() -> None:
    model, batch = tiny_model(cost=CostConfig(answer_tokens=3)), tiny_batch()
    asked = mixed_decisions(model, batch)
    size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
    tokens = model.realise(asked, size).sum(-1)
    spec = model.language.transformer
    for row in range(len(batch)):
        encoder = sum(
            model.vision.flops(*(-(-n // 8) * 8 for n in pixels))
            for pixels in model.pyramid.pixels(size[[row]])[0][asked[row] > 0].tolist()
        )
        context = int(tokens[row] + words[row])
        expected = prefill_flops(spec, float(context)) + decode_flops(spec, float(context), 3) + encoder
        expected += int(tokens[row]) * model.projector.flops_per_token()
        assert float(decision_cost(model, batch, asked).flops[row]) == expected


def test_what_is_encoded_is_what_is_paid_for(native: NativeModel) -> None:
    batch = tiny_batch((1, 1, 1, 1, 1))
    asked = mixed_decisions(native, batch)
    seen: list[torch.Size] = []
    hook = native.vision.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    native.encode(batch, asked > 0)
    hook.remove()
    encoded = sum(images * native.vision.flops(rows, columns) for images, _, rows, columns in seen)
    assert encoded == int((native.encode_flops(batch.size) * (asked > 0)).sum())


def test_without_any_tile_nothing_is_paid_for_images() -> None:
    model, batch = tiny_model(), tiny_batch()
    cost = decision_cost(model, batch, torch.zeros(len(batch), 3, dtype=torch.int64))
    words = model.prompt_tokens(batch)
    spec = model.language.transformer
    assert cost.tokens.eq(0).all()
    assert cost.flops.equal(prefill_flops(spec, words) + decode_flops(spec, words, 1))


def test_macs_are_half_of_the_flops() -> None:
    batch = tiny_batch()
    flops, macs = (tiny_model(cost=CostConfig(unit=unit)) for unit in ("flops", "macs"))
    asked = mixed_decisions(flops, batch)
    assert decision_cost(flops, batch, asked).flops.equal(2 * decision_cost(macs, batch, asked).flops)
    assert macs.convention == Convention(unit="macs")
