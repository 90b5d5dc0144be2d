"""The shards of a data directory written again, more or fewer samples in each: what a training reads of them,
in its order."""

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from pyrskip.data.convert.rows import image_extension, image_key
from pyrskip.data.faults import Fault
from pyrskip.data.gather import gather, read_there
from pyrskip.data.reader import TOGETHER, ShardDataset, parse_questions
from pyrskip.data.shards import INDEX, Index, Shard, ShardsConfig, shard_name, write_index, write_shard
from pyrskip.data.storage import is_url
from pyrskip.errors import UserError
from pyrskip.progress import progress
from pyrskip.record import KEY, Record


def reshard(source: str, directory: Path, samples_per_shard: int) -> tuple[Index, list[Fault]]:
    """Write `directory` from the data directory or URL `source`, split by split, in the order that it has.

    Returns the new index and what was broken and left out. Raises UserError where the source is no data
    directory, the new one has an index already, or nothing can be written.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard={samples_per_shard} is too small; allowed: at least 1")
    if (directory / INDEX).exists():
        raise UserError(f"{directory} holds shards already; allowed: a new directory")
    index = read_there(source)
    faults: list[Fault] = []
    splits: dict[str, list[Shard]] = {}
    with TemporaryDirectory() as here:
        place = Path(here if is_url(source) else source)
        if is_url(source):
            gather(ShardsConfig((source,)), place)
        for split in index.splits:
            data = ShardDataset(place, split, 1)
            records = _records(data)
            splits[split] = []
            with progress(f"writing {split}", -(-len(data) // samples_per_shard), "shard") as work:
                for first in records:
                    name = shard_name(split, len(splits[split]))
                    splits[split].append(
                        write_shard(directory / name, chain([first], islice(records, samples_per_shard - 1)))
                    )
                    work.advance()
            faults += data.faults
    return write_index(directory, index.source, splits), faults


def _records(data: ShardDataset) -> Iterator[Record]:
    """What can be read of them; what cannot is added to the faults of `data`."""
    for low in range(0, len(data), TOGETHER):
        rows = range(low, min(low + TOGETHER, len(data)))
        for row, content in zip(rows, data.raw(rows), strict=True):
            record = data.decoded(row, _record, *content)
            if record is not None:
                yield record


def _record(key: str, image: bytes, questions: bytes) -> Record:
    key = key if re.fullmatch(KEY, key) else image_key(key)
    return Record(key, image, image_extension(image), parse_questions(questions))
