"""A third-party model as a black box: a tiny LLaVA with random weights, built from configs."""

import inspect
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.tiers import BlackBox
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample

transformers = pytest.importorskip("transformers")

from pyrskip.models.vlm.hf import HfConfig, HfVlm, check_family  # noqa: E402
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
    forward = vlm.model.get_image_features

    def spy(pixels: torch.Tensor, **kwargs: Any) -> Any:
        given.append(len(pixels))
        return forward(pixels, **kwargs)

    monkeypatch.setattr(vlm.model, "get_image_features", spy)

    def encoded(asked: torch.Tensor) -> int:
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
    assert vlm.image_tokens == TOKENS
    kept = [[1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]]
    torch.testing.assert_close(realised, TOKENS * torch.tensor(kept))


def test_the_prompt_is_what_processor_and_model_make_of_the_same_images(vlm: HfVlm, batch: Batch) -> None:
    """Coarse to fine, at the place of the template's one image; and its length is what is costed."""
    size = batch.size[batch.image_of]
    length = vlm.prompt_tokens(batch) + vlm.realise(ASKED, size).sum(-1)
    for row, tiles in enumerate([[5, 0, 3], [5], [5, 4, 0, 1, 2, 3], [5, 0, 2]]):
        one = batch.rows([row])
        wanted = torch.zeros(1, PYRAMID.tiles, dtype=torch.bool)
        wanted[0, tiles] = True
        pictures = dict(zip(sorted(tiles), vlm._pictures(one, wanted), strict=True))
        text = "USER : " + "<image> " * len(tiles) + f"{one.texts[0]} ASSISTANT :"
        inputs = vlm.processor(images=[pictures[t] for t in tiles], text=[text], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == length[row]
        answer = vlm.processor.tokenizer(one.questions[0].answers[0], add_special_tokens=False)[
            "input_ids"
        ] + [2]
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
        logits = vlm.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
        expected = sum(logits[i - len(answer) - 1].log_softmax(-1)[token] for i, token in enumerate(answer))
        torch.testing.assert_close(vlm.loglik(one, ASKED[row : row + 1])[0], expected, atol=1e-4, rtol=1e-4)


def test_a_tile_that_is_not_square_is_padded_not_cropped(vlm: HfVlm, batch: Batch) -> None:
    wanted = torch.zeros(2, PYRAMID.tiles, dtype=torch.bool)
    wanted[1, 0] = True
    (picture,) = vlm._pictures(batch, wanted)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert pixels.shape == (3, 32, 32)
    assert torch.equal(pixels[:, :, :24], batch.image[1, :, :32, :24])
    assert bool((pixels[:, :, 24:] == torch.tensor([123, 117, 104])[:, None, None]).all())


def test_the_cost_is_the_flops_that_really_run(vlm: HfVlm, batch: Batch) -> None:
    counted = HfVlm(vlm.model, vlm.processor, PYRAMID, cost=CostConfig(answer_tokens=0))
    for row in range(len(batch)):
        one, asked = batch.rows([row]), ASKED[row : row + 1]
        size = one.size[one.image_of]
        cost = counted.cost(counted.realise(asked, size), size, counted.prompt_tokens(one))

        def run(one: Batch = one, asked: torch.Tensor = asked) -> None:
            prompt, real = counted._prompt(one, asked)
            assert real.sum() == cost.tokens + counted.prompt_tokens(one)  # noqa: B023
            counted.model(inputs_embeds=prompt, attention_mask=real.long(), logits_to_keep=1)

        # rotary angles are a matrix product for the counter, and none for the cost model
        assert measured_flops(run) == pytest.approx(float(cost.flops), rel=2e-3)
        assert float(cost.kv_bytes) == 2 * 2 * 16 * 2 * float(cost.tokens + counted.prompt_tokens(one))


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
        prompt, _ = vlm._prompt(batch.rows([row]), ASKED[row : row + 1])
        written: list[int] = []
        while len(written) < vlm.config.max_answer and 2 not in written:
            written.append(int(vlm.model(inputs_embeds=prompt).logits[0, -1].argmax()))
            prompt = torch.cat(
                [prompt, vlm.model.get_input_embeddings()(torch.tensor([written[-1:]]))], dim=1
            )
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


def test_another_family_is_refused() -> None:
    from transformers import CLIPVisionConfig, GemmaConfig, Idefics3Config, LlavaConfig, PixtralVisionConfig

    with pytest.raises(UserError, match="model family='idefics3' is unknown; allowed: llava"):
        check_family(Idefics3Config())
    with pytest.raises(UserError, match="vision tower='pixtral'"):
        check_family(LlavaConfig(vision_config=PixtralVisionConfig()))
    with pytest.raises(UserError, match="language model='gemma'"):
        check_family(LlavaConfig(vision_config=CLIPVisionConfig(), text_config=GemmaConfig()))


def test_another_family_in_a_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    from transformers import Idefics3Config

    Idefics3Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="idefics3"):
        HfVlm.from_pretrained(HfConfig(str(tmp_path)), PYRAMID)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((lambda: llava(), lambda: processor(template=None)), "no chat template"),
        ((lambda: llava(), lambda: processor(template="USER :")), "0 places"),
        ((lambda: llava(), lambda: processor(side=32)), "cannot take"),
        ((lambda: llava(max_position_embeddings=40), lambda: processor()), "allowed: 2 tiles"),
        ((lambda: llava(head_dim=16), lambda: processor()), "head_dim=16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, message: str) -> None:
    model, own = parts
    with pytest.raises(UserError, match=message):
        HfVlm(model(), own(), PYRAMID)
