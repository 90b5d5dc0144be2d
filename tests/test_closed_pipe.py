"""Claims about a closed pipe, as behind `| head`: a command ends at once, without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pyrskip.cli import main
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel


def into_closed(*words: str, both: bool = False, **environment: str) -> tuple[int, str]:
    """The exit code of a command whose stdout nobody reads, and what it says on stderr; both: nor that."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-c", "from pyrskip.cli import main; main()", *words],
        stdout=theirs,
        stderr=theirs if both else subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    os.close(theirs)
    return done.returncode, "" if both else done.stderr.decode()


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("train", "--help"),
        ("train", "experiment=easy_vqa", "--cfg", "job"),
        pytest.param(("train", "--info"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_a_command_quietly(words: tuple[str, ...], unbuffered: str) -> None:
    assert into_closed(*words, PYTHONUNBUFFERED=unbuffered) == (141, "")


def test_neither_does_a_closed_stderr_matter() -> None:
    assert into_closed("fly", both=True)[0] == 141


def test_predictions_stop_where_nobody_reads_them(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "question": "which colour?"}) + "\n"
    (tmp_path / "questions.jsonl").write_text(line * 400)
    code, said = into_closed("predict", f"model={exported[0]}", f"input={tmp_path / 'questions.jsonl'}")
    assert code == 141 and "Traceback" not in said and "400 answered" not in said


def test_a_pipe_of_something_else_is_no_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> None:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr("pyrskip.cli._run", breaks)
    with open(os.devnull, "w") as nowhere, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nowhere)
        patch.setattr(sys, "stderr", nowhere)
        with pytest.raises(BrokenPipeError, match="a worker's"):
            main([])
