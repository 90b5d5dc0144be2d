"""Shards as a map-style dataset: any sample by its index, so that the order of samples is for a sampler to choose.

Nothing that is read can run code or leave the directory: shards hold plain png, jpg and json members, which are read where
they lie and never extracted. What is broken is recorded as a `Fault`, and no other sample is lost to it.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from pyrskip.data.shards import parse_index
from pyrskip.errors import UserError, choose
from pyrskip.pyramid import fit
from pyrskip.sample import Batch, Question, Sample

logger = logging.getLogger(__name__)

IMAGES = ("png", "jpg", "jpeg")
MAX_OPEN = 256
"""Shards held open at a time by each process."""


@dataclass(frozen=True)
class Fault:
    """Something broken, and what it costs: the sample `key`, or where key is empty the rest of the shard."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}: {self.reason}" if self.key else f"{self.shard}: {self.reason}"


@dataclass(frozen=True)
class _Span:
    """Bytes of a shard."""

    offset: int
    length: int


@dataclass(frozen=True)
class _Entry:
    """Where the sample `key` lies."""

    key: str
    shard: str
    image: _Span
    questions: _Span


class ShardDataset(Dataset[Sample | None]):
    """The samples of one split, in the order of the index. Safe to use in loader workers, forked or spawned.

    size: side of the canvas that images are fitted into, pixels. A sample whose image or questions turn out to be broken is
    None. `faults`: what the scan of the shards found broken, and what was read since, in this process; faults of samples are
    logged as well, once a key. Raises UserError where the directory has no index, or no such split.
    """

    def __init__(self, directory: Path, split: str, size: int) -> None:
        index = parse_index(directory)
        if split not in index.splits:
            raise choose("split", split, index.splits)
        self.faults: list[Fault] = []
        self._directory = directory
        self._size = size
        self._failed: set[str] = set()
        self._descriptors: dict[str, int] = {}
        entries: dict[str, _Entry] = {}
        for shard in index.splits[split]:
            found, faults = _scan(directory / shard.shard)
            self.faults += faults
            for entry in found:
                if entry.key in entries:
                    self.faults.append(Fault(entry.shard, entry.key, f"is in {entries[entry.key].shard} as well"))
                entries.setdefault(entry.key, entry)
        self._entries = list(entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample | None:
        entry, questions = self._entries[index], self.questions(index)
        if questions is None:
            return None
        try:
            with Image.open(io.BytesIO(self._read(entry.shard, entry.image)), formats=("PNG", "JPEG")) as image:
                return Sample(entry.key, fit(image, self._size), questions)
        except Exception as error:  # decoders raise almost anything on broken bytes
            self._record(entry, error)
            return None

    def questions(self, index: int) -> tuple[Question, ...] | None:
        """A sample's questions alone; None where they are broken."""
        entry = self._entries[index]
        try:
            return _parse_questions(self._read(entry.shard, entry.questions))
        except Exception as error:
            self._record(entry, error)
            return None

    def _record(self, entry: "_Entry", error: Exception) -> None:
        if entry.key not in self._failed:
            self._failed.add(entry.key)
            self.faults.append(Fault(entry.shard, entry.key, f"{type(error).__name__}: {error}"))
            logger.warning("%s", self.faults[-1])

    @property
    def image_keys(self) -> list[str]:
        """The key of every sample, by index."""
        return [entry.key for entry in self._entries]

    def _read(self, shard: str, span: _Span) -> bytes:
        if shard not in self._descriptors:
            if len(self._descriptors) == MAX_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[shard] = os.open(self._directory / shard, os.O_RDONLY)
        # pread leaves the position alone, which forked workers share
        content = os.pread(self._descriptors[shard], span.length, span.offset)
        if len(content) != span.length:
            raise EOFError(f"the shard ends {span.length - len(content)} bytes too early")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)


def collate(samples: Sequence[Sample | None], side: int) -> Batch:
    """A batch of the samples that could be read, on a canvas of `side` pixels. Raises UserError where none could."""
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        raise UserError(f"none of the {len(samples)} samples of a batch could be read; the log names what is broken")
    return Batch.collate(readable, side)


def _scan(path: Path) -> tuple[list[_Entry], list[Fault]]:
    """The whole samples of a shard, from the headers of its members alone, and what is wrong with the others."""
    faults: list[Fault] = []
    members: dict[str, dict[str, _Span]] = {}
    length = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length = os.fstat(file.fileno()).st_size
            for member in tar:
                key, extension = _split_name(member.name)
                kind = "image" if extension in IMAGES else extension
                reason = _refusal(member, extension)
                if reason is None and kind in members.get(key, {}):
                    reason = f"has more than one {kind}"
                if reason is None:
                    members.setdefault(key, {})[kind] = _Span(member.offset_data, member.size)
                else:
                    faults.append(Fault(path.name, key, reason))
            # tarfile takes damage and truncation between members for the end, which is marked by a block of zeros
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                faults.append(Fault(path.name, "", f"is damaged or cut off at byte {tar.offset} of {length}"))
    except (OSError, tarfile.TarError, ValueError) as error:
        faults.append(Fault(path.name, "", f"{type(error).__name__}: {error}"))
    entries = []
    for key, spans in members.items():
        missing = [kind for kind in ("image", "json") if kind not in spans]
        if missing:
            faults.append(Fault(path.name, key, f"has no {missing[0]}"))
        elif any(span.offset + span.length > length for span in spans.values()):
            faults.append(Fault(path.name, key, f"is cut off: the shard ends at byte {length}"))
        else:
            entries.append(_Entry(key, path.name, spans["image"], spans["json"]))
    return entries, faults


def _split_name(name: str) -> tuple[str, str]:
    """'a/b.png' -> 'a/b', 'png': as webdataset has it, the key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _refusal(member: tarfile.TarInfo, extension: str) -> str | None:
    """Why a member is not to be read, or None."""
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"{member.name} points out of the shard"
    if not member.isreg() or member.issparse():
        return f"{member.name} is no plain file"
    if extension not in (*IMAGES, "json"):
        return f"{member.name} is none of {', '.join(IMAGES)}, json"
    return None


def _parse_questions(content: bytes) -> tuple[Question, ...]:
    """Raises ValueError, TypeError or KeyError where the content is not as `pyrskip.data.shards` has it."""
    questions = tuple(
        Question(
            _text(q["text"]),
            tuple(_text(answer) for answer in q["answers"]),
            _text(q.get("type", "all")),
            _level(q.get("level")),
            tuple(_box(box) for box in q.get("boxes", ())),
        )
        for q in json.loads(content)["questions"]
    )
    if not questions or not all(q.answers for q in questions):
        raise ValueError("no questions" if not questions else "a question has no answer")
    return questions


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _level(value: object) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"{value!r} is no level")


def _box(value: object) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) and 0 <= v <= 1 for v in value):
        raise ValueError(f"{value!r} is no box")
    x0, y0, x1, y1 = value
    return x0, y0, x1, y1
