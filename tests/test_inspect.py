"""Claims about what is said and shown of a data directory."""

import os
from pathlib import Path

import pytest
from PIL import Image

from pyrskip.data.inspect import contact_sheet, inspect
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.errors import UserError
from tests.shards import SMALL_SCENES


def test_a_report_counts_everything_and_names_what_is_broken(tmp_path: Path) -> None:
    index = prepare(DataConfig(source="scenes", scenes=SMALL_SCENES), tmp_path)
    report = inspect(tmp_path)
    assert {split: questions for split, (_, questions) in report.splits.items()} == {
        split: sum(shard.questions for shard in shards) for split, shards in index.splits.items()
    }
    assert report.sizes == {(256, 256): 16}
    assert sum(found.questions for found in report.types.values()) == 80
    assert all(sum(found.levels.values()) == found.questions for found in report.types.values())
    assert not report.faults
    assert "256 x 256 (16)" in str(report) and "broken  0" in str(report)

    shard = tmp_path / index.splits["test"][0].shard
    os.truncate(shard, shard.stat().st_size // 2)
    report = inspect(tmp_path)
    assert report.splits["test"][0] < 4
    assert "test-000000.tar" in str(report).split("broken")[1]


def test_a_contact_sheet_shows_images_of_any_source(tiny_data: Path, tmp_path: Path) -> None:
    contact_sheet(tiny_data, tmp_path / "new" / "sheet.png", "val", images=5, side=120)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width == 4 * 120
    assert "unknown" in str(inspect(tiny_data))


def test_a_split_without_images_has_no_contact_sheet(tmp_path: Path) -> None:
    prepare(DataConfig(source="scenes", gate_fraction=0.01, scenes=SMALL_SCENES), tmp_path)
    with pytest.raises(UserError, match="no image of the split gate"):
        contact_sheet(tmp_path, tmp_path / "sheet.png", "gate")
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(tmp_path, tmp_path / "index.json" / "sheet.png")
