"""A third-party model as a black box: a tiny LLaVA with random weights, built from configs."""

import inspect
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.tiers import BlackBox
from pyrskip.models.vlm.inspect import inspect as looked_into
from pyrskip.models.vlm.inspect import parameters, propose
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample

transformers = pytest.importorskip("transformers")

from pyrskip.models.vlm.hf import HfConfig, HfVlm, check_layout  # noqa: E402
from pyrskip.models.vlm.layout import check_pyramid  # noqa: E402
from pyrskip.models.vlm.prompts import Prompts  # noqa: E402
from tests.families import TINY  # noqa: E402
from tests.test_cli import refused  # noqa: E402
from tests.vlm import TEMPLATE, TOKENS, WORDS, llava, processor  # noqa: E402

PYRAMID = Pyramid(size=64, levels=3, stride=8, grid=(2, 1, 1))


@pytest.fixture(scope="module")
def vlm() -> HfVlm:
    return HfVlm(llava(), processor(), PYRAMID, HfConfig(max_answer=6))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Three questions on a square image and one on an image that is 40 x 24: it leaves two finest tiles
    empty."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 64, 64), (3, 40, 24))
    ]
    questions = (
        Question("what colour is the car ?", ("red",)),
        Question("what is the dog ?", ("a b c", "d")),
        Question("what ?", ("blue green",)),
    )
    return Batch.collate(
        [Sample("0", images[0], questions), Sample("1", images[1], questions[:1])], PYRAMID.size
    )


# one row a question, tiles finest first: finest level, middle level, glance
ASKED = torch.tensor([[5, 0, 0, 7, 0, 1], [0, 0, 0, 0, 0, 1], [9, 9, 9, 9, 9, 9], [4, 4, 4, 4, 0, 4]])


def test_it_is_a_black_box_that_answers(vlm: HfVlm, batch: Batch) -> None:
    model: BlackBox = vlm
    for name in ("realise", "cost", "prompt_tokens", "answer", "loglik"):
        own, asked = (inspect.signature(getattr(c, name)).parameters for c in (HfVlm, BlackBox))
        assert list(own) == list(asked)
    answers = model.answer(batch, ASKED)
    assert len(answers) == 4
    assert len(set(answers)) > 1
    assert all(set(answer.split()) <= set(WORDS) for answer in answers)


def test_a_skipped_tile_is_never_given_to_the_model(
    vlm: HfVlm, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    forward = vlm.model.model.get_image_features

    def spy(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        given.append(len(pixel_values))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(vlm.model.model, "get_image_features", spy)

    def encoded(asked: torch.Tensor) -> int:
        vlm.passes.made.clear()
        start = vlm.encoded
        given.clear()
        vlm.loglik(batch, asked)
        assert sum(given) == vlm.encoded - start
        return vlm.encoded - start

    every = torch.ones_like(ASKED)
    glance = every * (torch.arange(PYRAMID.tiles) == PYRAMID.glance)
    # all 6 tiles of the square image, and the 4 of the other that are not padding, once for all their
    # questions
    assert encoded(every) == 10
    assert encoded(ASKED) == 9
    assert encoded(glance) == 2
    assert encoded(0 * every) == 0


def test_pixels_of_skipped_tiles_do_not_matter(vlm: HfVlm, batch: Batch) -> None:
    one = batch.rows([0])
    corner = torch.zeros(1, PYRAMID.tiles, dtype=torch.int64)
    corner[:, 0] = 1
    other = one.image.clone()
    other[:, :, 32:] = 255 - other[:, :, 32:]
    changed = Batch(other, one.size, one.image_of, one.questions, one.keys, one.image_keys)
    torch.testing.assert_close(vlm.loglik(one, corner), vlm.loglik(changed, corner))
    assert (
        vlm.loglik(one, torch.ones_like(corner)) - vlm.loglik(changed, torch.ones_like(corner))
    ).abs() > 1e-3


def test_a_sample_does_not_depend_on_its_batch_mates(vlm: HfVlm, batch: Batch) -> None:
    together, answers = vlm.loglik(batch, ASKED), vlm.answer(batch, ASKED)
    for row in range(len(batch)):
        one = batch.rows([row])
        torch.testing.assert_close(
            vlm.loglik(one, ASKED[row : row + 1]), together[row : row + 1], atol=1e-4, rtol=1e-4
        )
        assert vlm.answer(one, ASKED[row : row + 1]) == [answers[row]]


def test_a_kept_tile_gives_what_the_processor_gives(vlm: HfVlm, batch: Batch) -> None:
    realised = vlm.realise(ASKED, batch.size[batch.image_of])
    kept = [[1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]]
    torch.testing.assert_close(realised, TOKENS * torch.tensor(kept))
    every = vlm.realise(torch.ones(1, 6, dtype=torch.int64), torch.tensor([[40, 24]]))
    assert every.tolist() == [[TOKENS, 0, TOKENS, 0, TOKENS, TOKENS]]


def test_the_prompt_is_what_processor_and_model_make_of_the_same_images(vlm: HfVlm, batch: Batch) -> None:
    """Coarse to fine, in the order of the template's images; and its length is what is costed."""
    size = batch.size[batch.image_of]
    length = vlm.prompt_tokens(batch) + vlm.realise(ASKED, size).sum(-1)
    for row, tiles in enumerate([[5, 0, 3], [5], [5, 4, 0, 1, 2, 3], [5, 0, 2]]):
        one = batch.rows([row])
        (shown,) = vlm._rows(one, ASKED[[row]])
        assert list(shown.tiles) == tiles
        text = "USER : " + "<image> " * len(tiles) + f"{one.texts[0]} ASSISTANT :"
        inputs = vlm.processor(images=list(shown.pictures), text=[text], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == length[row]
        answer = vlm.processor.tokenizer(one.questions[0].answers[0], add_special_tokens=False)[
            "input_ids"
        ] + [2]
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
        logits = vlm.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
        expected = sum(logits[i - len(answer) - 1].log_softmax(-1)[token] for i, token in enumerate(answer))
        torch.testing.assert_close(vlm.loglik(one, ASKED[row : row + 1])[0], expected, atol=1e-4, rtol=1e-4)


def test_a_tile_that_is_not_square_is_padded_not_cropped(vlm: HfVlm, batch: Batch) -> None:
    crop = batch.image[1, :, :32, :24].float()
    pixels = torch.from_numpy(np.array(vlm.prompts.picture(crop))).permute(2, 0, 1)
    assert pixels.shape == (3, 32, 32)
    assert torch.equal(pixels[:, :, :24], batch.image[1, :, :32, :24])
    assert bool((pixels[:, :, 24:] == torch.tensor([123, 117, 104])[:, None, None]).all())


def test_costs_are_counted_as_the_convention_says(vlm: HfVlm, batch: Batch) -> None:
    one, asked = batch.rows([0]), ASKED[:1]
    size, words = one.size, vlm.prompt_tokens(one)
    tokens = float(words + 3 * TOKENS)

    def flops(**cost: Any) -> float:
        counted = HfVlm(vlm.model, vlm.processor, PYRAMID, cost=CostConfig(**cost))
        return float(counted.cost(counted.realise(asked, size), size, words).flops)

    cost = vlm.cost(vlm.realise(asked, size), size, words)
    # keys and values of two layers of width 16 in 16 bits, an answer's token among them
    assert float(cost.tokens) == 3 * TOKENS and float(cost.kv_bytes) == 2 * 2 * 16 * 2 * (tokens + 1)
    full = flops(answer_tokens=0)
    assert flops(answer_tokens=0, unit="macs") == full / 2
    # of two layers of width 32, scores and sums, at 2 FLOPs
    pair = 2 * 2 * 2 * 32
    causal = full - flops(answer_tokens=0, attention="causal")
    assert causal == pytest.approx(pair * tokens * (tokens - 1) / 2)
    with pytest.raises(UserError, match="cost.count=ptp .*; allowed: run"):
        flops(count="ptp")


def test_skipping_is_strictly_cheaper(vlm: HfVlm, batch: Batch) -> None:
    one = batch.rows([0])
    size, words = one.size, vlm.prompt_tokens(one)
    keep = torch.arange(PYRAMID.tiles)
    steps = [vlm.realise((keep >= first).long()[None], size) for first in range(PYRAMID.tiles + 1)]
    costs = [vlm.cost(step, size, words) for step in steps]
    for dear, cheap in pairwise(costs):
        assert cheap.tokens < dear.tokens
        assert cheap.flops < dear.flops
        assert cheap.kv_bytes < dear.kv_bytes


def test_the_loglik_is_a_log_probability(vlm: HfVlm, batch: Batch) -> None:
    for asked in (ASKED, torch.zeros_like(ASKED)):
        loglik = vlm.loglik(batch, asked)
        assert loglik.shape == (4,)
        assert bool(torch.isfinite(loglik).all())
        assert bool((loglik <= 0).all())


def test_an_answer_is_the_likeliest_token_at_every_step(vlm: HfVlm, batch: Batch) -> None:
    for row, answer in enumerate(vlm.answer(batch, ASKED)):
        (shown,) = vlm._rows(batch.rows([row]), ASKED[[row]])
        inputs = vlm.prompts.inputs([(shown.pictures, shown.text)])
        ids, written = inputs["input_ids"], list[int]()
        while len(written) < vlm.config.max_answer and 2 not in written:
            logits = vlm.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
            written.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([written[-1:]])], dim=1)
        assert vlm.processor.tokenizer.decode(written, skip_special_tokens=True).strip() == answer


def test_an_image_token_in_a_question_is_only_a_space(vlm: HfVlm, batch: Batch) -> None:
    one, asked = batch.rows([0]), ASKED[:1]
    logliks = []
    for text in ("what <image> ?", "what ?"):
        odd = Batch(one.image, one.size, one.image_of, (Question(text, ("red",)),), one.keys, one.image_keys)
        logliks.append(vlm.loglik(odd, asked))
    torch.testing.assert_close(*logliks)


def test_a_template_that_writes_the_first_token_gets_no_second_one(vlm: HfVlm, batch: Batch) -> None:
    begun = HfVlm(vlm.model, processor(template="<s> " + TEMPLATE), PYRAMID, vlm.config)
    torch.testing.assert_close(begun.loglik(batch, ASKED), vlm.loglik(batch, ASKED))


def test_an_instruction_follows_every_question(vlm: HfVlm, batch: Batch) -> None:
    told = HfVlm(vlm.model, vlm.processor, PYRAMID, HfConfig(instruction="a b c"))
    torch.testing.assert_close(told.prompt_tokens(batch), vlm.prompt_tokens(batch) + 3)


def test_it_loads_from_a_folder_of_safetensors_alone(vlm: HfVlm, batch: Batch, tmp_path: Path) -> None:
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    loaded = HfVlm.from_pretrained(replace(vlm.config, path=str(tmp_path)), PYRAMID)
    torch.testing.assert_close(loaded.loglik(batch, ASKED), vlm.loglik(batch, ASKED), atol=1e-4, rtol=1e-4)
    (tmp_path / "model.safetensors").unlink()
    torch.save(vlm.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        HfVlm.from_pretrained(HfConfig(str(tmp_path)), PYRAMID)


def test_another_family_in_a_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.ChameleonConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model family='chameleon' is unknown"):
        HfVlm.from_pretrained(HfConfig(str(tmp_path)), PYRAMID)


@pytest.mark.parametrize(
    ("path", "said"),
    [("my-vlm", "model.hf.path='my-vlm' is no folder"), (".", r"its model and processor cannot be loaded")],
)
def test_a_mistyped_folder_is_no_network_error(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        HfVlm.from_pretrained(HfConfig(path), PYRAMID)


def of_another_model() -> Any:
    model = llava()
    model.config.image_token_id = 7
    return model


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((lambda: llava(), lambda: processor(template=None)), "no chat template"),
        ((lambda: llava(), lambda: processor(template="USER :")), "refuses pictures .* 0 <image> tokens"),
        ((lambda: of_another_model(), lambda: processor()), r"knows \(7\) for a picture"),
        ((lambda: llava(max_position_embeddings=40), lambda: processor()), "has positions for 40"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, message: str) -> None:
    model, own = parts
    with pytest.raises(UserError, match=message):
        HfVlm(model(), own(), PYRAMID)


def test_a_tower_that_cannot_take_its_processors_pictures_is_refused(batch: Batch) -> None:
    with pytest.raises(UserError, match="cannot take what its processor gives"):
        HfVlm(llava(), processor(side=32), PYRAMID).answer(batch, ASKED)


def test_rows_share_a_pass_only_where_that_changes_nothing(vlm: HfVlm, batch: Batch) -> None:
    """A model that reads its padding answers a row by its batch mates."""
    model = llava()
    forward = model.forward

    def blind_to_padding(*args: Any, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        return forward(*args, attention_mask=torch.ones_like(attention_mask), **kwargs)

    blind_to_padding.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = blind_to_padding
    odd = HfVlm(model, processor(), PYRAMID, vlm.config)
    assert vlm.passes.mixing == "any" and odd.passes.mixing == "alike" and odd.encoded == 0
    torch.testing.assert_close(odd.loglik(batch, ASKED), vlm.loglik(batch, ASKED), atol=1e-4, rtol=0)
    two = batch.rows([0, 0, 3])
    assert [part for part, _ in odd.passes.of(odd._rows(two, ASKED[[0, 0, 0]]))] == [[0, 1], [2]]


def test_as_run_is_the_whole_image_through_the_processors_own_settings(batch: Batch) -> None:
    model, own = TINY["internvl"]()
    box = HfVlm(model, own, Pyramid(112, 2, 8, (2, 1)), HfConfig(max_answer=4))
    wide = torch.randint(0, 256, (3, 56, 112), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    one = Batch.collate([Sample("0", wide, (Question("what ?", ("red",)),))], 112)
    whole = torch.ones(1, 1, dtype=torch.int64)
    picture = Image.fromarray(wide.permute(1, 2, 0).numpy())
    text = own.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    inputs = own(images=[picture], text=[text], return_tensors="pt")
    # two pieces of 56 px and a thumbnail, where a tile of the same size is one look
    assert int((inputs["input_ids"] == own.image_token_id).sum()) == 12
    assert box.as_run.realise(whole, one.size).tolist() == [[12]]
    every = torch.ones(1, box.pyramid.tiles, dtype=torch.int64)
    assert box.realise(every, one.size)[0, 4] == 4
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=box.passes.ends)
    told = own.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert box.as_run.answer(one, whole) == [told[0].strip()]
    cost = box.as_run.cost(box.as_run.realise(whole, one.size), one.size, box.prompt_tokens(one))
    kept = torch.tensor([[0, 0, 0, 0, 1]])
    assert cost.flops > box.cost(box.realise(kept, one.size), one.size, box.prompt_tokens(one)).flops


def test_a_level_that_is_not_cheaper_is_refused_with_the_numbers(vlm: HfVlm, tmp_path: Path) -> None:
    said = r"level 1 costs this model no less than level 0 \(tokens .*level 0: 9, level 1: 9\)"
    with pytest.raises(UserError, match=said):
        check_pyramid(vlm.prompts, Pyramid(64, 2, 8), 16)
    check_pyramid(vlm.prompts, Pyramid(64, 2, 8, (2, 1)), 16)
    vlm.model.config.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        check_layout(HfConfig(str(tmp_path)), Pyramid(64, 2, 8))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_is_proposed_is_never_refused(family: str, tmp_path: Path) -> None:
    model, own = TINY[family]()
    found = propose(Prompts(model.config, own), 256)
    check_pyramid(Prompts(model.config, own), found.pyramid, 16)
    follows = family == "qwen2_5_vl"
    assert found.actions == ("levels" if follows else "tiles")
    assert found.pyramid == (Pyramid(256, 3, 8) if follows else Pyramid(256, 2, 8, (2, 1)))
    model.config.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    told = looked_into(str(tmp_path), 256)
    weights = sum(weight.numel() for weight in model.parameters())
    assert parameters(model.config) == weights and f"calculated from its config: {weights / 1e9:.2f}" in told
    assert f"model family {family}" in told and found.keys(str(tmp_path)) in told
    # its own limits make a picture of 32 px as dear as one of 64, and a tile has none
    row = next(line.split() for line in told.splitlines() if line.strip().startswith("32 x 32"))
    assert row[3:] == (["1", "4"] if follows else ["4", "4"])
    assert ("tiles of 256, 128, 64, 32 px cost the same: 4 tokens" in told) != follows
    with pytest.raises(UserError, match="size=100: allowed: multiples of 128"):
        looked_into(str(tmp_path), 100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("look",), "pyrskip vlm takes inspect and one folder or hub id"),
        (("inspect", "a", "b"), "pyrskip vlm takes inspect and one folder or hub id"),
        (("inspect", "my-vlm", "size=large"), "allowed beside it: size=<pixels>"),
        (("inspect", "my-vlm"), "model.hf.path='my-vlm' is no folder"),
    ],
)
def test_the_command_says_what_it_takes(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "vlm", *arguments)
