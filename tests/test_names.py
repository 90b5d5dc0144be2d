"""Claims about names: any character in a path or a picture's name, on disks and on web servers, and on the
command line."""

import json
import shlex
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import quote

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import pyrskip
from pyrskip.data.conversion import convert
from pyrskip.data.gather import gather
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import ShardsConfig
from pyrskip.data.storage import expand, join, open_file
from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.overrides import literal
from tests.conversions import config, report, together
from tests.models import TEXTS
from tests.own_data import picture, turns
from tests.shards import tar, whole, write_data
from tests.test_cli import refused
from tests.web import served

ODD = [
    "a b.png",
    " lead and trail .png",
    "a[1].png",
    "[a-z].png",
    "{a,b}.png",
    "{a.png",
    "a#b.png",
    "a?b=c&d.png",
    "100%.png",
    "a%20b.png",
    "12:30.png",
    "pipe:cat.png",
    "it's.png",
    'say "hi".png',
    "a+b=c;d,e@f!g$h(1)^~`|<>.png",
    "back\\slash.png",
    "*.png",
    "Ärger.png",
    "日本語.png",
    "🐈.png",
    normalize("NFC", "é.png"),
    normalize("NFD", "ô.png"),
]
FOLDER = "my [v2] {x} #1 100% it's: é"


def written(directory: Path, names: list[str]) -> Path:
    """LLaVA's files below a folder with an odd name: a row a name, each with a picture of its own."""
    folder = directory / FOLDER / "images"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
        rows.append({"id": number, "image": name, "conversations": turns((f"q {number}?", f"a {number}"))})
    (folder.parent / "rows #1 [a].json").write_text(json.dumps(rows))
    return folder.parent


def test_pictures_of_any_name_are_read_from_a_disk(tmp_path: Path) -> None:
    folder = written(tmp_path, ODD)
    convert(config("llava", folder / "rows #1 [a].json", images=str(folder / "images")), tmp_path / "out")
    assert not report(tmp_path / "out")["broken"]
    expected = {picture(n): [((f"q {n}?"), (f"a {n}",), "all")] for n in range(len(ODD))}
    assert {image: list(asked) for image, asked in together(tmp_path / "out").items()} == expected


@pytest.mark.parametrize("quoted", [True, False])
def test_pictures_of_any_name_are_read_from_a_web_server(quoted: bool, tmp_path: Path) -> None:
    folder = written(tmp_path, ODD)
    with served(tmp_path) as site:
        base = f"{site.url}/{quote(FOLDER) if quoted else FOLDER.replace('%', '%25')}"
        rows = "rows%20%231%20%5Ba%5D.json" if quoted else "rows #1 [a].json"
        convert(config("llava", f"{base}/{rows}", images=f"{base}/images/"), tmp_path / "out")  # type: ignore[arg-type]
    assert folder.is_dir() and not report(tmp_path / "out")["broken"]
    assert set(together(tmp_path / "out")) == {picture(n) for n in range(len(ODD))}


@pytest.mark.parametrize("web", [True, False], ids=["web", "disk"])
def test_accents_may_be_composed_in_one_place_and_not_in_the_other(web: bool, tmp_path: Path) -> None:
    names = ["é1.png", "Ångström.png", *(f"{n}.png" for n in range(8))]
    folder = written(tmp_path, [normalize("NFD", name) for name in names])
    rows = json.loads((folder / "rows #1 [a].json").read_text())
    for row in rows:
        row["image"] = normalize("NFC", row["image"])
    path = tmp_path / "composed.json"
    path.write_text(json.dumps(rows))
    with served(tmp_path) as site:
        images = f"{site.url}/{quote(FOLDER)}/images" if web else normalize("NFD", f"{folder}/images")
        convert(config("llava", path, images=images), tmp_path / "out")
    assert not report(tmp_path / "out")["broken"]
    assert len(together(tmp_path / "out")) == len(names)


@pytest.mark.parametrize("name", ODD)
def test_a_file_of_that_very_name_is_the_one_that_is_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_bytes(b"this one")
    (tmp_path / name / "other.txt").write_bytes(b"other")
    for path in (str(tmp_path / name / name), f"{tmp_path}/{name}/{name}"):
        assert expand(path) == [path]
        assert open_file(path).read() == b"this one"
    assert expand(f"{tmp_path}/{name}/o*.{{txt,md}}") == [f"{tmp_path}/{name}/other.txt"]
    monkeypatch.chdir(tmp_path / name)
    assert expand(name) == [name] and open_file(name).read() == b"this one"


@pytest.mark.parametrize(
    ("base", "name", "url"),
    [
        ("http://h/d", "a b#c?d%e.png", "http://h/d/a%20b%23c%3Fd%25e.png"),
        ("https://h/d/?sig=a%2Fb&e=1", "x/y.png", "https://h/d/x/y.png?sig=a%2Fb&e=1"),
        ("http://h/a%20b/", "%20.png", "http://h/a%20b/%2520.png"),
        ("http://h/a#1", "x.png", "http://h/a%231/x.png"),
        ("s3://bucket/d/", "a b#c.png", "s3://bucket/d/a b#c.png"),
        ("d/", "a b#c.png", "d/a b#c.png"),
    ],
)
def test_a_name_is_quoted_once_and_on_web_servers_alone(base: str, name: str, url: str) -> None:
    assert join(base, name) == url


@pytest.mark.parametrize("web", [True, False], ids=["web", "disk"])
def test_shards_are_read_from_a_folder_of_any_name(web: bool, tmp_path: Path) -> None:
    folder = write_data(tmp_path / FOLDER, tar(*whole("a")), tar(*whole("b")))
    with served(tmp_path) as site:
        path = f"{site.url}/{quote(FOLDER)}" if web else str(folder)
        gather(ShardsConfig((path,)), tmp_path / "out")
        data = ShardDataset(tmp_path / "out", "train", 64)
        assert data.image_keys == ["a", "b"] and all(sample is not None for sample in data)


def test_the_service_opens_pictures_of_any_name(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    engine = pyrskip.load(exported[0], "onnx")
    for name in ODD:
        (tmp_path / name).write_bytes(picture(3))
    wanted = engine.answer(picture(3), TEXTS[0])
    assert all(engine.answer(tmp_path / name, TEXTS[0]) == wanted for name in ODD)
    assert engine.answer(str(tmp_path / normalize("NFD", "é.png")), TEXTS[0]) == wanted


TEXT_KEYS = ("data.files.path", "data.files.images", "name", "root", "from", "data.cache", "run")


@given(
    value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
    | st.sampled_from([*ODD, "1e3", "2026_11_26", "true", "[v2]", "a,b", "tag(x)", "trail\\", "\\'\""]),
    key=st.sampled_from(TEXT_KEYS),
)
def test_a_text_is_what_was_typed(value: str, key: str) -> None:
    quotes = value[:1] + value[-1:] in ("''", '""')
    (argument,) = literal([f"{key}={value}"], sweep=False)
    read = OverridesParser.create().parse_override(argument).value()
    if not quotes and value.lower() != "null":
        assert str(getattr(read, "text", read)) == value


def test_what_hydra_reads_itself_stays_as_it_is() -> None:
    typed = ["experiment=scenes", "gate=joint,sequential", "pair=glob(*,exclude=*-rungs)", "name='a#b'"]
    typed += [
        "reward.price=0.1,0.2",
        "seed=range(0,3)",
        "data.files.columns={question: q}",
        "~logger",
        "name=null",
    ]
    assert literal([*typed, "data.files.metric=vqa,anls"], sweep=True) == [
        *typed,
        "data.files.metric=vqa,anls",
    ]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("data.shards.paths=[a#1,b c]", 'data.shards.paths=["a#1","b c"]'),
        ("data.files.columns={question: my#col}", 'data.files.columns={question: "my#col"}'),
        ("logger.wandb.project=it's", 'logger.wandb.project="it\'s"'),
    ],
)
def test_where_the_command_line_needs_quotes_it_shows_how(
    typed: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "data", "experiment=your_data", typed)
    assert typed in said and shlex.quote(shown) in said
    OverridesParser.create().parse_override(shown)


def test_an_interpolation_that_leads_nowhere_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "data", "experiment=your_data", "data.files.path=${set}.json")
    assert "data.files.path" in said and "\\${" in said


def test_a_path_on_the_command_line_needs_no_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyrskip.cli import main

    folder = written(tmp_path, [f"{n}.png" for n in range(12)])
    monkeypatch.chdir(folder)
    keys = ("name=2026_11 it's (1)", "data.files.path=rows #1 [a].json", f"root={tmp_path}/out #1, b")
    main(["data", "experiment=your_data", "data.files.images=images", "trainer.quiet=true", *keys])
    assert (tmp_path / "out #1, b" / "2026_11 it's (1)" / "data" / "index.json").is_file()


def test_what_begins_as_a_url_and_is_no_path_is_refused(tmp_path: Path) -> None:
    for path in ("pipe:cat x", "file:///etc/passwd"):
        with pytest.raises(UserError, match=r"may not be opened; allowed: URLs .* and paths, .*\./"):
            expand(path)
