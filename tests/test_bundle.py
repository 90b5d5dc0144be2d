"""Claims about an export's files: what is damaged, of another format or out of place is refused in one
sentence."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import pyrskip
from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import GRAPHS, read_bundle, write_checksums
from pyrskip.models.native import NativeModel
from tests.exports import GUARANTEED


@pytest.fixture
def copied(exported: tuple[Path, NativeModel, Gate], tmp_path: Path) -> Path:
    shutil.copytree(exported[0], tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "onnx/signal-query.onnx", "onnx/gate.onnx"]
)
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
        ({"cost": None}, "config.json cannot be read"),
        (
            {"prices": {"low": 0.1, "high": 1, "default": 1, "guaranteed": [asdict(GUARANTEED[1])]}},
            "prices: 0.02, which guarantees 0.98, is out of range",
        ),
        (
            {"prices": {"low": 0.1, "high": 1, "default": 1, "safe": {"gate": [], "fixed": [[0.1, "0"]]}}},
            r"safe selections start at \[0.1\], not at 0",
        ),
        (
            {"prices": {"low": 0.1, "high": 1, "default": 1, "safe": {"gate": [], "fixed": [[0, "7"]]}}},
            "'7' is not in list",
        ),
        ({"signals": {"a": {"source": "luck", "tensors": ["a"], "graph": None}}}, "source='luck' is none of"),
        (
            {"signals": {"a": {"source": "glance", "tensors": ["a"], "graph": "../a"}}},
            r"does not list onnx/\.\./a\.onnx",
        ),
    ],
)
def test_another_or_a_newer_format_is_refused(change: dict[str, Any], says: str, copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(plain | change))
    write_checksums(copied)
    with pytest.raises(UserError, match=says):
        pyrskip.load(copied, "onnx")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    for source, says in (
        (tmp_path, "is no export"),
        (tmp_path / "nowhere", "is no directory"),
        ("a/b/c", "is no directory"),
    ):
        with pytest.raises(UserError, match=says):
            pyrskip.load(source)
    with pytest.raises(UserError, match="allowed: onnx, torch"):
        pyrskip.load(tmp_path, "tensorrt")


def test_costs_that_are_not_said_how_to_count_are_not_counted_anew(copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    del plain["model"]["cost"]["count"]
    (copied / "config.json").write_text(json.dumps(plain))
    write_checksums(copied)
    pyrskip.load(copied, "onnx")
    with pytest.raises(UserError, match=r"model\.cost\.count.*; allowed: backend='onnx'"):
        pyrskip.load(copied, "torch")


def test_weights_that_do_not_fit_are_refused(copied: Path) -> None:
    plain = json.loads((copied / "config.json").read_text())
    plain["gate"]["gate"]["width"] = 16
    (copied / "config.json").write_text(json.dumps(plain))
    write_checksums(copied)
    with pytest.raises(UserError, match="is not what config.json describes"):
        pyrskip.load(copied, "torch")


def test_checksums_cannot_point_out_of_the_export(copied: Path) -> None:
    sums = json.loads((copied / "checksums.json").read_text())
    (copied / "checksums.json").write_text(json.dumps(sums | {"../outside": "0"}))
    with pytest.raises(UserError, match="outside of it"):
        read_bundle(copied)


def test_native_code_is_not_loaded_unless_it_is_allowed(copied: Path) -> None:
    (copied / "native").mkdir()
    for name in ("signal-query", *GRAPHS):
        (copied / "native" / f"{name}.pt2").write_bytes(b"code")
    write_checksums(copied)
    (copied / "native" / "gate.pt2").write_bytes(b"other code")
    pyrskip.load(copied, "torch")
    with pytest.raises(UserError, match=re.escape("native/gate.pt2")):
        pyrskip.load(copied, "torch", allow_native=True)


def test_an_export_names_no_import_path(exported: tuple[Path, NativeModel, Gate]) -> None:
    plain = (exported[0] / "config.json").read_text()
    assert not re.search(r"_target_|pyrskip\.|torch\.|\.py\b", plain)
