"""What several tests share."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pyrskip.data.shards import DataConfig, prepare
from pyrskip.data.sources import SOURCES
from pyrskip.gates.gate import Gate
from pyrskip.models.language import LANGUAGES
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.scene import Scene, make_scene
from tests.models import tiny_model
from tests.shards import made_up

torch.set_num_threads(1)
if find_spec("hypothesis"):  # Ray's environment has none
    from hypothesis import HealthCheck, settings

    # what an example or a draw takes is the machine's affair
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu or cuda: where tests/test_device.py runs")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of easy-VQA, 24 images a split. Not to be written to."""
    directory = tmp_path_factory.mktemp("tiny_data")
    prepare(DataConfig(limit=24), directory)
    return directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NativeModel, Gate]:
    """An export of random weights, and what it was made from. Not to be written to."""
    from filelock import FileLock  # these bring the training stack, which most tests do without

    from tests.exports import tiny_export, tiny_parts

    # graphs are traced once for all processes of a test session
    directory = tmp_path_factory.getbasetemp()
    directory = (directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory) / "export"
    with FileLock(f"{directory}.lock"):
        parts = tiny_parts() if directory.exists() else tiny_export(directory)
    return directory, *parts


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ServedModel, Gate]:
    """A bundle of a gate alone, for backend='torch', and what it was made from. Not to be written to."""
    pytest.importorskip("transformers")
    pytest.importorskip("httpx")
    from tests.exports import alone_export, tiny_served  # as above

    directory = tmp_path_factory.mktemp("alone")
    parts = tiny_served(directory / "text")
    alone_export(directory / "bundle", *parts, traced=False)
    return directory / "bundle", *parts


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with every stage done. Not to be written to."""
    from pyrskip.stages import run_stages  # as above
    from tests.configs import tiny

    return run_stages(tiny(tmp_path_factory.mktemp("runs"), "name=done"), {})


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A root directory with a copy of that run."""
    shutil.copytree(finished_run, tmp_path / "done")
    return tmp_path


@pytest.fixture
def made_up_config(monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A config of data that is made up: 40 images to train on and 10 to test on, 7 a shard."""
    monkeypatch.setitem(SOURCES._entries, "made_up", made_up)
    return DataConfig(source="made_up", samples_per_shard=7)


@pytest.fixture(scope="session")
def some_scenes() -> list[Scene]:
    return [make_scene(SceneConfig(), "train", index) for index in range(40)]


@pytest.fixture(
    scope="session", params=[(grid, name) for grid in ((1,), (2, 2, 1)) for name in LANGUAGES], ids=str
)
def native(request: pytest.FixtureRequest) -> NativeModel:
    """A tiny model of each language, on whole levels and on regions of them."""
    grid, language = request.param
    return tiny_model(grid, language=language)
