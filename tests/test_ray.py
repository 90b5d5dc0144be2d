"""Claims about sweeps on Ray, in the environment of make test-ray."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyrskip.stages import run_stages
from pyrskip.sweeps.jobs import read_jobs
from tests.configs import TWO_STEPS, tiny

pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="make test-ray has an environment of its own")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs/easy_vqa up to its rollouts."""
    directory = tmp_path_factory.mktemp("work")
    run_stages(tiny(directory / "runs", "stages=[data,flex,rollouts]"), {})
    return directory


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Of processes that know of no Ray on this machine. The place is a short one: sockets' names take 107
    bytes."""
    given = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "RAY_AUTH_MODE": "disabled",
    }
    with TemporaryDirectory() as place:
        yield os.environ | given | {"RAY_TMPDIR": place}


@pytest.fixture
def cluster(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that was started in another directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    head = subprocess.Popen([*start, "--disable-usage-stats"], cwd=tmp_path, env=environment)
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait(60)


def sweep(directory: Path, name: str, launcher: str, environment: dict[str, str]) -> None:
    small = [override for override in TWO_STEPS if not override.startswith("seeds=")]
    varied = [f"name={name}", "from=runs/easy_vqa", "seed=0,1", "ablations=[]", f"hydra/launcher={launcher}"]
    words = [str(BIN / "pyrskip"), "train", "-m", "experiment=easy_vqa", *small, *varied]
    swept = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert swept.returncode == 0, swept.stderr
    jobs = read_jobs(directory / "runs" / name)
    assert [(job.name, job.state) for job in jobs] == [("seed=0", "done"), ("seed=1", "done")]
    assert all((job.directory / "frontier.json").is_file() for job in jobs)


@pytest.mark.slow
def test_a_sweep_starts_a_ray_of_its_own(rolled: Path, environment: dict[str, str]) -> None:
    sweep(rolled, "own", "ray", environment)


@pytest.mark.slow
def test_a_sweep_runs_on_a_ray_cluster_that_was_started_elsewhere(
    rolled: Path, cluster: str, environment: dict[str, str]
) -> None:
    sweep(rolled, "shared", "ray_cluster", environment | {"RAY_ADDRESS": cluster})
