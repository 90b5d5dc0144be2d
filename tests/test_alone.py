"""Claims about a gate alone: it decides as the trained gate does, counts as the model does that runs
elsewhere, and says what to send there."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyrskip
from pyrskip.budget import BudgetRule
from pyrskip.data.reader import ShardDataset
from pyrskip.decision import Candidates
from pyrskip.errors import UserError
from pyrskip.export.alone import check_alone
from pyrskip.export.outside import outside_of, prompt_of
from pyrskip.export.sizes import by_size
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.inference import GateAlone, Request, decider
from pyrskip.inference.bundle import DECIDES, read_bundle, write_checksums
from pyrskip.inference.decider import Arrays, Backend, Inputs
from pyrskip.inference.modules import counting
from pyrskip.inference.outside import BySize, Prompt
from pyrskip.inference.processor import cut as cut_views
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.policies import POLICIES
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from tests.exports import GATE_FLOPS, PYRAMID, UNIT, alone_export, images, requests, tiny_box, tiny_served
from tests.families import TINY, internvl
from tests.models import TEXTS, tiny_batch
from tests.server import TEMPLATE, serve
from tests.test_inference import BANNED
from tests.toys import toy_module
from tests.vlm import llava, processor

PRICES = (0.0, 0.05, 0.3, 3.0)


def loaded(directory: Path, backend: str = "torch") -> GateAlone:
    gate = pyrskip.load(directory, backend, threads=1)
    assert isinstance(gate, GateAlone)
    return gate


@pytest.fixture(scope="module")
def gate(alone: tuple[Path, ServedModel, Gate]) -> GateAlone:
    return loaded(alone[0])


@pytest.fixture(scope="module")
def test_split(tiny_data: Path) -> ShardDataset:
    return ShardDataset(tiny_data, "test", 64)


@pytest.fixture
def copied(alone: tuple[Path, ServedModel, Gate], tmp_path: Path) -> Path:
    shutil.copytree(alone[0], tmp_path / "bundle")
    return tmp_path / "bundle"


def every_size(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(1, side + 1), np.arange(1, side + 1), indexing="ij"), -1)


# each way to count a limit's tokens; in onnxruntime, whose graphs take seconds to trace, as slow tests
SLOW = [
    *(("torch", policy) for policy in POLICIES if policy not in ("utility", "bernoulli")),
    *(("onnx", policy) for policy in ("utility", "bernoulli", "sequential")),
]


@pytest.mark.parametrize(
    ("backend", "policy"),
    [
        ("torch", "utility"),
        ("torch", "bernoulli"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_every_policy_decides_as_in_training(
    backend: str, policy: str, test_split: ShardDataset, tmp_path: Path
) -> None:
    model, own = tiny_served(tmp_path, policy)
    alone_export(tmp_path / "bundle", model, own, traced=backend == "onnx")
    deciders = {backend: loaded(tmp_path / "bundle", backend).decider}
    (result,) = check_alone(model, own, deciders, test_split, UNIT, PRICES)
    assert (
        result.holds and result.decisions == 2 * len(PRICES) * result.questions > 0 and result.flops < 1e-12
    )


def test_a_decision_is_the_trained_gates(gate: GateAlone, alone: tuple[Path, ServedModel, Gate]) -> None:
    _, model, own = alone
    batch, tiles = tiny_batch(), set()
    size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
    for price in PRICES:
        gated = Gated(model, own, UNIT, price)
        wanted = model.realise(gated.decide(batch, gated.glance(batch)).tokens, size)
        flops = model.cost(wanted, size, words).flops + GATE_FLOPS
        found = gate.decide_many(requests(batch, price=price))
        assert [list(of.selection.tiles) for of in found] == wanted.tolist()
        assert [of.selection.flops for of in found] == flops.tolist()
        assert [of.selection.tokens for of in found] == wanted.sum(-1).tolist()
        tiles |= {tuple(row) for row in wanted.tolist()}
        one_by_one = [gate.decide_many([request])[0] for request in requests(batch, price=price)]
        assert [of.selection.tiles for of in one_by_one] == [of.selection.tiles for of in found]
    assert len(tiles) > 4, "the decisions are to differ"


def test_what_is_sent_is_what_the_model_was_asked_with(
    gate: GateAlone, alone: tuple[Path, ServedModel, Gate]
) -> None:
    box = alone[1].box
    batch = tiny_batch((1, 1, 1, 1, 1))
    found = gate.decide_many(requests(batch, price=0.0))
    for image, of in enumerate(found):
        keep = torch.zeros(len(found), PYRAMID.tiles, dtype=torch.bool)
        keep[image] = torch.tensor(of.selection.tiles) > 0
        kept = {tile: crop for _, tile, crop in crops(PYRAMID, batch, keep)}
        wanted = [kept[tile].permute(1, 2, 0).numpy() for tile in box.order if tile in kept]
        assert [view.tile for view in of.views] == [tile for tile in box.order if tile in kept]
        for picture, crop in zip(of.pictures, wanted, strict=True):
            assert np.abs(np.asarray(picture) - crop).max() <= 0.51
        whole = int(box.realise(PYRAMID.capacity(batch.size), batch.size)[image, 4])
        assert of.saved == whole - of.selection.tokens


def test_pictures_are_cut_once_and_by_who_asks_for_them(
    gate: GateAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[Any] = []

    def counted(*of: Any) -> Any:
        cuts.append(of)
        return cut_views(*of)

    monkeypatch.setattr("pyrskip.inference.alone.cut", counted)
    (found,) = gate.decide_many(requests(tiny_batch((1,)), price=0.0))
    assert not cuts
    assert found.pictures is found.pictures and len(cuts) == 1


def test_a_limit_is_one_of_the_models_own_tokens(gate: GateAlone) -> None:
    image = images(tiny_batch())[0]
    for most in (4, 8, 20, 24, 60):
        assert gate.decide(image, TEXTS[0], max_tokens=most).selection.tokens <= most
    glance = gate.decide(image, TEXTS[0], max_tokens=1).selection
    assert glance.levels == (2,) and glance.tokens == 4


def test_what_a_gate_alone_refuses_is_one_sentence(gate: GateAlone) -> None:
    image = images(tiny_batch())[0]
    for dial, says in (
        ({"price": -1.0}, "out of this gate's range"),
        ({"retention": 0.5}, "is not guaranteed by this export"),
        ({"max_tokens": 0}, "allowed: whole numbers"),
    ):
        with pytest.raises(UserError, match=says):
            gate.decide(image, TEXTS[0], **dial)
    with pytest.raises(UserError, match="does not say where its gate is above fixed selections"):
        gate.decide_many([Request(image, TEXTS[0], safe=True)])
    with pytest.raises(UserError, match="the question is empty"):
        gate.decide(image, " ")
    assert gate.decide(image, TEXTS[0], retention=0.98).selection.price == 0.02


def test_a_long_question_is_cut_and_says_so(gate: GateAlone) -> None:
    decided = gate.decide(images(tiny_batch())[0], "how " * 600)
    assert decided.selection.cut == 600 - gate.spec.query_words


@pytest.mark.parametrize(("square", "kind"), [(7, "pixels"), (64, "fixed")])
def test_the_rule_of_tokens_is_the_models_for_every_size(square: int, kind: str, tmp_path: Path) -> None:
    box = tiny_served(tmp_path, side=square)[0].box
    outside, _ = outside_of(box, "tiny", tiny_batch(), print)
    size = torch.randint(1, PYRAMID.size + 1, (3000, 2), generator=torch.Generator().manual_seed(1))
    wanted = box.realise(PYRAMID.capacity(size), size)
    assert outside.tokens.kind == kind
    assert (outside.tokens(PYRAMID.pixels(size).numpy()) == wanted.numpy()).all()
    batch = tiny_batch()
    assert [outside.prompt(t, None) for t in batch.texts] == box.prompt_tokens(batch).tolist()


def test_a_transformers_models_prompt_is_counted_by_its_tokenizer() -> None:
    from pyrskip.models.vlm.hf import HfVlm

    box, batch, said = HfVlm(llava(), processor(), PYRAMID), tiny_batch(), []
    outside, tokenizer = outside_of(box, "tiny", batch, said.append)
    assert outside.prompt.counted == "tokenizer" and tokenizer is not None and not said
    assert [outside.prompt(text, tokenizer) for text in batch.texts] == box.prompt_tokens(batch).tolist()
    realised = box.realise(PYRAMID.capacity(batch.size), batch.size)
    assert (outside.tokens(PYRAMID.pixels(batch.size).numpy()) == realised.numpy()).all()


def test_what_a_transformers_model_reads_around_pictures_is_paid() -> None:
    from pyrskip.models.vlm.hf import HfVlm

    box = HfVlm(*internvl(), PYRAMID)
    outside, _ = outside_of(box, "tiny", tiny_batch(), print)
    look = box.prompts.look((32, 32))
    assert outside.places == BySize("fixed", more=look.tokens + look.beside) and look.beside > 0
    keep = torch.tensor([[1, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    size, words = torch.tensor([[64, 64], [40, 64]]), torch.tensor([5, 40])
    flops = outside.flops(PYRAMID.pixels(size).numpy(), keep.bool().numpy(), words.numpy())
    wanted = box.cost(box.realise(keep, size), size, words).flops.numpy()
    np.testing.assert_allclose(flops, wanted, rtol=1e-6)


# what stands around a picture follows its rows; cross-attention; limits by area; a lone picture is cut
ODD = [("mistral3", 240), ("mllama", 32), ("qwen2_5_vl", 240)]
CUT = ("llava_onevision", 16)


@pytest.mark.parametrize(
    ("family", "side"), [CUT, *(pytest.param(*of, marks=pytest.mark.slow) for of in ODD)]
)
def test_tokens_places_and_flops_of_every_size_are_the_models_own(family: str, side: int) -> None:
    """At 240 px the tiny Qwen's limit of 64 tokens shrinks pictures."""
    from pyrskip.models.vlm.hf import HfVlm

    pyramid = Pyramid(side, 2, 8)
    model, own = TINY[family]()
    if family == "mistral3":
        own.image_processor.size = {"longest_edge": 1540}  # as published
    box, batch, said = HfVlm(model, own, pyramid), tiny_batch(), []
    outside, _ = outside_of(box, "tiny", batch, said.append)
    assert bool(said) == (family == CUT[0]), "not every size is looked at"
    generator = torch.Generator().manual_seed(3)
    size = torch.randint(1, side + 1, (600, 2), generator=generator)
    size[:150, 0] = torch.randint(1, 30, (150,), generator=generator)
    keep = torch.rand(600, 2, generator=generator) < 0.7
    pixels, realised = pyramid.pixels(size), box.realise(keep.long(), size)
    assert (outside.visual(pixels.numpy(), keep.numpy()) == realised.numpy()).all()
    for lone, of in {False: outside, True: outside.lone or outside}.items():
        looks = [box.prompts.look((rows, columns), lone) for rows, columns in pixels[:, 0].tolist()]
        assert of.places(pixels[:, 0].numpy()).tolist() == [box.prompts.place(look) for look in looks]
    words = torch.randint(1, 60, (600,), generator=generator)
    flops = outside.flops(pixels.numpy(), keep.numpy(), words.numpy())
    np.testing.assert_allclose(flops, box.cost(realised, size, words).flops.numpy(), rtol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["utility", "bernoulli"])
def test_a_gate_alone_knows_what_the_glance_costs_where_a_lone_picture_is_cut(
    policy: str, test_split: ShardDataset, tmp_path: Path
) -> None:
    from pyrskip.models.vlm.hf import HfVlm

    box = HfVlm(*TINY["llava_onevision"](), PYRAMID)
    model, own = tiny_served(tmp_path, policy, box=box)
    outside = alone_export(tmp_path / "bundle", model, own)
    deciders = {backend: loaded(tmp_path / "bundle", backend).decider for backend in ("torch", "onnx")}
    for result in check_alone(model, own, deciders, test_split, UNIT, PRICES):
        assert result.holds and result.decisions == 2 * len(PRICES) * result.questions > 0
        assert result.flops < 1e-9
    batch, gate = tiny_batch(), loaded(tmp_path / "bundle", "onnx")
    size, kept = batch.size[batch.image_of], []
    for price in PRICES:
        for row, of in enumerate(gate.decide_many(requests(batch, price=price))):
            asked = torch.tensor([of.selection.tiles])
            assert box.realise(asked, size[[row]]).equal(asked)
            whole = box.realise(box.reference[None].long(), size[[row]])
            assert of.saved == int(whole.sum() - asked.sum())
            kept.append(int((asked > 0).sum()))
            assert len(of.pictures) == kept[-1]
    assert 1 in kept and max(kept) > 1, "the glance is to be lone here and there"
    assert outside.lone is not None and outside.lone.tokens != outside.tokens


def test_a_limit_counts_the_glance_as_it_is_where_it_is_lone() -> None:
    """Alone it has 9 tokens, and 4 beside a level of 4: within 8, to send both is all that there is."""
    module = toy_module("exact", "categorical", RewardConfig(0.3))
    seen = module.environment.observe(torch.tensor([1]), torch.tensor([0.3]))
    listed = module.environment.layout.actions.tokens(seen.capacity, BudgetRule())
    seen = replace(seen, candidates=Candidates(listed))
    outputs = torch.tensor([[9.0, 1.0, 0.0, -1.0]])  # the glance, level 1, level 0, both
    tokens, lone = torch.tensor([[16, 4, 4]]), torch.tensor([9])
    for limit, alike, cut in ((100, [0], [0]), (9, [0], [0]), (8, [0], [1]), (7, [0], [0])):
        for of, wanted in ((None, alike), (lone, cut)):
            mode = counting(module.gate, seen, outputs, tokens, of).mode(limit)
            assert mode.action is not None and mode.action.tolist() == wanted, (limit, of)


def capped(size: np.ndarray) -> np.ndarray:
    """Tokens of 8 px, between 4 and 40, as processors with limits give them."""
    return (np.round(size / 8).clip(min=1).prod(-1)).clip(4, 40).astype(float)


@pytest.mark.parametrize(
    ("measure", "kind", "most"),
    [
        (lambda size: np.full(len(size), 729.0), "fixed", 1),
        (lambda size: 3 * (-(-size // 14)).prod(-1) + 2.0, "pixels", 1),
        (capped, "table", 2000),
        (lambda size: np.where(size[..., 0] > size[..., 1], 100.0, 50.0), "table", 400),
    ],
)
def test_what_a_picture_gives_is_found_by_measuring(measure: Any, kind: str, most: int) -> None:
    side = 60
    rule = by_size(measure, side)
    size = every_size(side)
    assert rule.kind == kind and (rule(size) == measure(size.reshape(-1, 2)).reshape(side, side)).all()
    again = BySize.parse(json.loads(json.dumps(asdict(rule))))
    assert (again(size) == rule(size)).all()
    assert sum(map(len, rule.runs)) <= most


def test_kinds_that_are_wrong_are_not_believed_and_right_ones_save_measuring() -> None:
    side, sizes = 60, 0

    def counted(size: np.ndarray) -> np.ndarray:
        nonlocal sizes
        sizes += len(size)
        return capped(size)

    right = capped(every_size(side)).astype(int)
    by_size(counted, side, 100, [lambda: right])
    few, sizes = sizes, 0
    rule = by_size(counted, side, 100, [lambda: np.zeros((side, side), dtype=int)])
    assert few < 1000 < side**2 < sizes and (rule(every_size(side)) == right).all()


def test_a_size_that_the_model_does_not_take_is_refused() -> None:
    def measure(size: np.ndarray) -> np.ndarray:
        if (size.max(-1) > 5 * size.min(-1)).any():
            raise ValueError("too far from square")
        return size.prod(-1).astype(float)

    rule = by_size(measure, 16)
    assert rule(np.array([[3, 15], [0, 0]])).tolist() == [45, 0]
    for wrong in ([1, 6], [17, 17]):
        with pytest.raises(UserError, match=f"takes no picture of {wrong[1]} x {wrong[0]} pixels"):
            rule(np.array([[4, 4], wrong]))


def test_a_server_is_asked_about_some_sizes_alone() -> None:
    with serve(lambda text, pictures: "red") as server:
        outside, _ = outside_of(tiny_box(server.url), "tiny", tiny_batch(), print)
        assert outside.tokens == BySize("pixels", each=1, side=8)
        assert [outside.prompt(text, None) for text in TEXTS] == [
            TEMPLATE - -len(f"{text}\nBe brief.".encode()) // 4 for text in TEXTS
        ]
        server.count = lambda text, pictures: 9 + sum(int(capped(shape(p))) for p in pictures)
        with pytest.raises(UserError, match=r"model\.remote\.processor='': .* about 1024 sizes"):
            outside_of(tiny_box(server.url), "tiny", tiny_batch(), print)
        assert len(server.probes) < 500


def shape(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).size[::-1])


def test_the_rule_that_counts_the_most_prompts_is_taken() -> None:
    texts = ["a", "what is it?", "how many are there?", "é"]
    counted = [20 - -(len(t.encode()) + 3) // 4 for t in texts]
    prompt, tokenizer, right = prompt_of(counted, texts, None)
    assert (prompt, tokenizer, right) == (Prompt("bytes", 20, 3), None, 4)
    assert prompt_of([*counted[:3], 99], texts, None)[2] == 3


def test_a_model_whose_cost_is_of_another_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, cost = tiny_served(tmp_path)[0].box, RemoteModel.cost

    def dearer(self: RemoteModel, realised: Any, size: Any, words: Any) -> Any:
        of = cost(self, realised, size, words)
        return replace(of, flops=of.flops * (1 + (realised > 0).sum(-1)))

    monkeypatch.setattr(RemoteModel, "cost", dearer)
    with pytest.raises(UserError, match="do not follow from the sizes of its pictures"):
        outside_of(box, "tiny", tiny_batch(), print)


def test_a_bundle_says_what_it_is_and_holds_no_model(alone: tuple[Path, ServedModel, Gate]) -> None:
    directory = alone[0]
    plain = json.loads((directory / "config.json").read_text())
    assert plain["kind"] == "gate" and "language" not in plain
    assert sorted(p.name for p in directory.iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
        "onnx",
        "query",
    ]
    assert read_bundle(directory).graphs == ("signal-query", *DECIDES)
    assert not re.search(r"_target_|pyrskip\.|torch\.|\.py\b|localhost", json.dumps(plain))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "half"}, "kind='half' is none of whole, gate"),
        ({"outside": None}, r"config\.json cannot be read"),
        ({"query": {"name": "embedding", "max_words": 9}}, "query.name='embedding'"),
        ({"kind": "whole"}, r"config\.json cannot be read"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(change: dict[str, Any], says: str, copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(plain | change))
    write_checksums(copied)
    with pytest.raises(UserError, match=says):
        pyrskip.load(copied)


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "luck"},
        {"kind": "pixels", "side": 0},
        {"kind": "table", "columns": 4, "of_rows": [0, 1], "runs": [[[1, 5]]]},
        {"kind": "table", "columns": 4, "of_rows": [0], "runs": [[[2, 5]]]},
        {"kind": "fixed", "colour": 1},
    ],
)
def test_a_rule_that_is_none_is_refused(rule: dict[str, Any], copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    plain["outside"]["tokens"] = rule
    (copied / "config.json").write_text(json.dumps(plain))
    write_checksums(copied)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        pyrskip.load(copied)


PROGRAM = """
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {banned}:
            raise ImportError(name + " is banned")
sys.meta_path.insert(0, Ban())
import pyrskip
from PIL import Image
gate = pyrskip.load({directory!r}, "onnx")
print(gate.decide(Image.new("RGB", (30, 20)), "how many?").selection.tokens)
import pyrskip.cli, pyrskip.serving.gateway
"""


@pytest.mark.slow
def test_a_gate_alone_runs_without_torch(tmp_path: Path) -> None:
    alone_export(tmp_path / "bundle", *tiny_served(tmp_path))
    banned = (*BANNED, "torch", "timm", "torchvision", "transformers", "safetensors")
    program = PROGRAM.format(banned=banned, directory=str(tmp_path / "bundle"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    wanted = loaded(tmp_path / "bundle").decide(Image.new("RGB", (30, 20)), "how many?")
    assert int(done.stdout) == wanted.selection.tokens


def test_requests_of_many_kinds_are_decided_together(gate: GateAlone) -> None:
    image = images(tiny_batch())[1]
    asked = [
        Request(image, TEXTS[0], price=0.0),
        Request(image, TEXTS[1], max_tokens=4),
        Request(image, TEXTS[2]),
    ]
    together = gate.decide_many(asked)
    assert [of.selection.tiles for of in together] == [
        gate.decide_many([r])[0].selection.tiles for r in asked
    ]
    assert gate.decide_many([]) == []


class Counting:
    """A backend that notes of each graph how many rows it was given, and fails where it is told to."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.rows, self.broken = backend, defaultdict[str, list[int]](list), False

    def run(self, graph: str, inputs: Inputs) -> Arrays:
        if self.broken:
            raise MemoryError
        self.rows[graph].append(len(next(of for of in inputs.values() if not isinstance(of, Mapping))))
        return self.backend.run(graph, inputs)


@pytest.fixture
def counted(copied: Path) -> tuple[GateAlone, Counting]:
    gate = loaded(copied)
    gate.decider.backend = backend = Counting(gate.decider.backend)
    return gate, backend


def test_a_question_that_is_asked_again_is_not_read_again(
    counted: tuple[GateAlone, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, backend = counted
    [graph] = (of.graph for of in gate.spec.signals.values() if of.source == "question")
    assert graph is not None
    pictures = images(tiny_batch())
    wanted = [gate.decide(image, "what colour?").selection.tiles for image in pictures]
    together = gate.decide_many([Request(image, "what colour?") for image in pictures])
    assert [of.selection.tiles for of in together] == wanted
    assert backend.rows[graph] == [1]
    several = [Request(image, text) for image in pictures for text in ("a shape ?", "is it red ?")]
    gate.decide_many(several)
    assert backend.rows[graph] == [1, 2]
    monkeypatch.setattr(decider, "REMEMBERED", 1)
    for text in ("a shape ?", "what colour?"):
        gate.decide(pictures[0], text)
    assert backend.rows[graph] == [1, 2, 1, 1] and len(gate.decider.read) == 1, "the oldest is forgotten"


def test_a_question_that_is_read_ahead_is_read_once(counted: tuple[GateAlone, Counting]) -> None:
    gate, backend = counted
    backend.broken = True
    with pytest.raises(MemoryError):
        gate.decider.read_ahead("what colour?")
    backend.broken = False
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(gate.decider.read_ahead, ["what colour?"] * 8))
    gate.decide(images(tiny_batch())[0], "what colour?")
    assert [len(of) for name, of in backend.rows.items() if name.startswith("signal")] == [1]
