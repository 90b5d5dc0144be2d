"""Commands in processes that begin with everything imported: a command's imports take longer than its work on
small data."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(
    ["pyrskip.cli", "pyrskip.stages", "pyrskip.evaluation", "pyrskip.report", "pyrskip.training", "pandas"]
)


@dataclass(frozen=True)
class Ended:
    """What subprocess.run tells of a process."""

    returncode: int | None
    stdout: str
    stderr: str


def run(words: Sequence[str], cwd: Path, environment: Mapping[str, str], seconds: float) -> Ended:
    """`python <script> ...` or `pyrskip ...`, as in a shell at cwd. returncode: None where it was ended, for
    it took so many seconds."""
    outputs = [cwd / f".{name}" for name in ("stdout", "stderr")]
    process = FORKED.Process(target=_run, args=(list(words), cwd, dict(environment), outputs))
    process.start()
    process.join(seconds)
    ended = process.exitcode
    process.kill()
    process.join()
    return Ended(ended, *(path.read_text() for path in outputs))


def _run(words: list[str], cwd: Path, environment: Mapping[str, str], outputs: Sequence[Path]) -> None:
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    set_start_method("fork", force=True)  # as in a process that nothing started in this way
    if words[0] == "pyrskip":
        from pyrskip.cli import main

        sys.argv = words
        sys.exit(main())
    sys.argv = words[1:]
    sys.path.insert(0, str(Path(words[1]).resolve().parent))
    runpy.run_path(words[1], run_name="__main__")
