"""Claims about benchmarks/collages.py: what it writes is a set that `data=llava` reads whole."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("skimage")

from benchmarks.collages import main
from pyrskip.data.conversion import convert
from tests.conversions import config, together
from tests.own_data import picture


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["collages.py", *arguments])
    main()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for kind, numbers in {"cat": (1, 2), "dog": (3, 4)}.items():
        (tmp_path / "photographs" / kind).mkdir(parents=True)
        for number in numbers:
            (tmp_path / "photographs" / kind / f"{number}.png").write_bytes(picture(number))
    return tmp_path / "photographs"


def test_every_picture_has_four_questions_and_depends_on_its_number_alone(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, images in {"more": 12, "fewer": 10}.items():
        run(
            monkeypatch, f"photographs={photographs}", f"out={tmp_path / name}", f"images={images}", "side=96"
        )
    more, fewer = (json.loads((tmp_path / name / "data.json").read_text()) for name in ("more", "fewer"))
    assert more[:10] == fewer
    for entry in fewer:
        one, other = ((tmp_path / name / entry["image"]).read_bytes() for name in ("more", "fewer"))
        assert one == other
    large, count, small, word = (turn["value"] for turn in more[0]["conversations"][1::2])
    assert {large, small} <= {"cat", "dog"} and 1 <= int(count) <= 4 and word.isalpha()
    made = config("llava", tmp_path / "more/data.json", images=str(tmp_path / "more"))
    convert(made, tmp_path / "shards")
    found = together(tmp_path / "shards")
    assert len(found) == 12 and all(asked.total() == 4 for asked in found.values())


def test_what_holds_no_kinds_is_one_sentence(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere", "photographs/cat"):
        with pytest.raises(SystemExit, match=f"{place}: allowed: a directory with a folder of pictures for"):
            run(monkeypatch, f"photographs={tmp_path / place}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
