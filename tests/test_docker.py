"""Claims about the container images, without an engine to build them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import REPOSITORY

DOCKER = REPOSITORY / "docker"
EXTRAS = {
    "train": re.search(r"ARG EXTRAS=(\S+)", (DOCKER / "train.Dockerfile").read_text())[1],  # type: ignore[index]
    "serve": "serve",
}


def required(image: str) -> list[str]:
    """Names of what an image installs, as pip writes them."""
    command = [
        sys.executable,
        str(DOCKER / "requirements.py"),
        str(REPOSITORY / "pyproject.toml"),
        EXTRAS[image],
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name_of(line) for line in lines]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=~; ]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("image", list(EXTRAS))
def test_all_that_an_image_installs_is_pinned(image: str) -> None:
    pins = {
        name_of(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    }
    needed = required(image)
    assert len(needed) > 5
    assert not set(needed) - pins


def test_the_image_that_serves_holds_no_training_stack() -> None:
    assert "onnxruntime" in required("serve")
    assert not {"torch", "timm", "pytorch-lightning", "hydra-core"} & set(required("serve"))
    assert {"torch", "pytorch-lightning", "hydra-submitit-launcher", "optuna"} <= set(required("train"))


@pytest.mark.slow
def test_what_the_context_lets_in_is_all_that_the_package_is_built_from(tmp_path: Path) -> None:
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, target = REPOSITORY / line[1:], tmp_path / "context" / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    # a target of its own: with --prefix alone pip would remove what is installed here
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "package"),
    ]
    subprocess.run([*command, str(tmp_path / "context")], check=True, capture_output=True, timeout=300)
    packages = tmp_path / "package"
    for path in ("pyrskip/cli.py", "pyrskip/conf/train.yaml", "pyrskip/conf/hydra/launcher/slurm.yaml"):
        assert (packages / path).is_file()
    assert (packages / "hydra_plugins/hydra_pareto_sweeper/__init__.py").is_file()
    assert (tmp_path / "package/bin/pyrskip").is_file()
