"""Data directories that are there already, as one: on disks, on web servers or in object stores, mixed by
weight."""

import os
from pathlib import Path

from pyrskip.data.shards import (
    INDEX,
    SPLITS,
    WRITTEN,
    Index,
    Part,
    Shard,
    ShardsConfig,
    index_from,
    write_index,
)
from pyrskip.data.storage import is_url, open_storage
from pyrskip.errors import UserError
from pyrskip.files import there


def gather(config: ShardsConfig, directory: Path) -> Index:
    """Write an index of all shards of config.paths, which stay where they are. Raises UserError where a path
    holds no index."""
    parts: list[Part] = []
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for number, path in enumerate(config.paths):
        index = read_there(path)
        train = sum(shard.samples for shard in index.splits["train"])
        # without weights a mixture is as its images are
        weight = config.weights[number] if config.weights else train
        shares = sum(part.weight for part in index.parts)
        first = len(parts)
        for part in index.parts:
            root = part.root or (path if is_url(path) else os.path.abspath(there(path)))
            parts.append(Part(root, weight * part.weight / shares))
        for split in SPLITS:
            splits[split] += [
                Shard(**vars(shard) | {"part": first + shard.part}) for shard in index.splits[split]
            ]
    return write_index(directory, WRITTEN, splits, parts)


def read_there(path: str) -> Index:
    """The index of a data directory, or of one at a URL. Raises UserError where there is none that can be
    read."""
    (content,) = open_storage(path).files([INDEX])
    if isinstance(content, Exception):
        raise UserError(
            f"{path} holds no {INDEX} that can be read ({type(content).__name__}: {content})"
        ) from content
    index = index_from(content, Path(path))
    if not index.splits["train"]:
        raise UserError(f"{path} lists no shard to train on; allowed: a data directory with a train split")
    return index
