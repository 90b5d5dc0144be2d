"""A sweep's jobs as they are on the disk: each keeps a job.json in its directory, which is named by what the
sweep varies.

The directories are all that there is of a sweep: they are read alike on a laptop, on a cluster's login node,
while jobs run and when whoever started them is long gone.
"""

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import time

from pyrskip.errors import UserError
from pyrskip.files import write_json, write_whole

FILE, TRACE = "job.json", "error.txt"
STATES = ("waiting", "running", "done", "pruned", "stopped", "failed")
"""stopped: interrupted or preempted, to go on from its checkpoint. pruned: given up for being worse than
others."""
LONGEST = 180  # of a directory's name; file systems take 255 bytes


class Pruned(Exception):  # noqa: N818 - an outcome, not an error
    """Raised in a job that is not worth finishing; says why."""


@dataclass(frozen=True)
class Job:
    """fixed: overrides that the sweep's jobs share; varied: this job's own. why: a failure's or a pruning's
    last line."""

    directory: Path
    fixed: tuple[str, ...]
    varied: tuple[str, ...]
    state: str = "waiting"
    why: str = ""

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def silent(self) -> float:
        """Seconds since it last wrote a file."""
        return time() - max(
            path.stat().st_mtime for path in (self.directory, *self.directory.rglob("*")) if path.exists()
        )


def name_of(varied: Sequence[str]) -> str:
    """A directory's name: a function of the overrides, never of the clock."""
    name = ",".join(varied).replace("/", "-") or "0"
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name[: LONGEST // 4]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def keep(job: Job) -> None:
    """Write job.json, whole or not at all. Raises UserError where that cannot be."""
    write_json(job.directory / FILE, {k: v for k, v in asdict(job).items() if k != "directory"})


def plan(job: Job) -> None:
    """Keep a job that is about to be started, over what an earlier start of it left."""
    earlier = read_job(job.directory) if (job.directory / FILE).exists() else job
    keep(replace(job, state=earlier.state, why=earlier.why) if earlier.state in ("done", "pruned") else job)


def read_job(directory: Path) -> Job:
    """Raises UserError where there is none."""
    path = directory / FILE
    try:
        saved = json.loads(path.read_text())
        job = Job(directory, tuple(saved["fixed"]), tuple(saved["varied"]), saved["state"], saved["why"])
        if job.state not in STATES:
            raise ValueError(f"state {job.state!r}")
    except FileNotFoundError as error:
        raise UserError(f"{directory} is no job of a sweep: it holds no {FILE}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and start the sweep again") from error
    return job


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs of a sweep's directory, in the order of their names. Raises UserError where there is none."""
    jobs = [read_job(path.parent) for path in sorted(sweep.glob(f"*/{FILE}"))]
    if not jobs:
        raise UserError(
            f"{sweep} is no sweep: none of its directories holds a {FILE}; allowed: root/name of a train -m"
        )
    return jobs


def run_job(job: Job, task: Callable[[], None], describe: Callable[[Exception], str], first: bool) -> str:
    """Run a job and keep its state, which is returned. What it fails with is kept and not raised, so that
    others go on.

    describe: gives an error as one line. first: whether this is the job's first rank, which alone writes.
    """

    def kept(state: str, why: str = "") -> str:
        if first:
            keep(replace(job, state=state, why=why))
        return state

    try:
        kept("running")
        task()
    except Pruned as error:
        return kept("pruned", str(error))
    except Exception as error:
        if first:
            write_whole(job.directory / TRACE, traceback.format_exc())
            print(f"error: {job.name}: {describe(error)}", file=sys.stderr)
        return kept("failed", describe(error))
    except BaseException:
        kept("stopped")
        raise
    return kept("done")
