"""Claims that hold for every pruner, in every native model: as much stays as is paid for, by the same rule in
every place, a row at a time."""

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
from pyrskip.pruners import PRUNERS, Pruner
from tests.models import mixed_decisions, tiny_batch, tiny_model

NAMES = [name for name in PRUNERS if name != "random"]


def build(name: str, ratio: float = 1.0, tokens: int = 0) -> Pruner:
    return PRUNERS[name](PRUNERS[name].config_class(name, ratio, tokens))


@pytest.fixture(scope="module", params=LANGUAGES)
def deep(request: pytest.FixtureRequest) -> NativeModel:
    return tiny_model((2, 2, 1), layers=4, language=request.param).double()


@pytest.fixture(params=NAMES)
def pruned(deep: NativeModel, request: pytest.FixtureRequest) -> Iterator[NativeModel]:
    deep.pruner = build(request.param, 0.4)
    yield deep
    deep.pruner = None


def test_an_answer_depends_neither_on_batch_mates_nor_on_padding(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch(), 1)
    together, answers = pruned.loglik(batch, asked), pruned.answer(batch, asked)
    for row in range(len(batch)):
        alone = batch.rows([row])
        assert torch.allclose(pruned.loglik(alone, asked[[row]])[0], together[row], rtol=0, atol=1e-9)
        assert pruned.answer(alone, asked[[row]]) == [answers[row]]


def test_at_a_ratio_of_1_a_model_is_the_unpruned_one(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch(), 1)
    pruner = pruned.pruner
    assert pruner is not None
    fewer = pruned.loglik(batch, asked)
    pruned.pruner = build(pruner.config.name, 1.0)
    same, written = pruned.loglik(batch, asked), pruned.answer(batch, asked)
    pruned.pruner = None
    plain = pruned.loglik(batch, asked)
    assert torch.allclose(same, plain, rtol=0, atol=1e-9) and pruned.answer(batch, asked) == written
    assert (fewer - plain).abs().max() > 1e-3


def test_decoding_behind_caches_of_different_lengths_is_one_pass(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch(), 1)
    language, question = pruned.language, pruned.language.tokenize(batch.texts)
    visual, _ = pruned.visual(batch, pruned.encode(batch, asked > 0), asked)
    ids, _ = language.tokenize_answers([q.answers[0] for q in batch.questions])
    wanted = language.logits(visual, None, question, ids)
    logits, keys, caches, layers = language.prefill(visual, question)
    for step in range(ids.shape[1]):
        assert torch.allclose(logits, wanted[:, step], rtol=0, atol=1e-9)
        keys = [F.pad(of_layer, (0, 1), value=True) for of_layer in keys]
        logits, caches = language.decode(ids[:, step], torch.tensor([step + 1]), keys, caches, layers)


@pytest.mark.parametrize("tokens", [0, 7])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_counted_is_what_is_measured(language: str, name: str, tokens: int) -> None:
    model, batch = tiny_model((2, 2, 1), layers=4, language=language), tiny_batch()
    asked = mixed_decisions(model, batch, 1)
    model.pruner = build(name, 1.0 if tokens else 0.4, tokens)
    for row in (0, len(batch) - 1):
        alone, size = batch.rows([row]), batch.size[batch.image_of][[row]]
        with patch.object(model.language, "decode", wraps=model.language.decode) as decode:
            flops = measured_flops(partial(model.answer, alone, asked[[row]]))
        model.config = replace(model.config, cost=CostConfig(answer_tokens=decode.call_count))
        realised = model.realise(asked[[row]], size)
        counted = float(model.cost(realised, size, model.prompt_tokens(alone)).flops)
        # pooling is a matrix product for the counter, and none for the cost model
        assert counted <= flops <= 1.01 * counted
