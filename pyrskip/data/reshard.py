"""The shards of a data directory written again, more or fewer samples in each: one stream, on webdataset's
own parts."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from webdataset import SimpleShardList
from webdataset.tariterators import group_by_keys, tar_file_expander

from pyrskip.data.convert.rows import image_extension
from pyrskip.data.entries import IMAGES
from pyrskip.data.faults import Fault
from pyrskip.data.gather import read_there
from pyrskip.data.reader import parse_questions
from pyrskip.data.shards import INDEX, Index, Shard, shard_name, write_index, write_shard
from pyrskip.data.storage import open_file
from pyrskip.errors import UserError
from pyrskip.record import Record


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
    for split, shards in index.splits.items():
        urls = [f"{(index.parts[shard.part].root or source).rstrip('/')}/{shard.shard}" for shard in shards]
        records = _records(urls, faults.append)
        splits[split] = []
        for first in records:
            name = shard_name(split, len(splits[split]))
            splits[split].append(
                write_shard(directory / name, chain([first], islice(records, samples_per_shard - 1)))
            )
    return write_index(directory, index.source, splits), faults


def _records(urls: list[str], broken: Callable[[Fault], None]) -> Iterator[Record]:
    """The samples of these shards, one after another; what cannot be read is reported and loses no other."""
    if not urls:
        return
    current = ""

    def report(error: Exception) -> bool:
        broken(
            Fault(
                current.rsplit("/", 1)[-1],
                "",
                f"{type(error).__name__}: {error.args[0] if error.args else ''}",
            )
        )
        return True

    def opened() -> Iterator[dict[str, Any]]:
        nonlocal current
        for found in SimpleShardList(urls):
            current = found["url"]
            try:
                with open_file(current) as stream:
                    yield {"url": current, "stream": stream}
            except OSError as error:
                report(error)

    seen: set[str] = set()
    for sample in group_by_keys(tar_file_expander(opened(), handler=report), handler=report):
        key, shard = sample["__key__"], sample["__url__"].rsplit("/", 1)[-1]
        try:
            image = next((sample[kind] for kind in IMAGES if kind in sample), None)
            if image is None or "json" not in sample:
                raise ValueError(f"has no {'json' if image else 'image'}")
            if key in seen:
                raise ValueError("is there twice")
            record = Record(key, image, image_extension(image), parse_questions(sample["json"]))
        except (ValueError, TypeError, KeyError, RecursionError, AssertionError) as error:
            broken(Fault(shard, key, f"{type(error).__name__}: {error}"))
            continue
        seen.add(key)
        yield record
