"""Claims about a loaded export: it decides and answers as the trained model does, computes nothing that it skips, and refuses
what is wrong in one sentence."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pyrskip
from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.decision import realise as torch_realise
from pyrskip.errors import UserError
from pyrskip.export.graphs import trace, write_onnx
from pyrskip.gates import GATES
from pyrskip.gates.gate import Gate, Observation
from pyrskip.inference import Engine, Request
from pyrskip.inference.bundle import check_files, write_checksums
from pyrskip.inference.geometry import Geometry, mipmaps, pool, realise
from pyrskip.inference.modules import GatePart
from pyrskip.inference.policy import UNLIMITED, Budget, Rule
from pyrskip.inference.processor import chat, conversation, plan, refuse_sequential, thumbnail, views
from pyrskip.models.native import NativeModel
from pyrskip.models.projector import pool as torch_pool
from pyrskip.pyramid import Pyramid
from pyrskip.pyramid import mipmaps as torch_mipmaps
from pyrskip.rollouts.environments import observe
from pyrskip.sample import Batch
from tests.exports import GATE_FLOPS, UNIT, tiny_gate
from tests.models import SIDE, SIZES, TEXTS, tiny_batch, tiny_model

PYRAMID = Pyramid(SIDE, 3, 8, (2, 1, 1))
GEOMETRY = Geometry(SIDE, 8, (2, 1, 1))
PRICE = 0.3
BACKENDS = ("onnx", "torch")
sizes = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE))


@pytest.fixture(scope="session", params=BACKENDS)
def engine(request: pytest.FixtureRequest, exported: tuple[Path, NativeModel, Gate]) -> Engine:
    return pyrskip.load(exported[0], request.param, threads=1)


@pytest.fixture
def copied(exported: tuple[Path, NativeModel, Gate], tmp_path: Path) -> Path:
    shutil.copytree(exported[0], tmp_path / "export")
    return tmp_path / "export"


def images(batch: Batch) -> list[Image.Image]:
    pixels = [batch.image[i, :, :h, :w] for i, (h, w) in enumerate(batch.size.tolist())]
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]


def requests(batch: Batch, **dial: Any) -> list[Request]:
    pictures = images(batch)
    return [Request(pictures[i], text, **dial) for i, text in zip(batch.image_of.tolist(), batch.texts, strict=True)]


@torch.no_grad()
def expected(model: NativeModel, gate: Gate, batch: Batch, price: float, most: int | None) -> tuple[torch.Tensor, list[str]]:
    """The trained model's decisions and answers."""
    keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
    keep[:, -1] = True
    seen = observe(model, gate.layout, batch, model.encode(batch, keep), torch.full((len(batch),), price), UNIT)
    asked = gate.policy(seen).mode(most)
    return asked, model.answer(batch, asked)


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
    assert engine.encoded - before <= GEOMETRY.tiles


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


@pytest.mark.parametrize(
    ("image", "question", "dial", "says"),
    [
        (b"", TEXTS[0], {}, "cannot be read"),
        (b"\x89PNG\r\n\x1a\n....", TEXTS[0], {}, "cannot be read"),
        ("nowhere.png", TEXTS[0], {}, "nowhere.png does not exist"),
        (None, "", {}, "empty"),
        (None, " \n", {}, "empty"),
        (None, "word " * 60, {}, "more than 48 tokens"),
        (None, "word" * 1_000_000, {}, "more than 48 tokens"),
        (None, TEXTS[0], {"price": -0.1}, "allowed: at least 0"),
        (None, TEXTS[0], {"price": float("nan")}, "finite"),
        (None, TEXTS[0], {"price": float("inf")}, "finite"),
        (None, TEXTS[0], {"max_tokens": 0}, "at least 1"),
        (None, TEXTS[0], {"max_tokens": True}, "at least 1"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(
    engine: Engine, image: Any, question: str, dial: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        engine.select(Image.new("RGB", (9, 9)) if image is None else image, question, **dial)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(engine: Engine) -> None:
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    with pytest.raises(UserError, match="9000 x 9000 pixels"):
        engine.select(file.getvalue(), TEXTS[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "onnx/gate.onnx"])
@pytest.mark.parametrize("damage", ["changed", "missing", "unlisted"])
def test_a_tampered_export_is_refused(name: str, damage: str, copied: Path) -> None:
    path = copied / name
    if damage == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    else:
        sums = json.loads((copied / "checksums.json").read_text())
        del sums[name]
        (copied / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=re.escape(name)):
        pyrskip.load(copied, "onnx")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "upgrade"),
        ({"format_version": "1"}, "upgrade"),
        ({"format": "onnx"}, "format='onnx'"),
        ({"gate": None}, "config.json cannot be read"),
        ({"actions": {"names": ["a"], "selection": [[1]]}}, "actions.selection"),
    ],
)
def test_another_or_a_newer_format_is_refused(change: dict[str, Any], says: str, copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(plain | change))
    write_checksums(copied)
    with pytest.raises(UserError, match=says):
        pyrskip.load(copied, "onnx")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    for source, says in ((tmp_path, "is no export"), (tmp_path / "nowhere", "is no directory"), ("a/b/c", "is no directory")):
        with pytest.raises(UserError, match=says):
            pyrskip.load(source)
    with pytest.raises(UserError, match="allowed: onnx, torch"):
        pyrskip.load(tmp_path, "tensorrt")


def test_weights_that_do_not_fit_are_refused(copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    plain["gate"]["config"]["width"] = 16
    (copied / "config.json").write_text(json.dumps(plain))
    write_checksums(copied)
    with pytest.raises(UserError, match="is not what config.json describes"):
        pyrskip.load(copied, "torch")


def test_checksums_cannot_point_out_of_the_export(copied: Path) -> None:
    sums = json.loads((copied / "checksums.json").read_text())
    (copied / "checksums.json").write_text(json.dumps(sums | {"../outside": "0"}))
    with pytest.raises(UserError, match="outside of it"):
        check_files(copied)


def test_native_code_is_not_loaded_unless_it_is_allowed(copied: Path) -> None:
    (copied / "native").mkdir()
    for name in ("query", "gate", "vision", "projector", "prefill", "decode"):
        (copied / "native" / f"{name}.pt2").write_bytes(b"code")
    write_checksums(copied)
    (copied / "native" / "gate.pt2").write_bytes(b"other code")
    pyrskip.load(copied, "torch")
    with pytest.raises(UserError, match=re.escape("native/gate.pt2")):
        pyrskip.load(copied, "torch", allow_native=True)


def test_an_export_names_no_import_path(exported: tuple[Path, NativeModel, Gate]) -> None:
    plain = (exported[0] / "config.json").read_text()
    assert not re.search(r"_target_|pyrskip\.|torch\.|\.py\b", plain)


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
import pyrskip.cli, pyrskip.inference.predict, pyrskip.inference.serve, pyrskip.inference.processor
"""


@pytest.mark.parametrize(
    ("backend", "also"), [("onnx", ("torch", "timm", "torchvision", "transformers", "safetensors")), ("torch", ())]
)
def test_an_export_runs_without_the_training_stack(
    backend: str, also: tuple[str, ...], exported: tuple[Path, NativeModel, Gate]
) -> None:
    program = PROGRAM.format(banned=(*BANNED, *also), directory=str(exported[0]), backend=backend)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("policy", ["utility", "bernoulli"])
@pytest.mark.parametrize("name", [name for name, gate in GATES.items() if not gate.sequential])
def test_every_gate_exports(name: str, policy: str, tmp_path: Path) -> None:
    model = tiny_model()
    gate = tiny_gate(model, name, policy)
    write_onnx(trace(model, gate, ("gate",)), tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/gate.onnx")
    taken = [i.name for i in session.get_inputs()]
    for count in (1, 4):
        generator = torch.Generator().manual_seed(count)
        seen = Observation(
            query=torch.randn(count, 6, gate.layout.query_width, generator=generator),
            query_mask=torch.ones(count, 6, dtype=torch.bool).tril(3),
            glance=torch.randn(count, gate.layout.channels, 2, 2, generator=generator),
            glance_mask=torch.tensor([[True, False], [True, False]]).expand(count, -1, -1),
            capacity=torch.randint(1, 64, (count, 3), generator=generator),
            cost=torch.rand(count, 4, generator=generator),
            price=torch.rand(count, generator=generator),
        )
        with torch.no_grad():
            tensors = {name: value for name, value in vars(seen).items() if name != "reveal"}
            wanted = GatePart(gate)(**tensors).numpy()
        got = session.run(None, {k: v.numpy() for k, v in tensors.items() if k in taken})[0]
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@given(size=sizes)
def test_geometry_is_the_pyramids(size: tuple[int, int]) -> None:
    torch_size, numpy_size = torch.tensor([size]), np.array([size])
    np.testing.assert_array_equal(GEOMETRY.pixels(numpy_size), PYRAMID.pixels(torch_size).numpy())
    np.testing.assert_array_equal(GEOMETRY.cells(numpy_size), PYRAMID.cells(torch_size).numpy())
    np.testing.assert_array_equal(GEOMETRY.tile_corner, PYRAMID.tile_corner.numpy())
    np.testing.assert_array_equal(GEOMETRY.tile_level, PYRAMID.tile_level.numpy())


@settings(max_examples=40)
@given(size=sizes, seed=st.integers(0, 99))
def test_mipmaps_are_the_pyramids(size: tuple[int, int], seed: int) -> None:
    rows, columns = size
    image = np.random.default_rng(seed).integers(0, 256, (3, rows, columns), dtype=np.uint8)
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    canvas[0, :, :rows, :columns] = torch.from_numpy(image) / 255
    levels = torch_mipmaps(canvas, torch.tensor([size]), 3)
    for tile in range(GEOMETRY.tiles):
        cells = GEOMETRY.cells(np.array([size]))[0, tile]
        if cells.all():
            level = int(GEOMETRY.tile_level[tile])
            wanted = PYRAMID.crop(levels[level], tile)[0, :, : cells[0] * 8, : cells[1] * 8].numpy()
            np.testing.assert_allclose(GEOMETRY.crop(mipmaps(image, 3)[level], tile, cells), wanted, atol=1e-6)


@given(
    asked=st.lists(st.integers(0, 70), min_size=4, max_size=4),
    cells=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=4, max_size=4),
)
def test_realised_tokens_are_the_decisions(asked: list[int], cells: list[tuple[int, int]]) -> None:
    wanted = torch_realise(torch.tensor(asked), torch.tensor(cells))
    np.testing.assert_array_equal(realise(np.array(asked), np.array(cells)), wanted.numpy())


@given(cells=st.tuples(st.integers(1, 9), st.integers(1, 9)), share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_pooling_is_the_projectors(cells: tuple[int, int], share: tuple[float, float]) -> None:
    size = [max(1, round(s * c)) for s, c in zip(share, cells, strict=True)]
    features = torch.randn(1, 5, *cells, generator=torch.Generator().manual_seed(0))
    wanted, _ = torch_pool(features, torch.tensor([cells]), torch.tensor([size]))
    got = pool(features[0].numpy(), np.array(size))
    np.testing.assert_allclose(got, wanted[0].flatten(1).T.numpy(), atol=1e-6)


budgets = st.one_of(
    st.builds(BudgetRule, cap=st.one_of(st.none(), st.integers(1, 30))),
    st.builds(
        BudgetRule,
        total=st.integers(0, 90),
        floor=st.integers(1, 9),
        cap=st.one_of(st.none(), st.integers(1, 30)),
        weights=st.one_of(st.none(), st.tuples(*[st.floats(0, 5)] * 6)),
    ),
)


@settings(max_examples=200)
def served(rule: BudgetRule) -> Budget:
    return Budget(rule.total, rule.floor, rule.cap, rule.weights)


@given(budget=budgets, size=sizes, chosen=st.integers(0, 63))
def test_budgets_are_those_of_training(budget: BudgetRule, size: tuple[int, int], chosen: int) -> None:
    selection = torch.tensor([bool(chosen >> i & 1) for i in range(6)])
    capacity = PYRAMID.capacity(torch.tensor([size]))
    wanted = budget.tokens(selection[None], capacity)
    got = served(budget).tokens(selection.numpy()[None], capacity.numpy())
    np.testing.assert_array_equal(got, wanted.numpy())


@pytest.mark.parametrize("policy", ["bernoulli", "categorical", "utility"])
@pytest.mark.parametrize("most", [None, 3, 20, 50])
def test_the_mode_is_the_trained_policys(policy: str, most: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    model = tiny_model(grid=(2, 1, 1))
    gate = tiny_gate(model, policy=policy, budget=BudgetRule(total=40, floor=2))
    gate.tilt.fill_(0.1)
    capacity = PYRAMID.capacity(torch.tensor(SIZES)).repeat(40, 1)
    rows, outputs = len(capacity), PYRAMID.tiles if policy == "bernoulli" else len(gate.layout.actions)
    raw = torch.randn(rows, outputs, generator=generator)
    cost, price = torch.rand(rows, len(gate.layout.actions), generator=generator), torch.rand(rows, generator=generator)
    glance = torch.zeros(rows, gate.layout.channels, 2, 2)
    seen = Observation(torch.zeros(rows, 1, 1), torch.ones(rows, 1), glance, glance[:, 0] == 0, capacity, cost, price)
    trained = gate.policy(seen, raw)
    budget = gate.layout.budget
    selection = ActionSet.by_level(PYRAMID).selection.numpy()
    rule = Rule(policy, gate.config.temperature, 0.1, selection, served(budget))
    limit = np.full(rows, UNLIMITED if most is None else most)
    decided = rule.decide(raw.numpy(), capacity.numpy(), cost.numpy(), price.numpy(), limit)
    mode = trained.mode(most)
    np.testing.assert_array_equal(decided.asked, mode.numpy())
    if most is None:
        np.testing.assert_allclose(decided.confidence, trained.log_prob(mode).exp().numpy(), rtol=1e-4)
        assert (decided.margin >= 0).all()


def test_a_plan_from_a_thumbnail_is_the_engines_selection(engine: Engine) -> None:
    for image in images(tiny_batch()):
        for text in TEXTS:
            made = plan(engine, thumbnail(engine, image), image.size, text, price=PRICE)
            wanted = engine.select(image, text, price=PRICE)
            # a thumbnail has 8 bits a channel, so that what is near a tie may fall to the other side
            if wanted.confidence > 0.6:
                assert made.selection.tiles == wanted.tiles
            assert [v.tile for v in sorted(made.views, key=lambda v: v.tile)] == list(np.flatnonzero(made.selection.tiles))
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


def test_a_plan_refuses_a_sequential_gate_with_the_reason(engine: Engine) -> None:
    sequential = Engine(
        replace(engine.spec, sequential=True), engine.tokenizer, engine.query_tokenizer, engine.backend, engine.digest
    )
    with pytest.raises(UserError, match="a server must know every image's size before it encodes"):
        plan(sequential, Image.new("RGB", (16, 16)), (64, 64), TEXTS[0])
    refuse_sequential(False)


def test_a_plan_refuses_another_images_thumbnail(engine: Engine) -> None:
    with pytest.raises(UserError, match="thumbnail has"):
        plan(engine, Image.new("RGB", (64, 64)), (64, 64), TEXTS[0])
