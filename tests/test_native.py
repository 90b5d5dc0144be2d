"""The native model: training under any decision and inference under one are one function, and a skipped tile
is skipped."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.metrics import exact
from pyrskip.models.attention import weighted_attention
from pyrskip.models.cross import CrossBlock
from pyrskip.models.language import END
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.models.vision import VisionConfig
from pyrskip.sample import Batch, Question
from tests.models import (
    ANSWERS,
    BACKBONE,
    every_tile,
    mixed_decisions,
    taught_model,
    tiny_batch,
    tiny_model,
    with_answers,
)

# float64 rounds a log-likelihood of 30 by 4e-15, and sums of a hundred terms by some ten times that
DOUBLE = {"rtol": 0.0, "atol": 1e-10}
LONG = "one two three four five six seven eight"


@pytest.fixture(scope="module")
def trained() -> NativeModel:
    return taught_model(with_answers(tiny_batch(), [*ANSWERS, LONG]))


@torch.no_grad()
def masked(model: NativeModel, batch: Batch, asked: Tensor, keep: Tensor) -> Tensor:
    """Log-likelihoods in the way of training: every tile encoded and asked for, skipped ones behind a gate of
    0."""
    features = model.encode(batch, torch.ones_like(keep))
    return model.forced(batch, features, asked, gates=keep.float()).loglik


@pytest.fixture
def double(native: NativeModel) -> NativeModel:
    """The model in float64, where what is one function is one to DOUBLE."""
    return copy.deepcopy(native).double()


@pytest.mark.parametrize("seed", range(3))
def test_masked_training_is_gathered_inference(double: NativeModel, seed: int) -> None:
    batch, asked = tiny_batch(), mixed_decisions(double, tiny_batch(), seed)
    keep = asked > 0
    # a gated tile asks for some tokens as well: what it asks must not matter
    elsewhere = every_tile(double, batch).where(~keep, 0)
    inference = double.loglik(batch, asked)
    assert torch.allclose(masked(double, batch, asked + elsewhere, keep), inference, **DOUBLE)
    assert torch.allclose(masked(double, batch, asked + elsewhere.clamp(max=1), keep), inference, **DOUBLE)
    # and the test can tell decisions apart
    assert (masked(double, batch, asked + elsewhere, torch.ones_like(keep)) - inference).abs().max() > 1e-2


def test_in_float32_masked_training_is_gathered_inference_to_1e_5(native: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch())
    keep = asked > 0
    elsewhere = every_tile(native, batch).where(~keep, 0)
    # of the log-likelihood: 84 of float32's steps, where its sums are of a hundred terms and their rounding
    # grows with the root of that
    assert torch.allclose(
        masked(native, batch, asked + elsewhere, keep), native.loglik(batch, asked), rtol=1e-5, atol=1e-5
    )


def test_gates_that_are_all_open_change_nothing(double: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(double, tiny_batch())
    features = double.encode(batch, asked > 0)
    plain = double.forced(batch, features, asked)
    gated = double.forced(batch, features, asked, gates=torch.ones(asked.shape))
    assert torch.allclose(plain.loglik, gated.loglik, **DOUBLE)


def test_a_skipped_tile_is_never_encoded(native: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch())
    keep = asked > 0
    union = torch.stack([keep[batch.image_of == i].any(0) for i in range(len(batch.image))])
    assert union.sum() < keep.sum() and not union.all(), "the decisions must share images and skip tiles"
    before = native.vision.encoded
    features = native.encode(batch, keep)
    assert native.vision.encoded - before == int(union.sum())
    assert features.encoded.equal(union)
    for tile, tile_map in enumerate(features.maps):
        assert tile_map[~union[:, tile]].eq(0).all()
    before = native.vision.encoded
    native.answer(batch, asked)
    assert native.vision.encoded - before == int(union.sum())


def test_what_is_padding_is_not_encoded_even_when_it_is_asked_for() -> None:
    model, batch = tiny_model((2, 2, 1)), tiny_batch()
    before = model.vision.encoded
    model.encode(batch, torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool))
    assert model.vision.encoded - before == int((model.pyramid.capacity(batch.size) > 0).sum())


def test_a_decision_and_an_answer_do_not_depend_on_batch_mates(double: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(double, tiny_batch(), 1)
    together, answers = double.loglik(batch, asked), double.answer(batch, asked)
    for row in range(len(batch)):
        alone = batch.rows([row])
        assert torch.allclose(double.loglik(alone, asked[[row]])[0], together[row], **DOUBLE)
        assert double.answer(alone, asked[[row]]) == [answers[row]]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = batch.rows(order)
    assert torch.allclose(double.loglik(shuffled, asked[order]), together[order], **DOUBLE)
    assert double.answer(shuffled, asked[order]) == [answers[i] for i in order]


def test_a_larger_canvas_of_padding_changes_no_token() -> None:
    model, batch = tiny_model(), tiny_batch()
    small = batch.rows([8])
    dirty = replace(small, image=small.image.clone())
    rows, columns = dirty.size[0].tolist()
    dirty.image[:, :, rows:], dirty.image[:, :, :, columns:] = 255, 255
    asked = every_tile(model, small)
    assert model.loglik(small, asked).equal(model.loglik(dirty, asked))


def test_a_token_written_has_the_logits_that_forcing_it_has(
    native: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch(), 1)
    visual, _ = native.visual(batch, native.encode(batch, asked > 0), asked)
    question, language = native.language.tokenize(batch.texts), native.language
    steps: list[Tensor] = []
    head = language._head

    def record(x: Tensor) -> Tensor:
        steps.append(head(x))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(language, "_head", record)
        language.generate(visual, question)
    written = torch.stack(steps, dim=1)
    assert written.shape[1] == language.config.max_answer
    forced = language.logits(visual, None, question, written.argmax(-1))
    # after the end of an answer nothing is read
    before = (written.argmax(-1) == END).cumsum(-1).roll(1, -1)
    before[:, 0] = 0
    assert torch.allclose(forced[before == 0], written[before == 0], atol=1e-4)
    assert written.std(1).mean() > 0.1, "steps must differ for this to tell anything"


def test_greedy_of_forced_is_what_generate_writes(trained: NativeModel) -> None:
    batch, agreed = tiny_batch(), 0
    for seed in range(3):
        asked = mixed_decisions(trained, batch, seed)
        features = trained.encode(batch, asked > 0)
        written = trained.write(batch, features, asked)
        for answer in ANSWERS:
            greedy = trained.forced(with_answers(batch, [answer]), features, asked).greedy
            assert greedy.tolist() == [text == answer for text in written]
            agreed += int(greedy.sum())
    assert agreed >= 20, "the model must write the answers for this to tell anything"


@pytest.mark.parametrize(
    "answers",
    [("Twenty Seven",), (LONG,), ("red", "blue", "yes", "no", "twenty seven")],
    ids=["letter case", "too long", "several"],
)
def test_a_score_is_the_metric_of_what_is_written(trained: NativeModel, answers: tuple[str, ...]) -> None:
    batch = tiny_batch()
    batch = replace(batch, questions=tuple(replace(q, answers=answers) for q in batch.questions))
    asked = every_tile(trained, batch)
    features = trained.encode(batch, asked > 0)
    written = trained.write(batch, features, asked)
    expected = [exact(text, answers) for text in written]
    assert trained.score(batch, features, asked).tolist() == expected


def test_a_score_does_not_depend_on_batch_mates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, accepted = tiny_model(), [("red",), ("Twenty Seven",), ("yes",), ("red", "blue"), (LONG,)]
    batch = tiny_batch()
    questions = (replace(q, answers=accepted[i % 5]) for i, q in enumerate(batch.questions))
    batch = replace(batch, questions=tuple(questions))
    asked = every_tile(model, batch)
    # every answer's text, in tokens that teacher forcing does not take for it
    monkeypatch.setattr(model, "write", lambda batch, *_: [q.answers[-1] for q in batch.questions])

    def scored(rows: list[int]) -> list[float]:
        some = batch.rows(rows)
        found: list[float] = model.score(some, model.encode(some, asked[rows] > 0), asked[rows]).tolist()
        return found

    alone = [scored([row])[0] for row in range(len(batch))]
    assert alone == [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert scored(list(range(len(batch)))) == alone
    assert all(scored([i, j]) == [alone[i], alone[j]] for i in range(5) for j in range(5) if i != j)


@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
def test_gradients_to_gates_are_those_of_finite_differences(double: NativeModel, gate: float) -> None:
    batch = tiny_batch()
    asked = every_tile(double, batch)
    features = double.encode(batch, asked > 0)
    gates = torch.full(asked.shape, gate, dtype=torch.float64)
    gates[:, double.pyramid.glance] = 1.0
    gates.requires_grad_()
    double.forced(batch, features, asked, gates=gates).loglik.sum().backward()
    assert gates.grad is not None and gates.grad.isfinite().all()
    assert gates.grad[asked > 0].ne(0).all() and gates.grad[asked == 0].eq(0).all()

    def loglik(tile: int, move: float) -> Tensor:
        moved = gates.detach().clone()
        moved[:, tile] += move
        return double.forced(batch, features, asked, gates=moved).loglik

    with torch.no_grad():
        for tile in range(double.pyramid.tiles):
            # five points on one side, into [0, 1]: rounding of 1e-15 over the step is 1e-10, and the rest of
            # the series, which falls with the step's fourth power, is as small
            step = -3e-5 if gates[0, tile] > 0.75 else 3e-5
            points = (c * loglik(tile, n * step) for n, c in enumerate((-25, 48, -36, 16, -3)))
            slope = sum(points, torch.zeros(len(batch), dtype=torch.float64)) / (12 * step)
            assert torch.allclose(gates.grad[:, tile], slope, rtol=1e-5, atol=1e-6)


def test_without_any_tile_the_model_answers_from_the_question_alone(double: NativeModel) -> None:
    batch = tiny_batch()
    asked = torch.zeros(len(batch), double.pyramid.tiles, dtype=torch.int64)
    before = double.vision.encoded
    blind, answers = double.loglik(batch, asked), double.answer(batch, asked)
    assert double.vision.encoded == before and blind.isfinite().all() and len(answers) == len(batch)
    other = replace(batch, image=255 - batch.image)
    assert double.loglik(other, asked).equal(blind)
    assert torch.allclose(masked(double, batch, every_tile(double, batch), asked > 0), blind, **DOUBLE)
    # one blind question beside sighted ones
    some = every_tile(double, batch)
    some[2] = 0
    assert torch.allclose(double.loglik(batch, some)[2], blind[2], **DOUBLE)


def test_tokens_say_which_tile_they_are_from_and_are_as_many_as_realised(native: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch(), 2)
    tokens, real, tile = native.project(batch, native.encode(batch, asked > 0), asked)
    realised = native.realise(asked, batch.size[batch.image_of])
    assert tokens.shape[:2] == real.shape == tile.shape and real.shape[1] == realised.sum(-1).max()
    for row in range(len(batch)):
        assert tile[row][real[row]].bincount(minlength=native.pyramid.tiles).equal(realised[row])
        assert tile[row][real[row]].diff().ge(0).all()
    assert tokens[~real].eq(0).all()


def test_a_saved_model_comes_back_the_same(native: NativeModel, tmp_path: Path) -> None:
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch())
    native.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    again = NativeModel.load(tmp_path)
    assert again.config == native.config
    assert again.loglik(batch, asked).equal(native.loglik(batch, asked))
    assert again.answer(batch, asked) == native.answer(batch, asked)
    assert NativeModel.load(tmp_path, CostConfig(unit="macs")).config.cost.unit == "macs"


BROKEN = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other": lambda content: b"{}",
}


@pytest.mark.parametrize("how", [*BROKEN, "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "tokenizer.json"])
def test_a_folder_without_a_whole_model_is_refused(name: str, how: str, tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if how != "missing":
        (tmp_path / name).write_bytes(BROKEN[how](content))
    with pytest.raises(UserError):
        NativeModel.load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny_model(layers=1).save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    tiny_model(layers=2).save(other)
    (other / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not the model that"):
        NativeModel.load(other)


def test_gates_are_applied_in_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 8, generator=generator).bfloat16() for _ in range(3))
    allowed = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    # bfloat16 cannot tell these gates from 1 and from each other
    weight = 1 - torch.rand(2, 1, 1, 6, generator=generator) * 1e-3
    gates = [weight.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        under = weighted_attention(q, k, v, allowed, gates[0])
    plain = weighted_attention(q.float(), k.float(), v.float(), allowed, gates[1])
    assert under.dtype == torch.bfloat16 and under.equal(plain.bfloat16())
    up = torch.randn(under.shape, generator=generator).bfloat16()
    (under * up).sum().backward()
    (plain * up.float()).sum().backward()
    assert gates[0].grad is not None and gates[1].grad is not None and gates[0].grad.dtype == torch.float32
    assert torch.allclose(gates[0].grad, gates[1].grad, rtol=1e-4, atol=1e-5)


def test_the_model_trains_under_autocast(native: NativeModel) -> None:
    batch = tiny_batch()
    asked = mixed_decisions(native, batch)
    gates = torch.ones(asked.shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loglik = native.forced(batch, native.encode(batch, asked > 0), asked, gates).loglik
        loglik.sum().backward()
    assert loglik.dtype == torch.float32
    assert torch.allclose(loglik, native.loglik(batch, asked), rtol=0.02, atol=0.3)
    assert gates.grad is not None and gates.grad.dtype == torch.float32 and gates.grad.isfinite().all()


def test_a_question_that_was_answered_in_inference_mode_can_be_learned_from(native: NativeModel) -> None:
    """What its decision came to is remembered, and a tensor of inference mode cannot be saved for a
    gradient."""
    batch = tiny_batch().rows([0])
    asked = native.pyramid.capacity(batch.size)[batch.image_of]
    with torch.inference_mode():
        wanted = native.loss(batch, native.encode(batch, asked > 0), asked)
    loss = native.loss(batch, native.encode(batch, asked > 0), asked)
    loss.sum().backward()
    assert torch.equal(loss.detach(), wanted)


def test_a_trained_encoder_gets_gradients_and_keeps_the_model_one_function() -> None:
    model = tiny_model(vision=replace(BACKBONE, frozen=False)).double().train()
    batch = tiny_batch()
    asked = mixed_decisions(model, batch)
    features = model.encode(batch, every_tile(model, batch) > 0)
    training = model.forced(batch, features, asked)
    training.loglik.sum().backward()
    grads = [p.grad for p in model.vision.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(
        bool(g.ne(0).any()) for g in grads if g is not None
    )
    assert torch.allclose(model.eval().loglik(batch, asked), training.loglik, **DOUBLE)


def test_a_transformer_encodes_tiles_as_well() -> None:
    model = tiny_model(
        vision=VisionConfig("test_vit", 1, kwargs={"dynamic_img_size": True}), levels=2
    ).double()
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch())
    keep = asked > 0
    assert torch.allclose(
        masked(model, batch, every_tile(model, batch).where(~keep, asked), keep),
        model.loglik(batch, asked),
        **DOUBLE,
    )


def test_a_long_question_is_cut_and_an_empty_one_is_allowed() -> None:
    model, batch = tiny_model(), tiny_batch((1, 1))
    batch = replace(batch, questions=(Question("why " * 200, ("no",)), Question("", ("no",))))
    asked = every_tile(model, batch)
    assert model.loglik(batch, asked).isfinite().all()
    assert model.prompt_tokens(batch).tolist() == [model.config.language.max_words + 1, 2]


@torch.no_grad()
def test_a_word_reads_the_token_that_is_named_so_before_any_training() -> None:
    language = tiny_model(language="cross").language
    words = language._embed(torch.arange(100, 120))
    for block in language.blocks:
        assert isinstance(block, CrossBlock)
        keys, _ = block.memorise(words[None])
        queries = block.read_query(block.norm3(words)).unflatten(-1, (block.heads, -1)).transpose(0, 1)
        scores = (queries @ keys[0].transpose(-1, -2)).sum(0)
        assert scores[:, 1:].argmax(-1).equal(torch.arange(20))
