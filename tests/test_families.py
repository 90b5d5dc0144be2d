"""Claims about families of third-party models: every row answers, and a file outside the package adds one."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.pyramid import Pyramid
from pyrskip.registry import load_plugins
from pyrskip.sample import Batch, Question, Sample

transformers = pytest.importorskip("transformers")

from pyrskip.models.vlm.families import FAMILIES  # noqa: E402
from pyrskip.models.vlm.hf import HfConfig, HfVlm, check_family  # noqa: E402
from tests.vlm import TOKENS, WORDS, processor, vlm_of  # noqa: E402

PYRAMID = Pyramid(size=64, levels=3, stride=8)
MEMBERS = [
    (name, tower, language)
    for name, family in FAMILIES.items()
    for tower in family.towers
    for language in family.languages
]
ASKED = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
TOY = """
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from pyrskip.models.vlm.families import FAMILIES, Family, pooled


class ToyConfig(LlavaConfig):
    model_type = "toy_vlm"


class ToyModel(LlavaForConditionalGeneration):
    config_class = ToyConfig


AutoConfig.register("toy_vlm", ToyConfig, exist_ok=True)
AutoModelForImageTextToText.register(ToyConfig, ToyModel, exist_ok=True)
FAMILIES.register("toy_vlm", Family(("clip_vision_model",), ("llama",), pooled))
"""


@pytest.fixture(scope="module")
def batch() -> Batch:
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = ("what colour is the car ?", "what ?", "what is the dog ?", "what ?")
    return Batch.collate([Sample("0", image, tuple(Question(t, ("red",)) for t in texts))], PYRAMID.size)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module outside the package that registers a family."""
    (tmp_path / "toy_family.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES))
    monkeypatch.setattr(FAMILIES, "_places", dict(FAMILIES._places))
    yield "toy_family"
    sys.modules.pop("toy_family", None)


@pytest.mark.parametrize(("family", "tower", "language"), MEMBERS, ids=str)
def test_every_row_answers_from_its_kept_tiles(family: str, tower: str, language: str, batch: Batch) -> None:
    vlm = HfVlm(vlm_of(family, tower, language), processor(tower=tower), PYRAMID, HfConfig(max_answer=4))
    # tiles that somebody asks for, each once
    answers = vlm.answer(batch, ASKED)
    assert vlm.encoded == 3 and all(set(answer.split()) <= set(WORDS) for answer in answers)
    size = batch.size[batch.image_of]
    assert vlm.realise(ASKED, size).equal(ASKED * TOKENS)
    flops = vlm.cost(vlm.realise(ASKED, size), size, vlm.prompt_tokens(batch)).flops
    assert flops[2] > flops[0] > flops[1] > flops[3]
    # greedy answers are written token by token, each but the last of which is run again
    passes: list[object] = []
    hook = vlm.model.register_forward_hook(lambda *_: passes.append(0))
    measured = measured_flops(vlm.answer, batch.rows([2]), ASKED[[2]])
    hook.remove()
    vlm.counting = CostConfig(answer_tokens=len(passes) - 1)
    flops = vlm.cost(vlm.realise(ASKED, size), size, vlm.prompt_tokens(batch)).flops
    assert measured == pytest.approx(float(flops[2]), rel=0.01)
    loglik = vlm.loglik(batch, ASKED)
    assert (loglik <= 0).all() and loglik.unique().numel() == len(batch)
    for row in range(len(batch)):
        one = batch.rows([row])
        assert vlm.answer(one, ASKED[[row]]) == [answers[row]]
    # and a picture matters
    other = replace(batch, image=255 - batch.image)
    assert not vlm.loglik(other, ASKED)[2].isclose(loglik[2], rtol=1e-3)


def test_one_file_outside_the_package_adds_a_family(toy: str, batch: Batch, tmp_path: Path) -> None:
    load_plugins([toy])
    folder = tmp_path / "model"
    vlm_of("toy_vlm").save_pretrained(folder)
    processor().save_pretrained(folder)
    vlm = HfVlm.from_pretrained(HfConfig(str(folder), max_answer=4), PYRAMID)
    assert vlm.model.config.model_type == "toy_vlm" and vlm.family is FAMILIES["toy_vlm"]
    llava = HfVlm(vlm_of("llava"), processor(), PYRAMID, vlm.config)
    assert vlm.answer(batch, ASKED) == llava.answer(batch, ASKED)


def test_an_unknown_family_is_told_what_is_registered_and_where_to_read_on() -> None:
    said = r"model family='idefics3' is unknown; allowed: llava .*docs/extending\.md"
    with pytest.raises(UserError, match=said):
        check_family(transformers.Idefics3Config())
