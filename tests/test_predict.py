"""Claims about `pyrskip predict`: a line in, a line out, whatever the line; and what was answered is not
answered again."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import pyrskip
from pyrskip.cli import main
from pyrskip.gates.gate import Gate
from pyrskip.inference.lines import read_lines
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


def test_a_retention_is_of_the_lines_that_ask_for_nothing_else(
    asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    with asked.open("a") as file:
        file.write(json.dumps({"image": "a.png", "question": TEXTS[0], "retention": 0.9}) + "\n")
    assert predict(exported[0], f"input={asked}", f"out={out}", "retention=0.98") == 1
    prices = [line["price"] for line in lines(out) if "error" not in line]
    assert prices == [0.02, 0.0, 0.0, 0.02, 0.02, 0.02, 0.2]
    assert predict(exported[0], f"input={asked}", "retention=0.5") == 2
    assert "retention=0.5 is not guaranteed by this export; allowed: 0.9, 0.98" in capsys.readouterr().err


def test_safe_is_of_the_lines_that_set_no_limit_and_ask_for_no_guarantee(
    asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    image = {"image": str(asked.parent / "a.png"), "question": TEXTS[0]}
    own = [{}, {"price": 0.0}, {"max_tokens": 5}, {"retention": 0.98}, {"safe": False}, {"safe": True}]
    (tmp_path / "some").write_text("\n".join(json.dumps(image | of) for of in own))
    out = tmp_path / "out.jsonl"
    assert predict(exported[0], f"input={tmp_path / 'some'}", f"out={out}", "price=0.3", "safe=true") == 0
    told = lines(out)
    assert [line["price"] for line in told] == [0.3, 0.0, 0.3, 0.02, 0.3, 0.3]
    assert [line["confidence"] == 1 for line in told] == [True, True, False, False, False, True]
    assert predict(exported[0], f"input={tmp_path / 'some'}", "retention=0.98") == 0


def test_a_file_made_otherwise_is_not_continued(
    asked: Path, exported: tuple[Path, NativeModel, Gate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    predict(exported[0], f"input={asked}", f"out={out}")
    assert predict(exported[0], f"input={asked}", f"out={out}", "price=0.9") == 2
    assert "another export, price, max_tokens, retention or safe" in capsys.readouterr().err
    for other in (asked.read_text(), "notes", "[]", asked.read_text().splitlines()[0], ""):
        asked.with_name("other").write_text(other)
        assert predict(exported[0], f"input={asked}", f"out={asked.with_name('other')}") == (
            2 if other else 1
        )
        assert "no file of predict's" in capsys.readouterr().err or not other
        assert asked.with_name("other").read_text() == other or not other


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


GOOD = b'{"image": "a.png", "question": "what colour is it?"}'


def answered(
    export: Path, folder: Path, content: bytes, name: str = "q.jsonl"
) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the output lines of a file with this content, beside a picture a.png."""
    Image.new("RGB", (20, 30), (200, 30, 30)).save(folder / "a.png")
    (folder / name).write_bytes(content)
    code = predict(export, f"input={folder / name}", f"out={folder / 'o.jsonl'}", "backend=onnx", "batch=2")
    return code, lines(folder / "o.jsonl") if (folder / "o.jsonl").exists() else []


BAD = {
    "a byte that is no UTF-8": (b'{"image": "a.png", "question": "caf\xe9?"}', "no UTF-8"),
    "half of a character": (b'{"image": "a.png", "question": "\\ud83d?"}', "half of a character"),
    "half of one in an image": (b'{"image": "\\udc80.png", "question": "why?"}', "half of a character"),
    "an id that is half of one": (b'{"id": "\\ud83d", "image": "a.png", "question": "why?"}', "half of a"),
    "deep nesting": (b"[" * 100_000, "nested too deeply"),
    "nested deeply in a field": (
        b'{"image": "a.png", "question": "why?", "x": ' + b"[" * 990 + b"]" * 990 + b"}",
        "nested too deeply",
    ),
    "no JSON": (b"why?", "no JSON"),
    "an array": (b'["a.png", "why?"]', 'no {"image": path'),
    "half of a line": (GOOD[:-9], "no JSON"),
    "a zero byte": (b"\0", "no JSON"),
    "a zero byte in a path": (b'{"image": "a\\u0000.png", "question": "why?"}', "cannot be read"),
    "a number of many digits": (GOOD[:-1] + b', "price": ' + b"9" * 5000 + b"}", "no JSON"),
    "a number beyond any float": (GOOD[:-1] + b', "price": ' + b"9" * 400 + b"}", "finite number"),
    "an infinite number": (GOOD[:-1] + b', "x": 1e999}', "no JSON"),
    "no object": (b"7", 'no {"image": path'),
    "null": (b"null", 'no {"image": path'),
    "no question": (b'{"image": "a.png", "question": null}', 'no {"image": path'),
    "several pictures": (b'{"image": ["a.png"], "question": "why?"}', 'no {"image": path'),
    "an empty question": (b'{"image": "a.png", "question": " "}', "empty"),
    "a folder as a picture": (b'{"image": "", "question": "why?"}', "cannot be read"),
    "a price as text": (GOOD[:-1] + b', "price": "low"}', "finite number"),
}


@pytest.fixture(scope="module")
def bad_told(
    exported: tuple[Path, NativeModel, Gate], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What is told of a good line, and then of every bad one and another good one."""
    content = b"\n".join([GOOD, *(line + b"\n" + GOOD for line, _ in BAD.values())])
    code, told = answered(exported[0], tmp_path_factory.mktemp("bad"), content)
    assert code == 1
    return told


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_has_its_error_and_costs_no_other(kind: str, bad_told: list[dict[str, Any]]) -> None:
    assert [of["id"] for of in bad_told] == [str(number) for number in range(1, 2 * len(BAD) + 2)]
    place = 2 * list(BAD).index(kind) + 1
    assert ["answer" in of for of in bad_told[place - 1 : place + 2]] == [True, False, True]
    assert BAD[kind][1] in bad_told[place]["error"]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"\xef\xbb\xbf" + GOOD + b"\n\n" + b"\xef\xbb\xbf" + GOOD + b"\n", ["1", "3"]),
        ((GOOD + b"\n" + GOOD).decode().encode("utf-16"), ["1", "2"]),
        ((GOOD + b"\n" + GOOD).decode().encode("utf-16-be"), ["1", "2"]),
        ((GOOD + b"\n" + GOOD).decode().encode("utf-32"), ["1", "2"]),
        (
            GOOD.replace(b"}", b', "id": "x"}\n') * 2 + GOOD.replace(b"}", b', "id": null}\n') * 2,
            ["x", "x", "3", "4"],
        ),
        (GOOD.replace(b"}", b', "price": NaN, "max_tokens": null, "answer": "red", "error": "old"}'), ["1"]),
        (b" [" + GOOD + b",\n" + GOOD + b"]\n", ["1", "2"]),
        (b"{\n" + GOOD[1:], ["1"]),
        (GOOD + b"\r\n" + GOOD + b"\r\n \t\n", ["1", "2"]),
        (b"", []),
    ],
    ids=[
        "byte order marks",
        "utf-16",
        "utf-16-be",
        "utf-32",
        "ids",
        "nan and null",
        "an array",
        "an object",
        "line ends",
        "nothing",
    ],
)
def test_every_line_is_answered_however_it_is_written(
    content: bytes, ids: list[str], exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    code, told = answered(exported[0], tmp_path, content)
    assert code == 0
    assert [of["id"] for of in told] == ids
    assert all("answer" in of and "error" not in of for of in told)
    before = (tmp_path / "o.jsonl").read_bytes()
    assert answered(exported[0], tmp_path, content)[0] == 0
    assert (tmp_path / "o.jsonl").read_bytes() == before


@given(line=st.binary(max_size=40))
@example(line=b"GIF89a")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_a_line_has_the_others_are_read(line: bytes, tmp_path: Path) -> None:
    line = line.translate(None, b"\r\n")
    for number in range(3):
        given = [GOOD] * 3
        given[number] = line
        (tmp_path / "q.jsonl").write_bytes(b"\n".join(given))
        told = list(read_lines(str(tmp_path / "q.jsonl"), None, {"price": None, "max_tokens": None}))
        assert {"1", "2", "3"} - {str(number + 1)} <= {of.id for of in told if not of.error}


def test_a_damaged_array_of_lines_is_read_line_by_line(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    code, told = answered(exported[0], tmp_path, b"[\n" + GOOD + b",\n" + GOOD[:-9] + b",\n" + GOOD + b",\n{")
    assert code == 1
    assert [(of["id"], "answer" in of) for of in told] == [
        ("2", True),
        ("3", False),
        ("4", True),
        ("5", False),
    ]


def test_failed_lines_are_tried_again_and_stand_where_they_stood(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    late = GOOD.replace(b"a.png", b"late.png")
    content = b"\n".join([GOOD, late, late, GOOD])
    code, told = answered(exported[0], tmp_path, content)
    assert code == 1 and [("error" in of) for of in told] == [False, True, True, False]
    assert answered(exported[0], tmp_path, content) == (1, told)
    # a last line without its end is whole, if it is
    (tmp_path / "o.jsonl").write_bytes((tmp_path / "o.jsonl").read_bytes()[:-1])
    assert answered(exported[0], tmp_path, content) == (1, told)
    (tmp_path / "late.png").write_bytes((tmp_path / "a.png").read_bytes())
    code, told = answered(exported[0], tmp_path, content)
    assert code == 0 and [of["image"] for of in told] == ["a.png", "late.png", "late.png", "a.png"]
    assert all("answer" in of for of in told)


@pytest.mark.parametrize("name", ["q.JSONL", "q.ndjson", "q.json", "q.txt", "q", "q.png", "q.jsonl.bak"])
def test_lines_are_known_by_their_content(
    name: str, exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    code, told = answered(exported[0], tmp_path, b"why?\n" + GOOD + b"\n", name)
    assert code == 1 and [("answer" in of) for of in told] == [False, True]


def test_pictures_are_known_by_their_content_and_what_is_left_out_is_named(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "f"
    (folder / "sub.png").mkdir(parents=True)
    picture = Image.new("RGB", (20, 30))
    for name, kind in (("a.jfif", "JPEG"), ("b.PNG", "PNG"), ("c.ico", "ICO"), ("sub.png/d", "WEBP")):
        picture.save(folder / name, kind)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("hello")
    (folder / "._b.png").write_bytes(b"finder")
    assert predict(exported[0], f"input={folder}", "question=why?") == 1
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    assert [Path(of["image"]).name for of in told if "answer" in of] == ["a.jfif", "b.PNG", "d"]
    assert [Path(of["image"]).name for of in told if "error" in of] == ["broken.png"]
    assert all(name in said.err.splitlines()[0] for name in ("c.ico", "notes.txt", "._b.png"))
    assert predict(exported[0], f"input={folder / 'a.jfif'}", "question=why?") == 0
    assert predict(exported[0], f"input={folder / 'c.ico'}") == 2
    assert "no JSON line and is no image" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "missing/o.jsonl"])
def test_a_place_that_takes_no_answers_is_named(
    out: str, asked: Path, exported: tuple[Path, NativeModel, Gate], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(exported[0], f"input={asked}", f"out={asked.parent / out}/") == 2
    assert "cannot be written" in capsys.readouterr().err
