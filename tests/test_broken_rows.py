"""Claims about rows that cannot be converted: each is named or counted, and loses no other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyrskip.data.conversion import convert
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import DataConfig
from pyrskip.errors import UserError
from tests.conversions import config, report, together
from tests.own_data import embedded, encoded, picture, turns, write_llava, write_parquet, write_tsv


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": None}, "conversations is no list"),
        ({"conversations": []}, "no human turn has an answer"),
        ({"conversations": turns(("q?", ""))}, "no human turn has an answer"),
        ({"conversations": [{"from": "human"}]}, "KeyError: 'value'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "3 is no text"),
        ({"image": 7}, "image=7 is no path"),
        ({"image": "../../etc/passwd"}, "points out of the folder"),
        ({"image": "/etc/passwd"}, "points out of the folder"),
        ({"image": "http://host/a.png"}, "points out of the folder"),
        ({"image": "pipe:cat /etc/passwd"}, "FileNotFoundError"),
        ({"image": "coco/nowhere.jpg"}, "FileNotFoundError"),
        ({"image": "coco/empty.jpg"}, "the image has no bytes"),
        ({"image": "coco/text.jpg"}, "the image is no png, jpg, webp"),
        ({"image": "coco"}, "IsADirectoryError"),
    ],
)
def test_a_broken_llava_row_is_named_and_loses_no_other(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = write_llava(tmp_path)
    (tmp_path / "images/coco/empty.jpg").write_bytes(b"")
    (tmp_path / "images/coco/text.jpg").write_bytes(b"no image")
    rows = json.loads(path.read_text())
    rows[5] |= change
    path.write_text(json.dumps(rows))
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 23
    (broken,) = report(tmp_path / "out")["broken"]
    assert reason in broken["reason"]


@pytest.mark.parametrize(
    ("row", "reason"), [(["a"], "no object"), ({"image": ["a.jpg", "b.jpg"]}, None), ({"video": "a"}, None)]
)
def test_rows_of_another_kind_are_counted(row: Any, reason: str | None, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    told = report(tmp_path / "out")
    assert [reason in broken["reason"] for broken in told["broken"]] == ([True] if reason else [])
    assert sum(told["skipped"].values()) == 1 + (reason is None)


@pytest.mark.parametrize("cut", [0.3, 0.95])
def test_a_json_file_that_is_cut_off_keeps_the_rows_before(cut: float, tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert abs(len(together(tmp_path / "out")) - cut * 24) <= 2
    (broken,) = report(tmp_path / "out")["broken"]
    assert broken["shard"] == str(path) and "cannot be read after" in broken["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "question=None is no text"),
        ({"answers": []}, "there is no answer"),
        ({"answers": None}, "there is no answer"),
        ({"image": {"bytes": None, "path": "a.png"}}, "the image is not embedded"),
        ({"image": embedded(b"\0\0\0 ftypheic")}, "the image is no png, jpg, webp"),
    ],
)
def test_a_broken_parquet_row_is_named_and_loses_no_other(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rows = [{"question": "q?", "answers": ["a"], "image": embedded(picture(i))} for i in range(12)]
    rows[4] |= change
    convert(config("parquet", write_parquet(tmp_path / "t.parquet", rows)), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 11
    (broken,) = report(tmp_path / "out")["broken"]
    assert reason in broken["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "no base64!" * 20}, "Only base64 data is allowed|padding"),
        ({"image": "999"}, "image=999 is no row with an image of its own"),
        ({"question": ""}, "there is no question"),
        ({"answer": ""}, "there is no answer"),
    ],
)
def test_a_broken_tsv_row_is_named_and_loses_no_other(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    import re

    rows = [{"index": i, "question": "q?", "answer": "a", "image": encoded(picture(i))} for i in range(12)]
    rows[4] |= change
    convert(config("tsv", write_tsv(tmp_path / "t.tsv", rows)), tmp_path / "out")
    assert len(together(tmp_path / "out")) == 11
    (broken,) = report(tmp_path / "out")["broken"]
    assert re.search(reason, broken["reason"])


def test_a_shard_of_which_nothing_can_be_read_is_not_written(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "whole")
    data = ShardDataset(tmp_path / "whole", "train", 64)
    gone = {image for image, _ in data.raw(range(4))}
    for image in (tmp_path / "images").rglob("*.*"):
        if image.read_bytes() in gone:
            image.write_bytes(b"")
    index = convert(config("llava", path, images=str(tmp_path / "images")), tmp_path / "out")
    assert [shard.shard for shard in index.splits["train"]] == [s.shard for s in data._shards[1:]]
    assert not (tmp_path / "out/train-000000.tar").exists()
    assert len(report(tmp_path / "out")["broken"]) == 4


def test_more_broken_rows_than_allowed_stop_with_the_list(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    for name in ("vg/VG_100K/0.png", "vg/VG_100K/2.png"):
        (tmp_path / "images" / name).unlink()
    wanted = config("llava", path, images=str(tmp_path / "images"))
    with pytest.raises(
        UserError,
        match=r"questions are broken, more than data.max_bad_fraction=0.05: .*VG_100K/0.png.*FileNotFound",
    ):
        convert(replace(wanted, max_bad_fraction=0.05), tmp_path / "out")
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.parametrize(
    ("source", "files", "said"),
    [
        ("llava", {"path": "nowhere.json"}, "'nowhere.json' is no file that is there"),
        ("llava", {"path": "here.json", "images": ""}, "data.files.images is empty"),
        ("llava", {"path": "here.json", "images": "nowhere"}, "data.files.images='nowhere' is no folder"),
        ("parquet", {"path": "here.json"}, "no parquet file that can be read"),
        ("tsv", {"path": "here.json"}, "no column for data.files.columns.question"),
        ("tsv", {"path": "pipe:cat here.json"}, "may not be opened"),
        ("tsv", {"path": "simplecache::http://x/y"}, "may not be opened"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    source: str, files: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.json").write_text("[]")
    with pytest.raises(UserError, match=said):
        convert(DataConfig(source=source, files=FilesConfig(**files)), tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"path": ""}, "data.files.path is empty"),
        ({"metric": "bleu"}, "data.files.metric='bleu'.*anls"),
        ({"test_fraction": 1.0}, "data.files.test_fraction=1.0"),
        ({"columns": {"colour": "c"}}, "data.files.columns='colour'"),
        ({"workers": -1}, "data.files.workers=-1"),
    ],
)
def test_a_wrong_files_config_is_refused_where_it_is_read(files: dict[str, Any], said: str) -> None:
    DataConfig(source="easy_vqa", files=FilesConfig(**files))
    with pytest.raises(UserError, match=said):
        DataConfig(source="llava", files=FilesConfig(**files))
