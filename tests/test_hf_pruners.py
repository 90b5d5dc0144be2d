"""Claims about pruners of third-party models: tiny random ones, with their real processors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import Tensor

from pyrskip.config import Config
from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.vlm.served import AnswererConfig
from pyrskip.pruners import PRUNERS, InsidePruner, KeepingPruner, Prunable, Pruner, PrunerConfig
from pyrskip.pruners.random import scrambled
from pyrskip.sample import Batch, Question, Sample

transformers = pytest.importorskip("transformers")

from pyrskip.models.vlm.hf import HfConfig, HfVlm  # noqa: E402
from tests import families  # noqa: E402
from tests.test_families import ASKED, PYRAMID, forced  # noqa: E402

NAMES = [name for name in PRUNERS if name != "visionselector"]
INSIDE = [name for name in NAMES if issubclass(PRUNERS[name], InsidePruner)]
SALIENT = [name for name in NAMES if "salience" in PRUNERS[name].needs]
FAST = ("llava", "qwen2_5_vl", "internvl", "gemma3")
SLIDING = ("gemma3", "gemma4", "paligemma", "llama4", "lfm2_vl")
"""Whose language models have layers that are not of full attention."""
WITHOUT = ("llava_onevision", "fast_vlm")
"""Whose towers cannot be asked for salience."""
QUICK = ("average", "visionzip", "sparsevlm")
"""One that merges tokens, one that reads salience, one between layers that reads words: of every family."""
PAIRS = [
    pytest.param(family, name, marks=() if family in FAST and name in QUICK else pytest.mark.slow)
    for family in families.TINY
    for name in (NAMES if family in FAST else QUICK)
    if family != "mllama"
    and not (name in INSIDE and family in SLIDING)
    and not (name in SALIENT and family in WITHOUT)
]


@cache
def made(family: str) -> HfVlm:
    """Of four layers, where they may be alike."""
    with patch.dict(families.LANGUAGE, num_hidden_layers=2 if family in SLIDING else 4):
        return HfVlm(*families.TINY[family](), PYRAMID, HfConfig(max_answer=4))


def vlm(family: str, name: str = "", ratio: float = 1.0) -> HfVlm:
    """One model a family, behind a pruner if one is named, and with nothing encoded."""
    model = made(family)
    model.pruner = build(name, ratio, family) if name else None
    model.counting = CostConfig()
    return model


def build(name: str, ratio: float, family: str = "") -> Pruner:
    pruner = PRUNERS[name]
    layers: dict[str, Any] = {}
    if family.startswith("qwen3") and issubclass(pruner, InsidePruner):
        layers = {"layers": (2, 2, 3)[-len(pruner.places) :]}  # the first two are given features of their own
    return pruner(pruner.config_class(name, ratio, **layers))


@cache
def plain(family: str) -> tuple[Tensor, list[str]]:
    """Log-likelihoods and answers of the unpruned model."""
    model, batch = vlm(family), questions()
    return model.loglik(batch, ASKED), model.answer(batch, ASKED)


@pytest.fixture(name="batch", scope="module")
def _batch() -> Batch:
    return questions()


@cache
def questions() -> Batch:
    """Three on one image and one on another."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 112, 112), (3, 100, 50))
    ]
    asked = (
        Question("what colour is the car ?", ("red",)),
        Question("what ?", ("a b c",)),
        Question("what is it ?", ("blue",)),
    )
    samples = [Sample("0", images[0], asked), Sample("1", images[1], asked[:1])]
    return Batch.collate(samples, PYRAMID.size)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_where_every_token_stays_a_model_is_the_unpruned_one(family: str, name: str, batch: Batch) -> None:
    loglik, answers = plain(family)
    pruned = vlm(family, name)
    assert pruned.loglik(batch, ASKED).equal(loglik) and pruned.answer(batch, ASKED) == answers


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_pruned_batch_answers_as_single_rows_do(family: str, name: str, batch: Batch) -> None:
    whole, _ = plain(family)
    model = vlm(family, name, 0.4)
    answers, loglik = model.answer(batch, ASKED), model.loglik(batch, ASKED)
    assert ((loglik - whole).abs() > 1e-3).all()
    for row in range(len(batch)):
        one = batch.rows([row])
        assert model.answer(one, ASKED[[row]]) == [answers[row]]
        torch.testing.assert_close(model.loglik(one, ASKED[[row]]), loglik[[row]], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_forward_scores_a_pruned_prompt_as_generate_does(family: str, name: str, batch: Batch) -> None:
    """generate is told what to write, token by token, behind the shorter caches."""
    model = vlm(family, name, 0.4)
    for row in (0, 1):
        one, asked = batch.rows([row]), ASKED[[row]]
        torch.testing.assert_close(model.loglik(one, asked)[0], forced(model, one, asked), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_pruned_prompt_costs_the_flops_and_the_cache_that_it_really_has(
    family: str, name: str, batch: Batch
) -> None:
    model = vlm(family, name, 0.4)
    passes: list[object] = []
    hook = model.model.get_decoder().register_forward_hook(lambda *_: passes.append(0))
    for row in (0, 2):
        one, asked = batch.rows([row]), ASKED[[row]]
        size, words = one.size[one.image_of], model.prompt_tokens(one)
        realised = model.realise(asked, size)
        assert model.passes.mixing
        model.passes.made.clear()
        passes.clear()
        measured = measured_flops(model.answer, one, asked)
        model.counting = CostConfig(answer_tokens=len(passes) - 1)
        model.passes.made.clear()
        cost = model.cost(realised, size, words)
        assert measured == pytest.approx(float(cost.flops), rel=0.01)
        assert cost.tokens.equal(realised.sum(-1))  # all are encoded
        model.counting = CostConfig(answer_tokens=0)
        for _, inputs in model.passes.of(model._rows(one, asked)):
            with torch.no_grad():
                cache = model.model(**inputs, use_cache=True).past_key_values
        kept = [getattr(layer, of, None) for layer in cache.layers for of in ("keys", "values")]
        held = sum(values.numel() for values in kept if isinstance(values, Tensor))
        # a tokenizer may join a token at a seam
        assert float(model.cost(realised, size, words).kv_bytes) == pytest.approx(2 * held, rel=0.01)
    hook.remove()


def merged(model: HfVlm, inputs: dict[str, Any]) -> Tensor:
    """Embedded prompts with what the tower made of their pictures at the image tokens."""
    embeds = model.model.get_input_embeddings()(inputs["input_ids"])
    features = model.model.model.get_image_features(
        **{
            k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw", "pixel_attention_mask")
        },
        return_dict=True,
    ).pooler_output
    features = features if isinstance(features, Tensor) else torch.cat(list(features))
    return embeds.masked_scatter((inputs["input_ids"] == model.prompts.image_id)[..., None], features)


def prompt_of(model: HfVlm, batch: Batch, row: int, answer: str) -> dict[str, Any]:
    """A row's prompt and an answer, as the processor writes it, nothing encoded."""
    (shown,) = model._rows(batch.rows([row]), ASKED[[row]])
    inputs = model.prompts.inputs([(shown.pictures, shown.text)])
    tail = torch.tensor([model.passes.answer_ids(answer)])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(tail)], 1)
    return inputs


def places_by_tile(model: HfVlm, batch: Batch, row: int, visual: Tensor) -> list[int]:
    """A row's visual places, the finest level's first."""
    tokens = model.realise(ASKED[[row]], batch.size[batch.image_of][[row]])[0].tolist()
    of_tile, start = {}, 0
    for tile in model.order:
        of_tile[tile] = visual.nonzero()[start : start + tokens[tile], 0].tolist()
        start += tokens[tile]
    return [place for tile in sorted(of_tile) for place in of_tile[tile]]


def scored(logits: Tensor, ids: list[int]) -> Tensor:
    chances = logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
    return torch.stack([chances[i, token] for i, token in enumerate(ids)]).sum()


@pytest.mark.parametrize("family", [*FAST, "idefics3", "smolvlm", "deepseek_vl", "qwen2_vl"])
@torch.no_grad()
def test_a_pruned_prompt_is_one_that_was_built_by_hand_without_these_tokens(
    family: str, batch: Batch
) -> None:
    model = vlm(family, "random", 0.4)
    for row in (0, 2):
        answer = batch.questions[row].answers[0]
        inputs, ids = prompt_of(model, batch, row, answer), model.passes.answer_ids(answer)
        visual = inputs["input_ids"][0] == model.prompts.image_id
        by_tile = places_by_tile(model, batch, row, visual)
        stays = -(-len(by_tile) * 2 // 5)
        order = scrambled(torch.arange(len(by_tile))).argsort(descending=True)[:stays].tolist()
        stay = ~visual
        stay[[by_tile[i] for i in order]] = True
        given: dict[str, Any] = {}
        positions = torch.arange(len(visual))[None]
        if family.startswith("qwen"):
            grid = {k: inputs[k] for k in ("image_grid_thw", "mm_token_type_ids")}
            positions, _ = model.model.model.get_rope_index(inputs["input_ids"], **grid)
        if "token_type_ids" in inputs:
            given["token_type_ids"] = inputs["token_type_ids"][:, stay]
        embeds = merged(model, inputs)[:, stay]
        logits = model.model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            position_ids=positions[..., stay],
            **given,
        ).logits
        found = model.loglik(batch.rows([row]), ASKED[[row]])[0]
        torch.testing.assert_close(found, scored(logits, ids), atol=1e-4, rtol=0)


@torch.no_grad()
def test_features_that_later_layers_are_given_leave_with_their_tokens(batch: Batch) -> None:
    """Qwen3-VL's, by its language model alone."""
    model, row = vlm("qwen3_vl", "random", 0.4), 0
    inputs, ids = prompt_of(model, batch, row, "red"), model.passes.answer_ids("red")
    visual = inputs["input_ids"][0] == model.prompts.image_id
    by_tile = places_by_tile(model, batch, row, visual)
    order = (
        scrambled(torch.arange(len(by_tile))).argsort(descending=True)[: -(-len(by_tile) * 2 // 5)].tolist()
    )
    stay = ~visual
    stay[[by_tile[i] for i in order]] = True
    base = model.model.model
    grid = {k: inputs[k] for k in ("image_grid_thw", "mm_token_type_ids")}
    positions, _ = base.get_rope_index(inputs["input_ids"], **grid)
    seen = base.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    deep = [torch.cat(list(layer))[stay[visual]] for layer in seen.deepstack_features]
    hidden = base.language_model(
        inputs_embeds=merged(model, inputs)[:, stay],
        attention_mask=torch.ones(1, int(stay.sum()), dtype=torch.int64),
        position_ids=positions[..., stay],
        visual_pos_masks=visual[stay][None],
        deepstack_visual_embeds=deep,
    ).last_hidden_state
    found = model.loglik(batch.rows([row]), ASKED[[row]])[0]
    torch.testing.assert_close(found, scored(model.model.lm_head(hidden), ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "smolvlm"])
@torch.no_grad()
def test_what_leaves_between_layers_is_what_these_layers_cannot_see(family: str, batch: Batch) -> None:
    """FastV by the weights of eager attention, and a mask over all tokens for the layers behind it."""
    model = vlm(family, "fastv", 0.4)
    language = model.model.get_decoder()
    for row in (0, 2):
        answer = batch.questions[row].answers[0]
        inputs, ids = prompt_of(model, batch, row, answer), model.passes.answer_ids(answer)
        visual = inputs["input_ids"][0] == model.prompts.image_id
        places = visual.nonzero()[:, 0]
        # the answer is no part of what the prompt's last token attends from
        last, given = len(visual) - len(ids) - 1, dict(inputs)
        given["attention_mask"] = torch.ones_like(inputs["input_ids"])
        model.model.set_attn_implementation("eager")
        weights = model.model(**given, output_attentions=True).attentions[0][0, :, last].mean(0)
        model.model.set_attn_implementation("sdpa")
        stays = places[weights[places].argsort(descending=True)[: -(-len(places) * 2 // 5)]]
        gone = visual.clone()
        gone[stays] = False
        every = torch.ones(len(visual), len(visual), dtype=torch.bool).tril() & ~gone

        def blind(layer: Any, args: Any, kwargs: Any, mask: Tensor = every[None, None]) -> Any:
            return args, kwargs | {"attention_mask": mask}

        hooks = [layer.register_forward_pre_hook(blind, with_kwargs=True) for layer in language.layers[1:]]
        logits = model.model(**given).logits
        for hook in hooks:
            hook.remove()
        found = model.loglik(batch.rows([row]), ASKED[[row]])[0]
        torch.testing.assert_close(found, scored(logits, ids), atol=1e-4, rtol=0)


class Watched(KeepingPruner):
    """Keeps all, and what it was shown."""

    needs = ("salience", "text")

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__(config)
        self.seen: list[Prunable] = []

    def keep(self, seen: Prunable) -> Tensor:
        self.seen.append(seen)
        return seen.real


@pytest.fixture
def watched() -> Iterator[Callable[[str], tuple[HfVlm, Watched]]]:
    PRUNERS.register("watched", Watched)

    def make(family: str) -> tuple[HfVlm, Watched]:
        model, pruner = vlm(family), Watched(PrunerConfig("watched"))
        model.pruner = pruner
        return model, pruner

    yield make
    del PRUNERS._entries["watched"], PRUNERS._places["watched"]


Watching = Callable[[str], tuple[HfVlm, Watched]]


def blocks(side: int, block: int) -> Tensor:
    """The block [side^2] that each cell of a square is in, row by row."""
    cell = torch.arange(side * side)
    return cell // side // block * (side // block) + cell % side // block


@pytest.mark.parametrize(
    ("family", "layer", "has_class", "place"),
    [
        ("llava", -2, True, torch.arange(4)),
        ("internvl", -1, True, blocks(4, 2)),
        ("gemma3", -1, False, blocks(4, 2)),
        ("smolvlm", -1, False, blocks(4, 2)),
        ("deepseek_vl", -1, False, torch.arange(4)),
    ],
)
@torch.no_grad()
def test_salience_is_what_eager_attention_of_the_tower_says(
    watched: Watching, family: str, layer: int, has_class: bool, place: Tensor, batch: Batch
) -> None:
    model, pruner = watched(family)
    one, glance = batch.rows([0]), torch.tensor([[0, 0, 0, 0, 1]])
    model.loglik(one, glance)
    (salience,) = pruner.seen[0].beside["salience"]
    (shown,) = model._rows(one, glance)
    pixels = model.prompts.inputs([(shown.pictures, shown.text)])["pixel_values"].flatten(0, -4)
    base = model.model.model
    tower = base.vision_tower if hasattr(base, "vision_tower") else base.vision_model
    tower.set_attn_implementation("eager")
    weights = tower(pixels, output_attentions=True).attentions[layer][0].mean(0)
    tower.set_attn_implementation("sdpa")
    received = weights[0, 1:] if has_class else weights.mean(0)
    expected = torch.stack([received[place == token].mean() for token in range(int(place.max()) + 1)])
    torch.testing.assert_close(salience[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_cells_of_windows_go_into_the_tokens_that_they_are_merged_into() -> None:
    """Qwen2.5-VL's tower orders cells by windows, and merges four in a row."""
    model = vlm("qwen2_5_vl", "visionzip", 0.4)
    salience = model.passes.salience
    assert salience is not None
    size, inputs = model.passes._alone(Image.new("RGB", (112, 112)))
    salience.prepare(size, inputs)
    # 4 x 4 merged cells, in windows of 2 x 2
    windows = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).flatten()
    assert salience.places[size].equal(windows.repeat_interleave(4))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", pytest.param("paligemma")])
def test_pruners_see_the_words_of_the_question_and_the_finest_level_first(
    watched: Watching, family: str, batch: Batch
) -> None:
    model, pruner = watched(family)
    model.loglik(batch, ASKED)
    tokens = model.realise(ASKED, batch.size[batch.image_of])
    for row, seen in enumerate(pruner.seen):
        expected = torch.arange(PYRAMID.tiles).repeat_interleave(tokens[row])
        assert seen.tile[0].equal(expected) and seen.real.all()
        assert seen.beside["salience"][0].shape == seen.real.shape
        words, mask = seen.beside["text"]
        ids = model.prompts.tokenizer(batch.texts[row], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            embedded = model.model.get_input_embeddings()(torch.tensor(ids))
        assert mask.all() and torch.allclose(words[0], embedded)


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("mllama", "random", "model family 'mllama', whose visual tokens are no part of the prompt: cross"),
        ("gemma3", "fastv", "all of which must be of full attention, and it has layers of sliding_attention"),
        ("qwen3_vl", "fastv", "prunes behind layer 1, and the first 2 layers are given visual features"),
        ("llava_onevision", "visionzip", "'llava_onevision' looks at a picture anew in every prompt"),
        (
            "fast_vlm",
            "holov",
            "cannot be told of the tower of model family 'fast_vlm': what is behind it mixes",
        ),
    ],
)
def test_what_a_family_does_not_have_is_refused(family: str, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        vlm(family).pruner = PRUNERS[name](PRUNERS[name].config_class(name, 0.5))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "visionselector",
            "pruner.name=visionselector learns through the native model, and model.name=hf is none",
        ),
        ("fastv", ""),
        ("visionzip", ""),
    ],
)
def test_a_config_refuses_what_no_family_has(name: str, said: str) -> None:
    config = PRUNERS[name].config_class(name, 0.5)
    if said:
        with pytest.raises(UserError, match=said):
            Config(pruner=config, model=AnswererConfig("hf"))
    else:
        assert Config(pruner=config, model=AnswererConfig("hf")).pruner is config


def test_the_model_as_its_users_run_it_is_not_pruned(batch: Batch) -> None:
    whole, found = torch.ones(len(batch), 1, dtype=torch.int64), []
    for name in ("", "average"):
        model = vlm("llava", name, 0.4 if name else 1.0)
        assert model.as_run.pruner is None
        found.append(model.as_run.loglik(batch, whole))
    assert found[0].equal(found[1])


def test_a_question_without_a_picture_has_nothing_to_prune(batch: Batch) -> None:
    nothing = torch.zeros_like(ASKED)
    whole = vlm("llava").loglik(batch, nothing)
    for name in ("average", "fastv", "visionzip"):
        assert vlm("llava", name, 0.4).loglik(batch, nothing).equal(whole)


def test_an_empty_question_is_pruned_too(batch: Batch) -> None:
    silent = replace(batch, questions=tuple(replace(q, text="") for q in batch.questions))
    for name in ("cdpruner", "sparsevlm", "ptp"):
        assert vlm("llava", name, 0.4).loglik(silent, ASKED).isfinite().all()
