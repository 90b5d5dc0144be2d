"""What several tests share."""

from pathlib import Path

import pytest
import torch

from pyrskip.data.shards import DataConfig, prepare
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of easy-VQA, 24 images a split. Not to be written to."""
    directory = tmp_path_factory.mktemp("tiny_data")
    prepare(DataConfig(limit=24), directory)
    return directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NativeModel, Gate]:
    """An export of random weights, and what it was made from. Not to be written to."""
    from tests.exports import tiny_export  # brings the training stack, which most tests do without

    directory = tmp_path_factory.mktemp("export")
    return directory, *tiny_export(directory)
