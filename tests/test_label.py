"""Questions that nobody has answered, answered by a server: what is asked, and what becomes of it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pyrskip.cli import main
from pyrskip.data.convert import Found
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.convert.llava import Llava
from pyrskip.data.label import label
from pyrskip.errors import UserError
from pyrskip.models.vlm.remote_config import RemoteConfig
from tests.server import Server, content, serve

SHADES = (10, 60, 120)


def reads_shade(text: str, pictures: list[bytes]) -> str | int:
    """The shade of the picture's upper left corner; it refuses the darkest and has nothing to say of one."""
    pixel = Image.open(io.BytesIO(pictures[0])).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return {10: 400, 60: ""}.get(int(pixel[0]), f"{pixel[0]} for {text}")


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(reads_shade) as running:
        yield running


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Eight lines: two questions on one image, one on each other, and four that cannot be asked."""
    (tmp_path / "images").mkdir()
    for shade in (*SHADES, 200):
        Image.new("RGB", (300, 200), (shade, 0, 0)).save(tmp_path / "images" / f"{shade}.png")
    rows: list[object] = [{"image": f"{shade}.png", "question": "how red?"} for shade in (*SHADES, 200)]
    rows.insert(1, {"image": "200.png", "question": "why?", "type": "reason"})
    rows += [{"image": "gone.png", "question": "how red?"}, {"image": "200.png", "question": " "}, [1]]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"image": "10')
    return path


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)


def test_the_models_own_answers_are_data_like_any_other(
    server: Server, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lines.parent / "labelled.json"
    images = lines.parent / "images"
    keys = [f"images={images}", f"out={out}", f"url={server.url}", "model=tiny"]
    main(["data", "label", str(lines), *keys, "instruction=One word.", "max_answer=4", "parallel=2"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: 3 questions, answered by tiny"
    assert [line.split(": ")[2] for line in said[1:]] == [f"line {i}" for i in (6, 7, 8, 9, 1, 3)]
    assert {request["max_tokens"] for request in server.requests} == {4}
    sizes = {Image.open(io.BytesIO(content(request)[1][0])).size for request in server.requests}
    assert sizes == {(300, 200)}
    form = Llava(FilesConfig(path=str(out), images=str(images)))
    found = [row for row in form.rows(str(out)) if isinstance(row, Found)]
    read = [(row.place, q.text, q.answers, q.type) for row in found for q in row.questions]
    assert read == [
        ("200.png", "why?", ("200 for why?\nOne word.",), "reason"),
        ("120.png", "how red?", ("120 for how red?\nOne word.",), "all"),
        ("200.png", "how red?", ("200 for how red?\nOne word.",), "all"),
    ]
    assert not list(lines.parent.glob(".*"))


def test_what_was_answered_is_not_asked_again(server: Server, lines: Path) -> None:
    config = RemoteConfig(server.url, "tiny", retries=0, parallel=1)
    server.fate = lambda n: "401" if n == 4 else "ok"
    with pytest.raises(UserError, match="refused a request with status 401"):
        label(lines, lines.parent / "images", lines.parent / "out.json", config)
    before = len(server.requests)
    assert label(lines, lines.parent / "images", lines.parent / "out.json", config)[0] == 3
    assert len(server.requests) - before < 5


def test_what_is_missing_is_a_sentence(server: Server, lines: Path) -> None:
    config = RemoteConfig(server.url, "tiny")
    with pytest.raises(UserError, match="cannot be read: .*No such file"):
        label(lines.with_name("gone"), lines.parent, lines.parent / "out.json", config)
    with pytest.raises(UserError, match="none of its 9 lines is answered: questions.jsonl: line"):
        label(lines, lines.parent / "elsewhere", lines.parent / "out.json", config)
