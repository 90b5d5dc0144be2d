"""Claims about families of third-party models, each with a tiny random model and its real processor."""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.pyramid import Pyramid
from pyrskip.registry import load_plugins
from pyrskip.sample import Batch, Question, Sample

transformers = pytest.importorskip("transformers")

from pyrskip.models.vlm.families import FAMILIES  # noqa: E402
from pyrskip.models.vlm.hf import HfConfig, HfVlm  # noqa: E402
from pyrskip.models.vlm.prompts import Prompts, length  # noqa: E402
from tests.families import TINY  # noqa: E402
from tests.vlm import processor, vlm_of  # noqa: E402

PYRAMID = Pyramid(size=112, levels=2, stride=8, grid=(2, 1))
FAST = ("llava", "qwen2_5_vl", "internvl", "idefics3")
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TINY]
# the third question asks for all five tiles; of the second image, two are padding
ASKED = torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
KEPT = [3, 1, 5, 3]
TOY = """
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from pyrskip.models.vlm.families import FAMILIES, Family


class ToyConfig(LlavaConfig):
    model_type = "toy_vlm"


class ToyModel(LlavaForConditionalGeneration):
    config_class = ToyConfig


AutoConfig.register("toy_vlm", ToyConfig, exist_ok=True)
AutoModelForImageTextToText.register(ToyConfig, ToyModel, exist_ok=True)
FAMILIES.register("toy_vlm", Family(square=True))
"""


@cache
def parts(family: str) -> Any:
    """Model and processor."""
    return TINY[family]()


def vlm(family: str, **config: Any) -> HfVlm:
    return HfVlm(*parts(family), PYRAMID, HfConfig(max_answer=4, **config))


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 112, 112), (3, 100, 50))
    ]
    questions = (
        Question("what colour is the car ?", ("red",)),
        Question("what ?", ("a b c",)),
        Question("what is it ?", ("blue",)),
    )
    samples = [Sample("0", images[0], questions), Sample("1", images[1], questions[:1])]
    return Batch.collate(samples, PYRAMID.size)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module outside the package that registers a family."""
    (tmp_path / "toy_family.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES))
    monkeypatch.setattr(FAMILIES, "_places", dict(FAMILIES._places))
    yield "toy_family"
    sys.modules.pop("toy_family", None)


@pytest.mark.parametrize("family", EVERY)
def test_a_batch_answers_as_single_rows_do(family: str, batch: Batch) -> None:
    model = vlm(family)
    answers, loglik = model.answer(batch, ASKED), model.loglik(batch, ASKED)
    assert (loglik < 0).all() and loglik.unique().numel() == len(batch)
    for row in range(len(batch)):
        one = batch.rows([row])
        assert model.answer(one, ASKED[[row]]) == [answers[row]]
        torch.testing.assert_close(model.loglik(one, ASKED[[row]]), loglik[[row]], atol=1e-4, rtol=0)


def forced(model: HfVlm, one: Batch, asked: Tensor) -> Tensor:
    """The log-likelihood of a question's first accepted answer, which `generate` is told to write token by
    token."""
    ids = model.passes.answer_ids(one.questions[0].answers[0])
    for _, inputs in model.passes.of(model._rows(one, asked)):
        start = inputs["input_ids"].shape[1]

        def force(seen: Tensor, scores: Tensor, start: int = start) -> Tensor:
            return torch.full_like(scores, -torch.inf).index_fill(
                1, torch.tensor(ids[seen.shape[1] - start]), 0
            )

        out = model.model.generate(
            **inputs,
            max_new_tokens=len(ids),
            min_new_tokens=len(ids),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=model.prompts.tokenizer.pad_token_id,
            logits_processor=[force],
            output_logits=True,
            return_dict_in_generate=True,
        )
    steps = zip(out.logits, ids, strict=True)
    return torch.stack([logits.float().log_softmax(-1)[0, i] for logits, i in steps]).sum()


@pytest.mark.parametrize("family", EVERY)
def test_forward_scores_an_answer_as_generate_does(family: str, batch: Batch) -> None:
    """generate is told what to write, token by token, with the family's own positions and cache."""
    model = vlm(family)
    for row in (0, 1):
        one, asked = batch.rows([row]), ASKED[[row]]
        torch.testing.assert_close(model.loglik(one, asked)[0], forced(model, one, asked), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", EVERY)
def test_each_tile_goes_through_the_tower_once(family: str, batch: Batch) -> None:
    model = vlm(family)
    model.answer(batch, ASKED)
    model.loglik(batch, ASKED)
    # 5 tiles of the first image and 3 of the second; or every picture of every prompt, twice
    assert model.passes.once == (family not in ("llava_onevision", "mllama"))
    assert model.encoded == (8 if model.passes.once else 2 * sum(KEPT))
    # another image under the same keys is another image
    other = replace(batch, image=255 - batch.image)
    seen = model.loglik(other, ASKED)
    assert model.encoded == (16 if model.passes.once else 3 * sum(KEPT))
    assert ((seen - model.loglik(batch, ASKED)).abs() > 1e-4).all()


@pytest.mark.parametrize("family", EVERY)
def test_pixels_of_a_skipped_tile_do_not_matter(family: str, batch: Batch) -> None:
    model = vlm(family)
    one, corner = batch.rows([0]), torch.tensor([[1, 0, 0, 0, 0]])
    changed = one.image.clone()
    changed[:, :, 56:] = 255 - changed[:, :, 56:]
    given = model.loglik(one, corner)
    assert model.loglik(replace(one, image=changed), corner).equal(given)
    assert not model.loglik(replace(one, image=255 - one.image), corner).equal(given)


@pytest.mark.parametrize("family", EVERY)
def test_the_cost_is_the_flops_that_really_run(family: str, batch: Batch) -> None:
    model = vlm(family)
    passes: list[object] = []
    hook = model.model.register_forward_hook(lambda *_: passes.append(0))
    for row in (0, 1):
        one, asked = batch.rows([row]), ASKED[[row]]
        size, words = one.size[one.image_of], model.prompt_tokens(one)
        assert model.passes.mixing and not model.passes.made
        passes.clear()
        measured = measured_flops(model.answer, one, asked)
        # each token but the last is run again
        model.counting = CostConfig(answer_tokens=len(passes) - 1)
        model.passes.made.clear()
        cost = model.cost(model.realise(asked, size), size, words)
        assert measured == pytest.approx(float(cost.flops), rel=0.01)
        assert float(cost.kv_bytes) > 0
    hook.remove()


def counts_are_exact(family: str, number: int) -> None:
    model, own = parts(family)
    draw = random.Random(0)
    sizes = [(1, 1), (2, 500), (500, 2)]
    sizes += [(draw.randint(1, 260), draw.randint(1, 260)) for _ in range(number - len(sizes))]
    tiles = Prompts(model.config, own)
    for prompts in (tiles, tiles.own()):
        base = prompts.words("what is it ?")
        for some in [sizes[:1], *(sizes[start : start + 3] for start in range(1, number, 3))]:
            pictures = [prompts.picture(torch.rand(3, *size) * 255) for size in some]
            inputs = prompts.inputs([(pictures, "what is it ?")])
            looks = [prompts.look(size, lone=len(some) == 1) for size in some]
            assert prompts.visual(inputs) == [sum(look.tokens for look in looks)]
            assert length(inputs) == base + sum(prompts.place(look) for look in looks)


@pytest.mark.parametrize("family", FAST)
def test_counts_are_the_processors_own(family: str) -> None:
    counts_are_exact(family, 7)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_counts_are_the_processors_own_on_two_hundred_sizes(family: str) -> None:
    counts_are_exact(family, 200)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_a_picture_of_a_few_pixels_is_answered_and_paid(family: str) -> None:
    model, asked = vlm(family), torch.tensor([[0, 0, 0, 0, 1]])
    image = torch.randint(0, 256, (3, 3, 5), dtype=torch.uint8)
    few = Batch.collate([Sample("few", image, (Question("what ?", ("red",)),))], PYRAMID.size)
    realised, prompt = model.realise(asked, few.size), model.prompt_tokens(few)
    assert model.loglik(few, asked).isfinite().all() and len(model.answer(few, asked)) == 1
    assert realised[0, -1] > 0
    assert model.cost(realised, few.size, prompt).flops > model.cost(0 * realised, few.size, prompt).flops


def test_every_row_is_tested() -> None:
    assert set(TINY) == set(FAMILIES)


def test_one_file_outside_the_package_adds_a_family(toy: str, batch: Batch, tmp_path: Path) -> None:
    load_plugins([toy])
    folder = tmp_path / "model"
    vlm_of("toy_vlm").save_pretrained(folder)
    processor().save_pretrained(folder)
    model = HfVlm.from_pretrained(HfConfig(str(folder), max_answer=4), PYRAMID)
    assert model.model.config.model_type == "toy_vlm" and model.family is FAMILIES["toy_vlm"]
    llava = HfVlm(vlm_of("llava"), processor(), PYRAMID, model.config)
    assert model.answer(batch, ASKED) == llava.answer(batch, ASKED)


def test_an_unknown_family_is_told_what_is_registered_and_where_to_read_on(tmp_path: Path) -> None:
    transformers.ChameleonConfig().save_pretrained(tmp_path)
    said = r"model family='chameleon' is unknown; allowed: .*llava, .*docs/extending-models\.md"
    with pytest.raises(UserError, match=said):
        HfVlm.from_pretrained(HfConfig(str(tmp_path)), PYRAMID)
