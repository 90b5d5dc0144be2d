"""Claims about a loaded export: it decides and answers as the trained model does, computes nothing that it
skips, and refuses what is wrong in one sentence."""

import base64
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pyrskip
from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.inference import Engine, Request
from pyrskip.inference.bundle import SignalSpec
from pyrskip.inference.processor import chat, conversation, data_url, plan, thumbnail, views
from pyrskip.models.native import NativeModel
from tests.exports import GATE_FLOPS, GUARANTEED, PYRAMID, SAFE, UNIT, expected, images, requests
from tests.models import SIDE, TEXTS, tiny_batch

PRICE = 0.3
BACKENDS = ("onnx", "torch")


@pytest.fixture(scope="session", params=BACKENDS)
def engine(request: pytest.FixtureRequest, exported: tuple[Path, NativeModel, Gate]) -> Engine:
    return pyrskip.load(exported[0], request.param, threads=1)


@pytest.mark.parametrize("most", [None, 20])
def test_an_export_decides_and_answers_as_the_model_does(
    engine: Engine, exported: tuple[Path, NativeModel, Gate], most: int | None
) -> None:
    _, model, gate = exported
    batch = tiny_batch()
    asked, texts = expected(model, gate, batch, PRICE, most)
    answers = engine.answer_many(requests(batch, price=PRICE, max_tokens=most))
    size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
    realised = model.realise(asked, size)
    assert len({tuple(row) for row in realised.tolist()}) > 2, "the decisions are to differ"
    assert [list(a.selection.tiles) for a in answers] == realised.tolist()
    assert [a.text for a in answers] == texts
    flops = model.cost(realised, size, words).flops + GATE_FLOPS
    assert [a.selection.flops for a in answers] == flops.tolist()
    assert [a.selection.cost for a in answers] == pytest.approx((flops / UNIT).tolist())


def test_a_request_never_depends_on_its_batch_mates(engine: Engine) -> None:
    asked = requests(tiny_batch(), price=PRICE)
    together, alone = engine.answer_many(asked), [engine.answer_many([one])[0] for one in asked]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.selection.tiles for a in together] == [a.selection.tiles for a in alone]


def test_what_is_skipped_is_never_encoded(engine: Engine) -> None:
    asked = [replace(r, image=r.image.copy()) for r in requests(tiny_batch(), price=PRICE)]
    before = engine.encoded
    answers = engine.answer_many(asked)
    kept = [sum(n > 0 for n in a.selection.tiles) for a in answers]
    assert engine.encoded - before == sum(kept)
    assert min(kept) < max(kept)
    before = engine.encoded
    engine.select_many(asked)
    assert engine.encoded - before == len(asked), "a selection encodes glances alone"


def test_an_image_that_requests_share_is_encoded_once(engine: Engine) -> None:
    image = images(tiny_batch())[0]
    before = engine.encoded
    engine.answer_many([Request(image, text, price=0.0) for text in TEXTS])
    assert engine.encoded - before <= PYRAMID.tiles


def test_a_path_bytes_and_an_image_are_the_same(engine: Engine, tmp_path: Path) -> None:
    image = images(tiny_batch())[1]
    image.save(tmp_path / "a.png")
    ways = [image, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
    assert len({engine.answer(way, TEXTS[0]).selection for way in ways}) == 1


def test_max_tokens_alone_spends_what_it_may(engine: Engine) -> None:
    image = images(tiny_batch())[0]
    for most in (1, 7, 20, 1000):
        selection = engine.select(image, TEXTS[0], max_tokens=most)
        assert selection.tokens <= most
        assert selection.price == 0.0


def test_a_guaranteed_retention_is_its_price(engine: Engine) -> None:
    image = images(tiny_batch())[0]
    for of in GUARANTEED:
        wanted = engine.answer(image, TEXTS[0], price=of.price)
        assert engine.answer(image, TEXTS[0], retention=of.retention) == wanted
        assert engine.select(image, TEXTS[0], retention=of.retention) == wanted.selection


def test_a_safe_request_plays_a_fixed_selection_where_the_gate_is_not_above_those(
    engine: Engine, exported: tuple[Path, NativeModel, Gate]
) -> None:
    _, model, gate = exported
    batch, layout = tiny_batch(), gate.layout
    size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
    listed = layout.actions.tokens(model.pyramid.capacity(size), layout.budget)
    for price, action in ((0.01, "0,1"), (0.3, "1"), (2.0, "glance")):
        tiles = model.realise(listed[:, layout.actions.index(action)], size)
        answers = engine.answer_many(requests(batch, price=price, safe=True))
        assert [list(a.selection.tiles) for a in answers] == tiles.tolist()
        assert [a.selection.flops for a in answers] == model.cost(tiles, size, words).flops.tolist()
        assert {(a.selection.confidence, a.selection.price) for a in answers} == {(1.0, price)}
    for price in (0.02, 0.07, 0.4):
        assert engine.answer_many(requests(batch, price=price, safe=True)) == engine.answer_many(
            requests(batch, price=price)
        )
    assert engine.select(images(batch)[0], TEXTS[0], safe=True).price == 0.05


def test_safe_requests_and_others_are_decided_in_one_batch_as_alone(engine: Engine) -> None:
    mixed = [
        replace(request, price=price, safe=safe)
        for request, (price, safe) in zip(
            requests(tiny_batch()), ((0.3, True), (0.3, False), (0.02, True), (2.0, True)) * 9, strict=False
        )
    ]
    assert engine.answer_many(mixed) == [engine.answer_many([one])[0] for one in mixed]


def test_an_export_that_does_not_know_where_its_gate_is_above_says_so(engine: Engine) -> None:
    prices = replace(engine.spec.prices, safe=None)
    bare = Engine(replace(engine.spec, prices=prices), engine.tokenizer, None, engine.backend, "")
    with pytest.raises(UserError, match="does not say where its gate is above fixed selections"):
        bare.check_dial(0.1, None, safe=True)
    assert SAFE.at(0.02) is SAFE.at(0.1) is SAFE.at(0.4) is None
    played = [SAFE.at(price) for price in (0.0, 0.019, 0.11, 0.41, 0.6, 1e9)]
    assert played == ["0,1", "0,1", "1", "1", "glance", "glance"]


def test_an_export_that_guarantees_nothing_says_so(engine: Engine) -> None:
    prices = replace(engine.spec.prices, guaranteed=())
    bare = Engine(replace(engine.spec, prices=prices), engine.tokenizer, None, engine.backend, "")
    with pytest.raises(
        UserError, match="retention=0.98 .* allowed: price, since this export guarantees none"
    ):
        bare.check_dial(None, None, 0.98)


@pytest.mark.parametrize(
    ("image", "question", "dial", "says"),
    [
        (b"", TEXTS[0], {}, "cannot be read"),
        (b"\x89PNG\r\n\x1a\n....", TEXTS[0], {}, "cannot be read"),
        ("nowhere.png", TEXTS[0], {}, "nowhere.png does not exist"),
        (None, "", {}, "empty"),
        (None, " \n", {}, "empty"),
        (None, "which?\nA. {0}\nB. {0}".format("word " * 60), {}, "options have .* allowed: 48"),
        (None, TEXTS[0], {"price": -0.1}, "allowed: at least 0"),
        (None, TEXTS[0], {"price": float("nan")}, "finite"),
        (None, TEXTS[0], {"price": float("inf")}, "finite"),
        (None, TEXTS[0], {"price": 10**400}, "finite"),
        (None, TEXTS[0], {"max_tokens": 0}, "at least 1"),
        (None, TEXTS[0], {"max_tokens": True}, "at least 1"),
        (None, TEXTS[0], {"safe": True, "max_tokens": 3}, "allowed: safe=True with a price, or alone"),
        (None, TEXTS[0], {"safe": True, "retention": 0.98}, "allowed: safe=True with a price, or alone"),
        (None, TEXTS[0], {"safe": "yes"}, "safe='yes': allowed: true, false"),
        (None, TEXTS[0], {"retention": 0.97}, "retention=0.97 is not guaranteed .* allowed: 0.9, 0.98"),
        (None, TEXTS[0], {"retention": True}, "allowed: 0.9, 0.98"),
        (None, TEXTS[0], {"retention": "0.98"}, "allowed: 0.9, 0.98"),
        (None, TEXTS[0], {"retention": float("nan")}, "allowed: 0.9, 0.98"),
        (None, TEXTS[0], {"retention": 0.98, "price": 0.02}, "allowed: retention alone"),
        (None, TEXTS[0], {"retention": 0.98, "max_tokens": 9}, "allowed: retention alone"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(
    engine: Engine, image: Any, question: str, dial: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        engine.select(Image.new("RGB", (9, 9)) if image is None else image, question, **dial)


@pytest.mark.parametrize("question", ["word " * 60, "word" * 1_000_000, "word " * 60 + "\nA. red\nB. blue"])
def test_a_long_question_is_read_as_in_training_and_the_answer_says_so(
    engine: Engine, exported: tuple[Path, NativeModel, Gate], question: str
) -> None:
    picture = engine.picture(Image.new("RGB", (9, 9)))
    row = engine.prepared(picture, Request(b"", question))
    ids, mask = exported[1].language.tokenize([question, TEXTS[0]])
    assert row.words == ids[0][mask[0]].tolist()
    assert engine.select(Image.new("RGB", (9, 9)), question).cut == row.cut > 0
    assert engine.select(Image.new("RGB", (9, 9)), TEXTS[0]).cut == 0


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(engine: Engine) -> None:
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    with pytest.raises(UserError, match="9000 x 9000 pixels"):
        engine.select(file.getvalue(), TEXTS[0])


BANNED = ("pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb", "webdataset", "matplotlib", "rich")
PROGRAM = """
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {banned}:
            raise ImportError(name + " is banned")
sys.meta_path.insert(0, Ban())
import pyrskip
assert not set(sys.modules) & {{"torch", "numpy", "PIL", "tokenizers"}}, "import pyrskip is to cost nothing"
model = pyrskip.load({directory!r}, {backend!r})
from PIL import Image
print(model.answer(Image.new("RGB", (30, 20)), "how many?").selection.tokens)
import pyrskip.cli, pyrskip.inference.predict, pyrskip.serving.serve, pyrskip.inference.processor
"""


@pytest.mark.parametrize(
    ("backend", "also"),
    [("onnx", ("torch", "timm", "torchvision", "transformers", "safetensors")), ("torch", ())],
)
def test_an_export_runs_without_the_training_stack(
    backend: str, also: tuple[str, ...], exported: tuple[Path, NativeModel, Gate]
) -> None:
    program = PROGRAM.format(banned=(*BANNED, *also), directory=str(exported[0]), backend=backend)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_plan_from_a_thumbnail_is_the_engines_selection(engine: Engine) -> None:
    for image in images(tiny_batch()):
        for text in TEXTS:
            made = plan(engine, thumbnail(engine, image), image.size, text, price=PRICE)
            wanted = engine.select(image, text, price=PRICE)
            # a thumbnail has 8 bits a channel, so that what is near a tie may fall to the other side
            if wanted.confidence > 0.6:
                assert made.selection.tiles == wanted.tiles
            assert [v.tile for v in sorted(made.views, key=lambda v: v.tile)] == list(
                np.flatnonzero(made.selection.tiles)
            )
            assert made.views[0].level == 2
            pictures = views(engine, image, made)
            assert [p.size for p in pictures] == [(v.width, v.height) for v in made.views]
            assert all(0 <= v.box[0] < v.box[2] <= 1 and 0 <= v.box[1] < v.box[3] <= 1 for v in made.views)


def test_views_are_shown_to_servers_as_they_are(engine: Engine) -> None:
    image = Image.effect_noise((SIDE, SIDE), 80).convert("RGB")
    made = plan(engine, thumbnail(engine, image), image.size, TEXTS[0], price=0.0)
    pictures = views(engine, image, made)
    (message,) = chat(pictures, TEXTS[0])
    *shown, text = message["content"]
    assert text == {"type": "text", "text": TEXTS[0]}
    assert all(part["image_url"]["url"].startswith("data:image/png;base64,") for part in shown)
    (turn,) = conversation(pictures, TEXTS[0])
    assert [part.get("image") for part in turn["content"][:-1]] == pictures


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (64, 48)])
def test_a_picture_is_the_same_behind_its_data_url(
    size: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:  # as where there is no such package
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    picture = Image.merge("RGB", [Image.effect_noise(size, 90) for _ in range(3)])
    with Image.open(io.BytesIO(base64.b64decode(data_url(picture).split(",")[1]))) as read:
        read.verify()  # its checksums too
    with Image.open(io.BytesIO(base64.b64decode(data_url(picture).split(",")[1]))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", size)
        assert read.tobytes() == picture.tobytes()


def test_a_plan_refuses_a_gate_that_needs_the_models_answer(engine: Engine) -> None:
    signals = {"answer_stats": SignalSpec("first_token", ("answer_stats",), "signal-answer_stats")}
    asking = Engine(
        replace(engine.spec, signals=engine.spec.signals | signals),
        engine.tokenizer,
        engine.query_tokenizer,
        engine.backend,
        engine.digest,
    )
    with pytest.raises(
        UserError, match="reads answer_stats, .* must know every image's size before it reads"
    ):
        plan(asking, Image.new("RGB", (16, 16)), (64, 64), TEXTS[0])


def test_a_plan_refuses_another_images_thumbnail(engine: Engine) -> None:
    with pytest.raises(UserError, match="thumbnail has"):
        plan(engine, Image.new("RGB", (64, 64)), (64, 64), TEXTS[0])
