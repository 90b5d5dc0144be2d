"""The native model: training under any decision and inference under one are one function, and a skipped tile is skipped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.cost import Convention, Cost, decode_flops, prefill_flops
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.metrics import exact
from pyrskip.models.cross import CrossBlock
from pyrskip.models.language import END, LANGUAGES, weighted_attention
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.models.projector import pool
from pyrskip.models.vision import VisionConfig
from pyrskip.sample import Batch, Question
from tests.models import ANSWERS, BACKBONE, mixed_decisions, taught_model, tiny_batch, tiny_model, with_answers

GRIDS = ((1,), (2, 2, 1))
LONG = "one two three four five six seven eight"


@pytest.fixture(scope="module", params=[(grid, name) for grid in GRIDS for name in LANGUAGES], ids=str)
def model(request: pytest.FixtureRequest) -> NativeModel:
    grid, language = request.param
    return tiny_model(grid, language=language)


@pytest.fixture(scope="module")
def trained() -> NativeModel:
    return taught_model(with_answers(tiny_batch(), [*ANSWERS, LONG]))


def every_tile(model: NativeModel, batch: Batch) -> Tensor:
    return model.pyramid.capacity(batch.size)[batch.image_of]


@torch.no_grad()
def masked(model: NativeModel, batch: Batch, asked: Tensor, keep: Tensor) -> Tensor:
    """Log-likelihoods in the way of training: every tile encoded and asked for, skipped ones behind a gate of 0."""
    features = model.encode(batch, torch.ones_like(keep))
    return model.forced(batch, features, asked, gates=keep.float()).loglik


@pytest.mark.parametrize("seed", range(3))
def test_masked_training_is_gathered_inference(model: NativeModel, seed: int) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch(), seed)
    keep = asked > 0
    # a gated tile asks for some tokens as well: what it asks must not matter
    elsewhere = every_tile(model, batch).where(~keep, 0)
    inference = model.loglik(batch, asked)
    assert torch.allclose(masked(model, batch, asked + elsewhere, keep), inference, rtol=0, atol=1e-5)
    assert torch.allclose(masked(model, batch, asked + elsewhere.clamp(max=1), keep), inference, rtol=0, atol=1e-5)
    # and the test can tell decisions apart
    assert (masked(model, batch, asked + elsewhere, torch.ones_like(keep)) - inference).abs().max() > 1e-2


def test_gates_that_are_all_open_change_nothing(model: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch())
    features = model.encode(batch, asked > 0)
    plain = model.forced(batch, features, asked)
    gated = model.forced(batch, features, asked, gates=torch.ones(asked.shape))
    assert torch.allclose(plain.loglik, gated.loglik, rtol=0, atol=1e-5)


def test_a_skipped_tile_is_never_encoded(model: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch())
    keep = asked > 0
    union = torch.stack([keep[batch.image_of == i].any(0) for i in range(len(batch.image))])
    assert union.sum() < keep.sum() and not union.all(), "the decisions must share images and skip tiles"
    before = model.vision.encoded
    features = model.encode(batch, keep)
    assert model.vision.encoded - before == int(union.sum())
    assert features.encoded.equal(union)
    for tile, tile_map in enumerate(features.maps):
        assert tile_map[~union[:, tile]].eq(0).all()
    before = model.vision.encoded
    model.answer(batch, asked)
    assert model.vision.encoded - before == int(union.sum())


def test_what_is_padding_is_not_encoded_even_when_it_is_asked_for() -> None:
    model, batch = tiny_model((2, 2, 1)), tiny_batch()
    before = model.vision.encoded
    model.encode(batch, torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool))
    assert model.vision.encoded - before == int((model.pyramid.capacity(batch.size) > 0).sum())


def test_a_decision_and_an_answer_do_not_depend_on_batch_mates(model: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch(), 1)
    together, answers = model.loglik(batch, asked), model.answer(batch, asked)
    for row in range(len(batch)):
        alone = batch.rows([row])
        assert torch.allclose(model.loglik(alone, asked[[row]])[0], together[row], rtol=0, atol=1e-5)
        assert model.answer(alone, asked[[row]]) == [answers[row]]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = batch.rows(order)
    assert torch.allclose(model.loglik(shuffled, asked[order]), together[order], rtol=0, atol=1e-5)
    assert model.answer(shuffled, asked[order]) == [answers[i] for i in order]


def test_a_larger_canvas_of_padding_changes_no_token() -> None:
    model, batch = tiny_model(), tiny_batch()
    small = batch.rows([8])
    dirty = replace(small, image=small.image.clone())
    rows, columns = dirty.size[0].tolist()
    dirty.image[:, :, rows:], dirty.image[:, :, :, columns:] = 255, 255
    asked = every_tile(model, small)
    assert model.loglik(small, asked).equal(model.loglik(dirty, asked))


def test_a_token_written_has_the_logits_that_forcing_it_has(model: NativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch(), 1)
    visual, _ = model.visual(batch, model.encode(batch, asked > 0), asked)
    question, language = model.language.tokenize(batch.texts), model.language
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
    [
        ("Twenty Seven",),
        (LONG,),
        ("red", "blue", "yes", "no", "twenty seven"),
    ],
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


@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
def test_gradients_to_gates_are_those_of_finite_differences(model: NativeModel, gate: float) -> None:
    batch = tiny_batch()
    asked = every_tile(model, batch)
    features = model.encode(batch, asked > 0)
    gates = torch.full(asked.shape, gate)
    gates[:, model.pyramid.glance] = 1.0
    gates.requires_grad_()
    model.forced(batch, features, asked, gates=gates).loglik.sum().backward()
    assert gates.grad is not None and gates.grad.isfinite().all()
    assert gates.grad[asked > 0].ne(0).all() and gates.grad[asked == 0].eq(0).all()

    def loglik(tile: int, move: float) -> Tensor:
        moved = gates.detach().clone()
        moved[:, tile] += move
        return model.forced(batch, features, asked, gates=moved).loglik.double()

    step = 5e-4 if gate == 0.0 and model.config.language.name == "cross" else 2e-3  # bent where a tile comes in
    with torch.no_grad():
        for tile in range(model.pyramid.tiles):
            near, far = (loglik(tile, k * step) - loglik(tile, -k * step) for k in (1, 2))
            slope = (8 * near - far) / (12 * step)
            assert torch.allclose(gates.grad[:, tile].double(), slope, rtol=2e-2, atol=2e-3)


def test_without_any_tile_the_model_answers_from_the_question_alone(model: NativeModel) -> None:
    batch = tiny_batch()
    asked = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.int64)
    before = model.vision.encoded
    blind, answers = model.loglik(batch, asked), model.answer(batch, asked)
    assert model.vision.encoded == before and blind.isfinite().all() and len(answers) == len(batch)
    other = replace(batch, image=255 - batch.image)
    assert model.loglik(other, asked).equal(blind)
    assert torch.allclose(masked(model, batch, every_tile(model, batch), asked > 0), blind, rtol=0, atol=1e-5)
    # one blind question beside sighted ones
    some = every_tile(model, batch)
    some[2] = 0
    assert torch.allclose(model.loglik(batch, some)[2], blind[2], rtol=0, atol=1e-5)


def test_tokens_say_which_tile_they_are_from_and_are_as_many_as_realised(model: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch(), 2)
    tokens, real, tile = model.project(batch, model.encode(batch, asked > 0), asked)
    realised = model.realise(asked, batch.size[batch.image_of])
    assert tokens.shape[:2] == real.shape == tile.shape and real.shape[1] == realised.sum(-1).max()
    for row in range(len(batch)):
        assert tile[row][real[row]].bincount(minlength=model.pyramid.tiles).equal(realised[row])
        assert tile[row][real[row]].diff().ge(0).all()
    assert tokens[~real].eq(0).all()


def test_a_saved_model_comes_back_the_same(model: NativeModel, tmp_path: Path) -> None:
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch())
    model.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    again = NativeModel.load(tmp_path)
    assert again.config == model.config
    assert again.loglik(batch, asked).equal(model.loglik(batch, asked))
    assert again.answer(batch, asked) == model.answer(batch, asked)
    assert NativeModel.load(tmp_path, CostConfig(unit="macs")).config.cost.unit == "macs"


BROKEN = {"cut": lambda content: content[: len(content) // 2], "empty": lambda content: b"", "other": lambda content: b"{}"}


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


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 8), (7, 3), (1, 1)])
def test_pooling_a_full_map_is_torchs_adaptive_pooling(rows: int, columns: int) -> None:
    maps = torch.rand(1, 3, rows, columns)
    cells = torch.tensor([[rows, columns]])
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            pooled, valid = pool(maps, cells, torch.tensor([[height, width]]))
            assert torch.allclose(pooled, F.adaptive_avg_pool2d(maps, (height, width)), atol=1e-6)
            assert valid.all()


def test_pooling_averages_valid_cells_only_whatever_else_is_in_the_batch() -> None:
    cells, size = torch.tensor([[8, 8], [5, 7], [1, 3], [6, 6]]), torch.tensor([[4, 4], [2, 3], [1, 3], [6, 6]])
    maps = torch.rand(4, 2, 8, 8)
    dirty = maps.clone()
    for row, (rows, columns) in enumerate(cells.tolist()):
        dirty[row, :, rows:], dirty[row, :, :, columns:] = 1e4, 1e4
    pooled, valid = pool(dirty, cells, size)
    for row, (height, width) in enumerate(size.tolist()):
        own = maps[row, :, : cells[row, 0], : cells[row, 1]]
        assert torch.allclose(pooled[row, :, :height, :width], F.adaptive_avg_pool2d(own, (height, width)), atol=1e-5)
        assert valid[row].sum() == height * width and valid[row, :height, :width].all()


def decision_cost(model: NativeModel, batch: Batch, asked: Tensor) -> Cost:
    size = batch.size[batch.image_of]
    return model.cost(model.realise(asked, size), size, model.prompt_tokens(batch))


def test_more_tiles_cost_more(model: NativeModel) -> None:
    batch = tiny_batch()
    capacity = every_tile(model, batch)
    selections = ActionSet.by_level(model.pyramid).selection
    costs = [decision_cost(model, batch, capacity * keep) for keep in selections]
    for a, less in zip(selections, costs, strict=True):
        for b, more in zip(selections, costs, strict=True):
            if (b | a).equal(b) and not a.equal(b):
                assert all((getattr(more, n) > getattr(less, n)).all() for n in ("tokens", "flops", "kv_bytes"))


def test_more_tokens_of_the_same_tiles_cost_more_and_encode_as_much(model: NativeModel) -> None:
    batch = tiny_batch()
    capacity = every_tile(model, batch)[:1]
    row = batch.rows([0])
    costs = [float(decision_cost(model, row, (capacity * share).ceil().long()).flops) for share in (0.25, 0.5, 1.0)]
    assert costs[0] < costs[1] < costs[2]
    assert costs[0] > float(model.encode_flops(row.size)[0].sum())


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


def test_what_is_encoded_is_what_is_paid_for(model: NativeModel) -> None:
    batch = tiny_batch((1, 1, 1, 1, 1))
    asked = mixed_decisions(model, batch)
    seen: list[torch.Size] = []
    hook = model.vision.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model.encode(batch, asked > 0)
    hook.remove()
    encoded = sum(images * model.vision.flops(rows, columns) for images, _, rows, columns in seen)
    assert encoded == int((model.encode_flops(batch.size) * (asked > 0)).sum())


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


def test_the_model_trains_under_autocast(model: NativeModel) -> None:
    batch = tiny_batch()
    asked = mixed_decisions(model, batch)
    gates = torch.ones(asked.shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loglik = model.forced(batch, model.encode(batch, asked > 0), asked, gates).loglik
        loglik.sum().backward()
    assert loglik.dtype == torch.float32
    assert torch.allclose(loglik, model.loglik(batch, asked), rtol=0.02, atol=0.3)
    assert gates.grad is not None and gates.grad.dtype == torch.float32 and gates.grad.isfinite().all()


def test_a_trained_encoder_gets_gradients_and_keeps_the_model_one_function() -> None:
    model = tiny_model(vision=replace(BACKBONE, frozen=False)).train()
    batch = tiny_batch()
    asked = mixed_decisions(model, batch)
    features = model.encode(batch, every_tile(model, batch) > 0)
    training = model.forced(batch, features, asked)
    training.loglik.sum().backward()
    grads = [p.grad for p in model.vision.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(bool(g.ne(0).any()) for g in grads if g is not None)
    assert torch.allclose(model.eval().loglik(batch, asked), training.loglik, rtol=0, atol=1e-5)


def test_a_transformer_encodes_tiles_as_well() -> None:
    model = tiny_model(vision=VisionConfig("test_vit", 1, kwargs={"dynamic_img_size": True}), levels=2)
    batch, asked = tiny_batch(), mixed_decisions(model, tiny_batch())
    keep = asked > 0
    assert torch.allclose(
        masked(model, batch, every_tile(model, batch).where(~keep, asked), keep), model.loglik(batch, asked), rtol=0, atol=1e-5
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


def test_whitened_features_have_unit_covariance() -> None:
    model = tiny_model()
    batch = tiny_batch()
    model.whiten([batch])
    cells = model.pyramid.cells(batch.size)
    everything = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    square = []
    for tile, maps in enumerate(model.encode(batch, everything).maps):
        found = torch.cat([m[:, :rows, :columns].flatten(1).T for m, (rows, columns) in zip(maps, cells[:, tile], strict=True)])
        white = (found - model.projector.mean) @ model.projector.whiten
        square.append(white.T @ white / len(white))
    value = torch.linalg.eigvalsh(torch.stack(square).mean(0))
    assert float(value.max()) < 1.001  # directions with next to no variance stay small
    assert float(value.max()) > 0.9
