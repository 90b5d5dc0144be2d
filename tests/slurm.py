"""A real SLURM of two nodes on this machine, from Debian's slurm-wlm and munge, for tests. It needs root.

Everything it starts is its own child or written to a pid file of its own, and is ended by that id.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# `low` gives way to `high`: its jobs get 20 s to save what they have, then they are queued again, and may
# start once their credentials have expired
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=4
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 MaxTime=30
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=30
"""


@dataclass(frozen=True)
class Cluster:
    """root: its files. environment: what its commands, and jobs that they start, need."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str, cwd: Path | None = None, seconds: float = 60) -> str:
        """What the command prints. Raises where it fails, with what it said."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, ..."""
        return self.run("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={job}").strip()

    def wait(self, job: str, state: str, seconds: float = 120) -> None:
        until(
            lambda: self.state(job) == state, seconds, lambda: f"job {job} is {self.state(job)}, not {state}"
        )


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """Two nodes of four CPUs that are up; all ended behind it."""
    started: list[subprocess.Popen[bytes]] = []
    # the nodes' names resolve nowhere, and ranks that look for each other by them wait for ever
    environment = os.environ | {
        "SLURM_CONF": str(root / "slurm.conf"),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    result = Cluster(root, environment)
    (root / "state").mkdir()
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o400)
    controller, first = _ports()
    host = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(
        CONFIG.format(root=root, host=host, controller=controller, first=first, second=first + 1)
    )
    socket_, key = f"--socket={root}/munge.socket", f"--key-file={root}/munge.key"
    files = [f"--{what}-file={root}/munge.{what}" for what in ("log", "pid", "seed")]
    commands = [
        ["munged", "--foreground", "--force", socket_, key, *files],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in ("n0", "n1")),
    ]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end what was started then, too
    try:
        for command in commands:
            with (root / "daemons.log").open("ab") as log:
                started.append(subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log))
            if command[0] == "munged":
                until((root / "munge.socket").exists, 30, lambda: _logs(root))
        until(lambda: _idle(result) == 2, 30, lambda: _logs(root))
        yield result
    finally:
        # jobs first, while there is who can end them
        subprocess.run(
            ["scancel", "--user=root", "--signal=KILL"],
            env=dict(environment),
            check=False,
            capture_output=True,
        )
        _settle(result)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)


def _idle(of: Cluster) -> int:
    asked = ["sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=low"]
    told = subprocess.run(asked, env=dict(of.environment), capture_output=True, text=True, check=False)
    return told.stdout.count(" idle")


def _settle(of: Cluster, seconds: int = 10) -> None:
    """Wait until no job is left, or as long as that may take."""
    for _ in range(seconds * 2):
        if _idle(of) in (0, 2):
            return
        time.sleep(0.5)


def until(
    reached: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "it did not happen"
) -> None:
    for _ in range(int(seconds * 5)):
        if reached():
            return
        time.sleep(0.2)
    raise AssertionError(f"{why()} after {seconds} s")


def _logs(root: Path) -> str:
    return "\n".join(
        f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in sorted(root.glob("*.log"))
    )


def _ports() -> tuple[int, int]:
    """A free port, and the first of two free ports in a row."""
    for first in range(17001, 18000, 2):
        free = []
        for port in (first, first + 1, first + 1000):
            with socket.socket() as probe:
                free.append(probe.connect_ex(("127.0.0.1", port)) != 0)
        if all(free):
            return first + 1000, first
    raise RuntimeError("no free ports between 17001 and 19000")
