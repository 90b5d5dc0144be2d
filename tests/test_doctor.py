"""Claims about `pyrskip doctor`: what is missing is named with what needs it, and what does not work is
found."""

import tomllib

import pytest

from pyrskip import doctor, selftest
from pyrskip.cli import main
from tests.configs import REPOSITORY
from tests.test_cli import refused


def test_every_extra_is_said_to_be_for_something() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert doctor.USES.keys() == project["optional-dependencies"].keys()


def test_what_is_missing_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version
    versions = {"onnxruntime": "", "uvicorn": "0.1"}
    monkeypatch.setattr(doctor, "_version", lambda package: versions.get(package, there(package)))
    found = {extra.name: extra for extra in doctor.extras()}
    assert found["onnx"].lacks == ("onnxruntime",)
    assert "onnxruntime" in found["export"].lacks  # which includes it
    assert "uvicorn <1,>=0.30 (there is 0.1)" in found["serve"].lacks
    assert str(found["onnx"]) == (
        "  onnx         missing: onnxruntime; needed for exports without torch: predict, "
        "pyrskip.load(backend='onnx')"
    )
    assert "onnxruntime" not in found["torch"].lacks


def test_a_part_that_does_not_work_is_found_and_the_others_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(selftest, "decided", broken)
    with pytest.raises(SystemExit) as exit_:
        main(["doctor"])
    assert exit_.value.code == 1
    said = capsys.readouterr().out
    assert "  WRONG  a gate decides, and the model answers" in said
    assert "RuntimeError: no kernel for this device" in said
    assert said.count("  ok     ") == 3


def test_doctor_takes_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'now' is nothing that pyrskip doctor takes" in refused(capsys, "doctor", "now")
