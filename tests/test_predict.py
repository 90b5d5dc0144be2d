"""Claims about `pyrskip predict`: a line in, a line out, whatever the line; and what was answered is not
answered again."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pyrskip
from pyrskip.cli import main
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from tests.models import TEXTS


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Seven lines on three images, two of them bad."""
    for name in "abc":
        Image.effect_noise((30, 20), 80).convert("RGB").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines: list[Any] = [{"image": f"{name}.png", "question": text} for name in "abc" for text in TEXTS[:2]]
    lines[1] |= {"id": "second", "price": 0.0, "note": "kept"}
    lines[2] |= {"max_tokens": 5}
    lines.insert(3, {"image": "broken.png", "question": TEXTS[0]})
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{not json\n")
    return path


def predict(export: Path, *keys: str) -> int:
    try:
        main(["predict", f"model={export}", *keys])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_line_has_its_answer_or_its_error(
    batch: int, asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(exported[0], f"input={asked}", f"out={out}", "price=0.2", f"batch={batch}") == 1
    told = lines(out)
    assert [line["id"] for line in told] == ["1", "second", "3", "4", "5", "6", "7", "8"]
    assert ["error" in line for line in told] == [False, False, False, True, False, False, False, True]
    assert "cannot be read" in told[3]["error"]
    assert "no JSON" in told[7]["error"]
    assert told[1]["note"] == "kept"
    assert told[1]["price"] == 0.0
    assert told[2]["tokens"] <= 5
    engine = pyrskip.load(exported[0], "onnx")
    wanted = engine.answer(asked.parent / "a.png", TEXTS[0], price=0.2)
    assert told[0]["answer"] == wanted.text
    assert told[0]["tiles"] == list(wanted.selection.tiles)


def test_an_interrupted_run_goes_on_behind_the_last_whole_line(
    asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    predict(exported[0], f"input={asked}", f"out={out}")
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"id": "4", "ans')
    capsys.readouterr()
    predict(exported[0], f"input={asked}", f"out={out}")
    assert out.read_text() == whole
    assert "3 answered, 2 failed, 3 were there before" in capsys.readouterr().err
    predict(exported[0], f"input={asked}", f"out={out}")
    assert out.read_text() == whole


def test_a_file_made_otherwise_is_not_continued(
    asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    predict(exported[0], f"input={asked}", f"out={out}")
    assert predict(exported[0], f"input={asked}", f"out={out}", "price=0.9") == 2
    assert "another export, price or max_tokens" in capsys.readouterr().err
    assert predict(exported[0], f"input={asked}", f"out={asked}") == 2
    assert "no file of predict's" in capsys.readouterr().err


def test_a_folder_and_a_pipe_are_answered(
    asked: Path,
    exported: tuple[Path, NativeModel, Gate],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert predict(exported[0], f"input={asked.parent}", f"question={TEXTS[0]}") == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["image"]).name for line in told] == ["a.png", "b.png", "broken.png", "c.png"]
    piped = json.dumps({"image": str(asked.parent / "a.png"), "question": TEXTS[0]}) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert predict(exported[0], "input=-") == 0
    assert json.loads(capsys.readouterr().out)["answer"] == told[0]["answer"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("input=nowhere.jsonl",), "nowhere.jsonl does not exist"),
        (("input={image}",), "question= is missing"),
        (("input={asked}", "question=why?"), "question= is for an image"),
        (("input={asked}", "price=-2"), "price=-2.0 is out of"),
        (("input={asked}", "price=cheap"), "price=cheap: allowed: a number"),
        (("input={asked}", "batch=0"), "batch=0"),
        (("input={asked}", "colour=red"), "colour= is unknown; allowed: model, input"),
        (("input={asked}", "backend=tpu"), "allowed: onnx, torch"),
        ((), "input= is missing"),
        (("input",), "'input' is no key=value"),
    ],
)
def test_bad_keys_are_refused_before_any_work(
    keys: tuple[str, ...],
    says: str,
    asked: Path,
    exported: tuple[Path, NativeModel, Gate],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [key.format(asked=asked, image=asked.parent / "a.png") for key in keys]
    assert predict(exported[0], *given) == 2
    said = capsys.readouterr()
    assert re.search(re.escape(says), said.err)
    assert not said.out


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_help_lists_the_keys(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert "model=<directory or hub id>" in capsys.readouterr().out
