"""Claims about files: whole or not there, whatever stops their writing."""

import os
from pathlib import Path

import pytest

from pyrskip.errors import UserError
from pyrskip.files import run_lock, whole_directory, whole_file, write_json, write_whole


def test_a_file_that_is_not_written_to_its_end_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "first")

    def write() -> None:
        with whole_file(path) as file:
            file.write(b"second")
            file.flush()
            assert path.read_text() == "first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "first")]


def test_what_takes_a_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed first, a file may be empty after a power failure."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("on the disk"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("named"), replace(a, b)))
    write_json(tmp_path / "file", [1])
    assert done == ["on the disk", "named"]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file" / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^{tmp_path}/file cannot be written: Is a directory$"):
        write_json(tmp_path / "file", {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one is taken

    def write(error: type[BaseException] | None) -> None:
        with whole_directory(out) as part:
            (part / "file").write_text("whole")
            assert not list(out.iterdir())
            if error:
                raise error

    for error, seen in ((KeyboardInterrupt, KeyboardInterrupt), (OSError, UserError)):
        with pytest.raises(seen):
            write(error)
        assert [p.name for p in tmp_path.iterdir()] == ["out"] and not list(out.iterdir())
    write(None)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / "file").read_text() == "whole"


def test_a_lock_is_released_whatever_ends_its_work(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, RuntimeError, UserError):
        with pytest.raises(error), run_lock(tmp_path):
            raise error
    with run_lock(tmp_path):
        pass
