"""Claims about exports of every gate: whatever it reads and however it decides, its export does the same."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrskip
from pyrskip.budget import BudgetRule
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.export.export import _check_gate
from pyrskip.export.parity import check
from pyrskip.export.write import write_parts
from pyrskip.gates.gate import GATES, Gate
from pyrskip.gates.predictor import PredictorGate
from pyrskip.inference import Engine
from pyrskip.models.language import END, LANGUAGES
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import GatedModel
from pyrskip.observation import Layout, Observation
from pyrskip.policies import POLICIES
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import Deciding, PolicyConfig
from pyrskip.signals import SIGNALS, Signal
from tests.exports import GATE_FLOPS, PYRAMID, UNIT, described, expected, requests, tiny_gate, with_gate
from tests.models import tiny_batch, tiny_model

SHARED = BudgetRule(total=40, floor=2)
RUNGS = BudgetRule(rungs=(0, 64, 256))
SLOW = [pytest.mark.slow]
DIALS = ((0.3, None), (0.02, None), (0.3, 20), (0.02, 3))


class Brightness(Signal):
    """brightness [B, 3]: the mean of each colour over the glance's own pixels."""

    per, source = "image", "pixels"
    shapes = {"brightness": (3,)}  # noqa: RUF012

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        pixels, mask = source
        return ((pixels * mask[:, None]).sum((2, 3)) / mask.sum((1, 2))[:, None],)


class Letters(Signal):
    """letters [B, W, 1]: a number for each word, and which are words."""

    per, source = "text", "question"
    shapes = {"letters": (None, 1), "letters_mask": (None,)}  # noqa: RUF012

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.numbers = torch.nn.Embedding(320, 1)
        torch.nn.init.constant_(self.numbers.weight, 0.5)

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        ids, mask = source
        return self.numbers(ids) * ids[..., None].sin(), mask


class LettersGate(PredictorGate):
    """Reads letters beside the question."""

    needs = ("query", "letters")

    def inputs(self) -> int:
        return super().inputs() + 1

    def look(self, seen: Observation) -> Tensor:
        return torch.cat(
            [super().look(seen), (seen["letters"] * seen["letters_mask"][..., None]).sum(1)], dim=-1
        )


class CautiousPolicy(CategoricalPolicy):
    """An output for each tile, added up over what an action keeps."""

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.ones(layout.tiles)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> CategoricalPolicy:
        return super().of(outputs @ gate.layout.actions.selection.to(outputs).T, seen, gate)


@pytest.fixture(scope="module", autouse=True)
def toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SIGNALS, "_entries", {**SIGNALS, "brightness": Brightness, "letters": Letters})
        patch.setattr(GATES, "_entries", {**GATES, "letters": LettersGate})
        patch.setattr(POLICIES, "_entries", {**POLICIES, "cautious": CautiousPolicy})
        yield


@pytest.fixture(scope="module")
def test_split(tiny_data: Path) -> ShardDataset:
    return ShardDataset(tiny_data, "test", 64)


@pytest.fixture(scope="module")
def exports(
    exported: tuple[Path, NativeModel, Gate], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, NativeModel]]:
    """Of each language an export, and the model that it holds."""
    directory = tmp_path_factory.mktemp("cross")
    model = tiny_model(grid=PYRAMID.grid, language="cross")
    model.language.embed.weight.data[: END + 1] = 0  # special tokens never win, so that answers are long
    gate = gate_of(model, "utility")
    write_parts(model, gate, described(model, gate), directory)
    return {"decoder": exported[:2], "cross": (directory, model)}


def gate_of(model: NativeModel, policy: str) -> Gate:
    """On single tiles, with a budget of its own or of all rungs."""
    shared = POLICIES[policy].per_tile
    gate = tiny_gate(model, policy=policy, budget=SHARED if shared else RUNGS, unit="tile")
    gate.tilt.fill_(0.1)
    return gate


def engines(directory: Path, *backends: str) -> dict[str, Engine]:
    return {backend: pyrskip.load(directory, backend) for backend in backends}


def compare(model: NativeModel, gate: Gate, engines: dict[str, Engine], split: ShardDataset) -> None:
    """On a whole split, and on a batch of many sizes at several prices and limits, together and alone."""
    for result in check(model, gate, engines, split, UNIT, [0.02, 0.3], 0.3):
        assert result.holds and result.decisions == 4 * result.questions > 0
    batch, realised = tiny_batch(), set()
    size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
    for price, most in DIALS:
        asked, texts = expected(model, gate, batch, price, most)
        tiles = model.realise(asked, size)
        realised |= {tuple(row) for row in tiles.tolist()}
        flops = model.cost(tiles, size, words).flops + GATE_FLOPS
        for engine in engines.values():
            answers = engine.answer_many(requests(batch, price=price, max_tokens=most))
            assert [list(a.selection.tiles) for a in answers] == tiles.tolist()
            assert [a.text for a in answers] == texts
            assert [a.selection.flops for a in answers] == flops.tolist()
            assert all(0 <= a.selection.confidence <= 1 for a in answers)
    for engine in engines.values():
        alone = [engine.answer_many([one])[0] for one in requests(batch, price=price, max_tokens=most)]
        assert [a.text for a in alone] == texts
        assert [list(a.selection.tiles) for a in alone] == tiles.tolist()
    assert len(realised) > 4, "the decisions are to differ"


def policies() -> list[Any]:
    """Each in torch for both languages; and in onnxruntime, whose graphs take seconds to trace, for one of
    them, as slow tests but for two. A gate's graph does not know the language."""
    fast = (("utility", "cross"), ("categorical", "decoder"))
    some = []
    for policy, language in product(POLICIES, LANGUAGES):
        if (policy, language) in fast:
            some.append(pytest.param(policy, language, ("torch", "onnx")))
            continue
        some.append(pytest.param(policy, language, ("torch",)))
        if language == "decoder":
            some.append(pytest.param(policy, language, ("torch", "onnx"), marks=SLOW))
    return some


@pytest.mark.parametrize(("policy", "language", "backends"), policies())
def test_every_policy_decides_and_answers_as_in_training(
    policy: str,
    language: str,
    backends: Sequence[str],
    exports: dict[str, tuple[Path, NativeModel]],
    test_split: ShardDataset,
    tmp_path: Path,
) -> None:
    directory, model = exports[language]
    gate = gate_of(model, policy)
    if (policy, language) != ("utility", "cross"):
        directory = with_gate(tmp_path, model, gate, directory, traced="onnx" in backends)
    compare(model, gate, engines(directory, *backends), test_split)


@pytest.mark.parametrize(
    ("name", "policy", "signals"),
    [
        pytest.param("predictor", "utility", (), marks=SLOW),
        pytest.param("glance", "categorical", ("answer_stats",), marks=SLOW),
        pytest.param("region", "evidence", ("answer_stats",), marks=SLOW),
        pytest.param("relevance", "evidence", (), marks=SLOW),
        pytest.param("joint", "utility", ("side",), marks=SLOW),
        pytest.param("letters", "cautious", ("brightness", "answer_stats"), marks=SLOW),
    ],
)
def test_what_a_gate_reads_is_computed_as_in_training(
    name: str,
    policy: str,
    signals: Sequence[str],
    exports: dict[str, tuple[Path, NativeModel]],
    test_split: ShardDataset,
    tmp_path: Path,
) -> None:
    base, model = exports["decoder"]
    gate = tiny_gate(model, name, policy, signals=signals, unit="tile")
    _check_gate(gate)
    loaded = engines(with_gate(tmp_path, model, gate, base), "torch", "onnx")
    compare(model, gate, loaded, test_split)
    assert list(loaded["onnx"].spec.signals) == [*GATES[name].needs, *signals]


def test_a_signal_of_a_source_that_exports_do_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tiny_gate(tiny_model(), "predictor", signals=("brightness",))
    monkeypatch.setattr(Brightness, "source", "sound")
    with pytest.raises(UserError, match="'brightness' is computed from sound, which an export does not have"):
        _check_gate(gate)
