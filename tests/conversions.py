"""What converters are asked for, and what they have written, for tests of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, DataConfig

pytest.importorskip("pyarrow")
Asked = tuple[str, tuple[str, ...], str]


def config(source: str, path: Path, **files: Any) -> DataConfig:
    return DataConfig(
        source=source,
        samples_per_shard=4,
        max_bad_fraction=0.9,
        files=FilesConfig(path=str(path), workers=0, **files),
    )


def contents(directory: Path) -> dict[str, dict[bytes, list[Asked]]]:
    """Split -> image's bytes -> its questions. Fails where an image is there twice."""
    found: dict[str, dict[bytes, list[Asked]]] = {}
    for split in SPLITS:
        data = ShardDataset(directory, split, 64)
        assert not data.faults
        found[split] = {}
        for (image, _), questions in zip(data.raw(range(len(data))), data.questions(), strict=True):
            assert isinstance(image, bytes) and image not in found[split]
            found[split][image] = [(q.text, q.answers, q.type) for q in questions or ()]
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    return found


def together(directory: Path) -> dict[bytes, Counter[Asked]]:
    return {image: Counter(asked) for split in contents(directory).values() for image, asked in split.items()}


def report(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / "conversion.json").read_text())
    return result
