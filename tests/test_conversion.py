"""Claims about conversions: splits are by image, and a conversion that is killed goes on and writes the same
bytes."""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyrskip.data import conversion
from pyrskip.data.conversion import convert
from pyrskip.data.shards import DataConfig
from tests.conversions import config, contents, report
from tests.own_data import embedded, encoded, llava_row, picture, turns, write_llava, write_parquet, write_tsv

# splits


def test_splits_are_by_image_and_of_the_sizes_asked_for(tmp_path: Path) -> None:
    path = write_llava(tmp_path, images=100)
    convert(config("llava", path, images=str(tmp_path / "images"), test_fraction=0.2), tmp_path / "out")
    assert {split: len(found) for split, found in contents(tmp_path / "out").items()} == {
        "train": 52,
        "gate": 20,
        "val": 8,
        "test": 20,
        "close": 0,
    }


def test_an_image_of_the_test_file_is_not_trained_on(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    extra = {"image": llava_row(3)["image"], "conversations": turns(("test?", "yes"))}
    (tmp_path / "test.json").write_text(json.dumps([extra]))
    convert(
        config("llava", path, images=str(tmp_path / "images"), test=str(tmp_path / "test.json")),
        tmp_path / "out",
    )
    found = contents(tmp_path / "out")
    assert list(found["test"].values()) == [[("test?", ("yes",), "coco")]]
    assert sum(map(len, found.values())) == 24
    assert report(tmp_path / "out")["skipped"]["training questions on test images"] == 2


def test_a_limit_keeps_a_subset_of_each_split(tmp_path: Path) -> None:
    path = write_llava(tmp_path, images=60)
    wanted = config("llava", path, images=str(tmp_path / "images"))
    convert(wanted, tmp_path / "all")
    convert(replace(wanted, limit=3), tmp_path / "few")
    whole, few = contents(tmp_path / "all"), contents(tmp_path / "few")
    for split in ("train", "gate", "val", "test"):
        assert len(few[split]) == 3
        assert few[split].items() <= whole[split].items()


# how it is done


def written(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def sets(tmp_path: Path) -> Iterator[DataConfig]:
    rows = [{"question": f"q{i}?", "answer": "a", "image": embedded(picture(i // 2))} for i in range(80)]
    yield config("parquet", write_parquet(tmp_path / "t.parquet", rows))
    tsv = [row | {"index": i, "image": encoded(row["image"]["bytes"])} for i, row in enumerate(rows)]  # type: ignore[index]
    yield config("tsv", write_tsv(tmp_path / "t.tsv", tsv))
    yield config("llava", write_llava(tmp_path, images=40), images=str(tmp_path / "images"))


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    for wanted in sets(tmp_path):
        for workers in (0, 3):
            out = tmp_path / f"{wanted.source}-{workers}"
            convert(replace(wanted, files=replace(wanted.files, workers=workers)), out)
        assert written(tmp_path / f"{wanted.source}-0") == written(tmp_path / f"{wanted.source}-3")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("number", range(3))
def test_a_conversion_that_is_killed_goes_on_and_writes_the_same_bytes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(sets(tmp_path))[number]
    convert(wanted, tmp_path / "whole")
    calls = 0
    real_fsync, real_note, chance = os.fsync, conversion.Plan.note, random.Random(number)

    def dying(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if chance.random() < 0.3:
                raise Killed
            result = real(*arguments)
            if chance.random() < 0.2:
                raise Killed
            return result

        return call

    monkeypatch.setattr(os, "fsync", dying(real_fsync))
    monkeypatch.setattr(conversion.Plan, "note", dying(real_note))
    killed = 0
    while not (tmp_path / "stopped/index.json").exists():
        try:
            convert(wanted, tmp_path / "stopped")
        except Killed:
            killed += 1
    monkeypatch.undo()
    assert killed > 2
    assert written(tmp_path / "whole") == written(tmp_path / "stopped")


def test_shards_that_are_written_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = next(sets(tmp_path))
    convert(wanted, tmp_path / "whole")
    shards = len(list((tmp_path / "whole").glob("*.tar")))
    real, done = conversion.write_planned, []

    def counted(*arguments: Any) -> Any:
        if len(done) == 5 and done[-1] != "killed":
            done.append("killed")
            raise Killed
        done.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(conversion, "write_planned", counted)
    with pytest.raises(Killed):
        convert(wanted, tmp_path / "stopped")
    convert(wanted, tmp_path / "stopped")
    assert len(set(done)) == len(done) == shards + 1


def test_one_sample_is_in_memory_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for images in (20, 200):
        folder = tmp_path / str(images)
        path = write_llava(folder, images=images)
        for image in (folder / "images").rglob("*.*"):
            image.write_bytes(image.read_bytes() + bytes(200_000))
        wanted = replace(config("llava", path, images=str(folder / "images")), samples_per_shard=500)
        tracemalloc.start()
        convert(wanted, folder / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000 < 20 * 200_000 + 2_000_000
