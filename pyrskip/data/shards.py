"""Data as tar shards: written once from a source, divided into splits by image, and listed in an index.

A shard is a plain webdataset tar: `<key>.png`, `.jpg`, `.webp`, ... holds an image file's own bytes and
`<key>.json` its questions, {"questions": [{"text": ..., "answers": [...], "type": ...}]}, with "level" and
"boxes" where the source knows them, and "metric" where it is not exact. Beside each shard a list says where
its samples lie (`pyrskip.data.entries`). `index.json`, written last, lists the shards of each split.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from pyrskip.data.convert import FORMATS, FilesConfig
from pyrskip.data.entries import list_name, scan, to_json
from pyrskip.data.sources import SOURCES, ListedSource, Source
from pyrskip.data.storage import is_url
from pyrskip.errors import UserError
from pyrskip.files import whole_file, write_whole, writing
from pyrskip.identity import HOW, read_where
from pyrskip.progress import progress
from pyrskip.record import Record
from pyrskip.sample import Question
from pyrskip.scenes.config import SceneConfig

WRITTEN = "shards"
"""The value of data.source for data directories that are there already."""
SPLITS = ("train", "gate", "val", "test", "close")
"""close: close-ups of images of train, where a source has any."""
INDEX = "index.json"


@dataclass(frozen=True)
class ShardsConfig:
    """paths: data directories, local or URLs. weights: how often training draws from each; [] for as often as
    it has images."""

    paths: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises UserError where a value is not allowed: called where the source is shards, as other sources
        ignore it all."""
        if not self.paths:
            raise UserError("data.shards.paths=[]: allowed: one or more data directories, or their URLs")
        if self.weights and (len(self.weights) != len(self.paths) or min(self.weights) <= 0):
            raise UserError(
                f"data.shards.weights={list(self.weights)}: allowed: [], or a number above 0 for each of "
                f"{len(self.paths)} paths"
            )


@dataclass(frozen=True)
class DataConfig:
    """Which data to prepare, and how to divide it. The source's own test split is never divided.

    source: a registered source or format. gate_fraction, val_fraction: shares of the source's training images
    that train gates, and that choose between them; flex trains on what is left. seed: of the division. limit:
    at most so many images of each split, for quick runs. cache: null, or where the frozen encoder's maps are
    kept: 'run' is this run's own (or its lender's) cache stage, else the directory of a cache.
    max_bad_fraction: of what a source or a split holds, may be broken. scenes, files, shards: read where the
    source is scenes, one that reads files, or shards that are written already.
    """

    source: str = "easy_vqa"
    gate_fraction: float = 0.25
    val_fraction: float = 0.1
    seed: int = 0
    limit: int | None = None
    samples_per_shard: int = 500
    cache: str | None = field(default=None, metadata=HOW)
    max_bad_fraction: float = field(default=0.05, metadata=HOW)
    scenes: SceneConfig = field(default_factory=SceneConfig, metadata=read_where("source", ("scenes",)))
    files: FilesConfig = field(default_factory=FilesConfig, metadata=read_where("source", FORMATS))
    shards: ShardsConfig = field(default_factory=ShardsConfig, metadata=read_where("source", (WRITTEN,)))

    def __post_init__(self) -> None:
        if self.source not in (*SOURCES, *FORMATS, WRITTEN):
            raise FORMATS.unknown(self.source, (*SOURCES, WRITTEN))
        if self.source in FORMATS and (self.source in SOURCES or self.source == WRITTEN):
            raise UserError(
                f"data.source={self.source!r} is registered as a format of files and as a source; "
                "allowed: one of both under that name"
            )
        if not 0.0 <= self.max_bad_fraction < 1.0:
            raise UserError(f"data.max_bad_fraction={self.max_bad_fraction}: allowed: at least 0 and below 1")
        for name in ("gate_fraction", "val_fraction"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UserError(
                    f"data.{name}={getattr(self, name)} is no share of the images; allowed: 0 < {name} < 1"
                )
        if self.gate_fraction + self.val_fraction >= 1.0:
            raise UserError(
                f"data.gate_fraction={self.gate_fraction} and data.val_fraction={self.val_fraction} leave no "
                "image for flex; allowed: a sum below 1"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"data.limit={self.limit} is too small; allowed: null, or at least 1 image per split"
            )
        if self.samples_per_shard < 1:
            raise UserError(
                f"data.samples_per_shard={self.samples_per_shard} is too small; allowed: at least 1"
            )
        if self.source == "scenes":
            self.scenes.check()
        if self.source in FORMATS:
            self.files.check()
        if self.source == WRITTEN:
            self.shards.check()
            if self.limit is not None:
                raise UserError(
                    f"data.limit={self.limit} cannot cut shards that are written already; allowed: null"
                )


@dataclass(frozen=True)
class Shard:
    """One line of the index. shard: file name; samples: images; questions: of all of them; bytes: size of the
    file.

    part: which of the index's parts it lies in.
    """

    shard: str
    samples: int
    questions: int
    bytes: int
    sha256: str
    part: int = 0


@dataclass(frozen=True)
class Part:
    """Where some of the shards lie. root: a directory or URL, '' for the index's own directory; weight: how
    often training draws from it, against the other parts'."""

    root: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Index:
    """The shards of every split of a data directory."""

    directory: Path
    source: str
    splits: dict[str, tuple[Shard, ...]]
    parts: tuple[Part, ...] = (Part(),)


def prepare(config: DataConfig, directory: Path) -> Index:
    """Write the source's images and questions as shards, then their index. The same config gives the same
    bytes.

    Files are written whole or not at all, and the index last, so a directory with an index is complete.
    Raises UserError where the source cannot be used or a file cannot be written (a full disk, say); what was
    being written is removed.
    """
    source = _open(config)
    split_of = _divide(source.keys("train"), source.keys("test"), config)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / INDEX).unlink(missing_ok=True)
    waiting: dict[str, list[Record]] = {split: [] for split in SPLITS}
    written: dict[str, list[Shard]] = {split: [] for split in SPLITS}

    def write(split: str) -> None:
        written[split].append(write_shard(directory / shard_name(split, len(written[split])), waiting[split]))
        waiting[split].clear()

    with progress(f"writing {config.source}", len(split_of), "image") as work:
        for part in ("train", "test"):
            with closing(source.records(part, split_of)) as records:
                for record in records:
                    split = split_of[record.key]
                    if split == "train":
                        record = replace(record, questions=record.questions + record.further)
                    for into, one in (
                        (split, record),
                        *(("close", part) for part in record.closeups if split == "train"),
                    ):
                        waiting[into].append(one)
                        if len(waiting[into]) == config.samples_per_shard:
                            write(into)
                    work.advance()
        for split in SPLITS:
            if waiting[split]:
                write(split)
    for line in counted(written):
        print(line, file=sys.stderr)
    return write_index(directory, config.source, written)


def write_index(
    directory: Path, source: str, splits: Mapping[str, Iterable[Shard]], parts: Iterable[Part] = (Part(),)
) -> Index:
    """List the shards of a directory, which is complete from then on."""
    content = {
        "format": 1,
        "source": source,
        "parts": [asdict(part) for part in parts],
        "splits": {split: [asdict(shard) for shard in splits[split]] for split in SPLITS},
    }
    write_whole(directory / INDEX, json.dumps(content, indent=2))
    return read_index(directory)


def counted(splits: Mapping[str, Iterable[Shard]]) -> Iterator[str]:
    """A line for each split; none for close-ups where there are none."""
    for split, shards in splits.items():
        found = list(shards)
        if split == "close" and not found:
            continue
        images, questions = sum(s.samples for s in found), sum(s.questions for s in found)
        yield f"{split}: {images} images, {questions} questions in {len(found)} shards"


def parse_index(directory: Path) -> Index:
    """The index as it was written, its shards unseen. Raises UserError where there is none that can be
    read."""
    path = directory / INDEX
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {INDEX}, so it is no data directory, or was not written to the end"
        )
    return index_from(path.read_bytes(), directory)


def index_from(content: bytes, directory: Path) -> Index:
    """What `directory`/index.json says. Raises UserError where it is no index."""
    path = directory / INDEX
    try:
        plain = json.loads(content)
        if plain["format"] != 1:
            raise UserError(f"{path} has format {plain['format']}; this version reads format 1")
        splits = {
            split: tuple(Shard(**shard) for shard in plain["splits"].get(split, ())) for split in SPLITS
        }
        parts = tuple(Part(**part) for part in plain.get("parts", [{}]))
        index = Index(directory, plain["source"], splits, parts)
        _check_types(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read as an index of shards ({type(error).__name__}: {error})"
        ) from error
    for shard in chain(*splits.values()):
        if (
            not isinstance(shard.shard, str)
            or shard.shard != os.path.basename(shard.shard)
            or shard.shard in ("", "..")
        ):
            raise UserError(
                f"{path} names the shard {shard.shard!r}; allowed: file names in the same directory"
            )
    return index


def read_index(directory: Path) -> Index:
    """The index of a data directory whose shards on disks are all there. Raises UserError naming the one that
    is not."""
    index = parse_index(directory)
    for shard in chain(*index.splits.values()):
        root = index.parts[shard.part].root
        if is_url(root):
            continue
        path = Path(root or directory) / shard.shard
        if not path.is_file():
            raise UserError(f"{path} is missing, though {INDEX} lists it")
        if path.stat().st_size != shard.bytes:
            raise UserError(f"{path} has {path.stat().st_size} bytes, but {INDEX} says {shard.bytes}")
    return index


def _check_types(index: Index) -> None:
    for part in index.parts:
        if not isinstance(part.root, str) or not isinstance(part.weight, int | float) or not part.weight > 0:
            raise ValueError(f"{part} is no part")
    for shard in chain(*index.splits.values()):
        numbers = (shard.samples, shard.questions, shard.bytes, shard.part)
        if not all(type(n) is int and n >= 0 for n in numbers) or shard.part >= len(index.parts):
            raise ValueError(f"{shard} is no shard")


def _open(config: DataConfig) -> Source:
    source = SOURCES[config.source]
    return source(config.scenes) if isinstance(source, type) else ListedSource(source)


def _divide(train: list[str], test: list[str], config: DataConfig) -> dict[str, str]:
    """Key -> split, for the keys that are kept: a function of the set of keys and of the seed, not of their
    order."""
    twice = [key for key, count in Counter([*train, *test]).items() if count > 1]
    if twice:
        raise UserError(
            f"data.source={config.source} holds the image {twice[0]!r} twice, so splits would overlap"
        )
    train, test = _shuffled(train, config.seed), _shuffled(test, config.seed)
    gate, val = round(config.gate_fraction * len(train)), round(config.val_fraction * len(train))
    splits = {
        "gate": train[:gate],
        "val": train[gate : gate + val],
        "train": train[gate + val :],
        "test": test,
    }
    return {key: split for split, members in splits.items() for key in members[: config.limit]}


def _shuffled(keys: list[str], seed: int) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def write_shard(path: Path, records: Iterable[Record]) -> Shard:
    """Write a shard and the list of its entries, one record in memory at a time. The same records give the
    same bytes."""
    samples = questions = 0
    # owner, mode and time are fixed
    with (
        whole_file(path) as file,
        TarWriter(file, user="", group="", mode=0o444, encoder=False, mtime=0) as tar,
    ):
        for record in records:
            content = {"questions": [_plain(question) for question in record.questions]}
            text = json.dumps(content, ensure_ascii=False).encode()
            tar.write({"__key__": record.key, record.extension: record.image, "json": text})
            samples, questions = samples + 1, questions + len(record.questions)
    write_whole(path.with_name(list_name(path.name)), to_json(scan(path)[0]))
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(path.name, samples, questions, path.stat().st_size, sha256)


def _plain(question: Question) -> dict[str, Any]:
    """Without the ground truth that the source does not know, and what is as by default."""
    plain = dict(vars(question))
    if question.level is None:
        del plain["level"]
    if not question.boxes:
        del plain["boxes"]
    if question.metric == "exact":
        del plain["metric"]
    return plain
