"""Claims that hold for every pruner, in every native model: as much stays as is paid for, by the same rule in
every place, a row at a time."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from pyrskip.cost import measured_flops
from pyrskip.models.language import LANGUAGES
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.pruners import PRUNERS, InsidePruner, Pruner
from pyrskip.sample import Batch
from tests.models import every_tile, mixed_decisions, tiny_batch, tiny_model

NAMES = [name for name in PRUNERS if name != "random"]
INSIDE = [name for name, pruner in PRUNERS.items() if issubclass(pruner, InsidePruner)]


def build(name: str, ratio: float = 1.0, tokens: int = 0) -> Pruner:
    return PRUNERS[name](PRUNERS[name].config_class(name, ratio, tokens))


@pytest.fixture(scope="module", params=LANGUAGES)
def whole(request: pytest.FixtureRequest) -> NativeModel:
    return tiny_model((2, 2, 1), layers=4, language=request.param)


@pytest.fixture(scope="module")
def double(whole: NativeModel) -> NativeModel:
    """In float64, so that rounding chooses no tokens."""
    return copy.deepcopy(whole).double()


@pytest.fixture(params=NAMES)
def pruned(double: NativeModel, request: pytest.FixtureRequest) -> Iterator[NativeModel]:
    double.pruner = build(request.param, 0.4)
    yield double
    double.pruner = None


@pytest.fixture(scope="module")
def batch() -> Batch:
    return tiny_batch((2, 1, 1))


def test_an_answer_depends_neither_on_batch_mates_nor_on_padding(pruned: NativeModel, batch: Batch) -> None:
    asked = mixed_decisions(pruned, batch, 1)
    together, answers = pruned.loglik(batch, asked), pruned.answer(batch, asked)
    for row in (0, 2):
        alone = batch.rows([row])
        assert torch.allclose(pruned.loglik(alone, asked[[row]])[0], together[row], rtol=0, atol=1e-9)
        assert pruned.answer(alone, asked[[row]]) == [answers[row]]


def test_at_a_ratio_of_1_a_model_is_the_unpruned_one(pruned: NativeModel, batch: Batch) -> None:
    asked, pruner = mixed_decisions(pruned, batch, 1), pruned.pruner
    assert pruner is not None
    fewer = pruned.loglik(batch, asked)
    pruned.pruner = build(pruner.config.name, 1.0)
    same = pruned.loglik(batch, asked)
    pruned.pruner = None
    plain = pruned.loglik(batch, asked)
    assert torch.allclose(same, plain, rtol=0, atol=1e-9) and (fewer - plain).abs().max() > 1e-3


def test_a_question_without_any_tile_has_nothing_to_prune(pruned: NativeModel, batch: Batch) -> None:
    asked, pruner = mixed_decisions(pruned, batch, 1), pruned.pruner
    nothing = torch.zeros_like(asked)
    asked[1] = 0
    among, alone = pruned.loglik(batch, asked), pruned.loglik(batch, nothing)
    pruned.pruner = None
    assert torch.allclose(alone, pruned.loglik(batch, nothing), rtol=0, atol=1e-9)
    assert torch.allclose(among[1], alone[1], rtol=0, atol=1e-9)
    pruned.pruner = pruner


@pytest.mark.parametrize("name", INSIDE)
def test_decoding_behind_caches_of_different_lengths_is_one_pass(
    double: NativeModel, batch: Batch, name: str
) -> None:
    asked, double.pruner = mixed_decisions(double, batch, 1), build(name, 0.4)
    language, question = double.language, double.language.tokenize(batch.texts)
    visual, _ = double.visual(batch, double.encode(batch, asked > 0), asked)
    ids, _ = language.tokenize_answers([q.answers[0] for q in batch.questions])
    with torch.no_grad():
        wanted = language.logits(visual, None, question, ids)
        logits, keys, caches, layers = language.prefill(visual, question)
        for step in range(ids.shape[1]):
            assert torch.allclose(logits, wanted[:, step], rtol=0, atol=1e-9)
            keys = [F.pad(of_layer, (0, 1), value=True) for of_layer in keys]
            logits, caches = language.decode(ids[:, step], torch.tensor([step + 1]), keys, caches, layers)
    double.pruner = None


@pytest.mark.parametrize("tokens", [0, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_counted_is_what_is_measured(whole: NativeModel, batch: Batch, name: str, tokens: int) -> None:
    alone, asked = batch.rows([3]), every_tile(whole, batch)[[3]]
    whole.pruner = build(name, 1.0 if tokens else 0.4, tokens)
    with patch.object(whole.language, "decode", wraps=whole.language.decode) as decode:
        flops = measured_flops(partial(whole.answer, alone, asked))
    whole.config = replace(whole.config, cost=CostConfig(answer_tokens=decode.call_count))
    size = alone.size[alone.image_of]
    counted = whole.cost(whole.realise(asked, size), size, whole.prompt_tokens(alone))
    whole.pruner = None
    # what is kept whole is not pooled, so that nothing is measured that is not counted
    assert flops == float(counted.flops)


@pytest.mark.parametrize("name", INSIDE)
def test_a_cache_holds_what_each_layer_reads(whole: NativeModel, batch: Batch, name: str) -> None:
    asked = every_tile(whole, batch)
    whole.pruner = build(name, 0.4)
    visual, _ = whole.visual(batch, whole.encode(batch, asked > 0), asked)
    question = whole.language.tokenize(batch.texts)
    with torch.no_grad():
        _, keys, caches, _ = whole.language.prefill(visual, question)
    size, words = batch.size[batch.image_of], whole.prompt_tokens(batch)
    counted = whole.cost(whole.realise(asked, size), size, words).kv_bytes
    assert whole.pruner is not None
    read = whole.pruner.read(asked.sum(-1), 4)
    assert read[-1].lt(read[0]).all()
    if whole.config.language.name == "decoder":
        assert [cache[0].shape[2] for cache in caches] == [
            int(n.max()) + question[0].shape[1] + 1 for n in read
        ]
        held = torch.stack([real.sum(-1) for real in keys]).sum(0) + 4 * whole.config.cost.answer_tokens
        assert counted.equal(held * 2 * 2.0 * 32)
    whole.pruner = None
