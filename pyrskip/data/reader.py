"""Shards as a map-style dataset: any sample by its index, so that the order of samples is for a sampler to
choose.

Nothing that is read can run code or leave the directory: shards hold plain pictures and json members, which
are read where they lie and never extracted. What is broken is recorded as a `Fault`, and no other
sample is lost to it.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from pyrskip.data.entries import Entries, cut_off, list_name, parse, scan
from pyrskip.data.faults import Fault, FaultLog
from pyrskip.data.sampler import Parts
from pyrskip.data.shards import Shard, parse_index
from pyrskip.data.storage import LocalStorage, Range, Storage, open_storage
from pyrskip.errors import UserError, unknown_name
from pyrskip.metrics import METRICS
from pyrskip.picture import FORMATS
from pyrskip.pyramid import fit
from pyrskip.sample import Batch, Question, Sample

logger = logging.getLogger(__name__)

GAP = 1 << 14
"""Bytes between an image and its questions up to which they are read at once."""
TOGETHER = 256
"""Lists of entries, or samples' questions, that are read at once."""
T = TypeVar("T")


class ShardDataset(Dataset[Sample | None]):
    """The samples of one split, in the order of the index. Safe to use in loader workers, forked or spawned.

    size: side of the canvas that images are fitted into, pixels. A sample whose image or questions turn out
    to be broken is None. `faults`: what was found broken, first in the shards and then in what was read
    since, in this process; faults of samples are logged as well, once a key. log: gathers them from all
    processes, and stops the run where they are too many. Raises UserError where the directory has no index,
    no such split, or too much that is broken.
    """

    def __init__(self, directory: Path, split: str, size: int, log: FaultLog | None = None) -> None:
        index = parse_index(directory)
        if split not in index.splits:
            raise unknown_name("split", split, index.splits)
        self.directory = directory
        self.faults: list[Fault] = []
        self._size, self._log = size, log
        self._failed: set[str] = set()
        self._storages = [open_storage(part.root or str(directory)) for part in index.parts]
        # shards of a part follow each other, so that an index of the part plus its offset is one of all
        self._shards = sorted(index.splits[split], key=lambda shard: shard.part)
        self._keys: list[str] = []
        shard_of: list[int] = []
        spans = []
        seen: dict[str, tuple[int, int]] = {}  # key -> its shard, and its row there
        found: list[Entries] = []
        for number, (shard, (entries, faults)) in enumerate(zip(self._shards, self._find(), strict=True)):
            prefix = f"{shard.part}-" if len(index.parts) > 1 else ""
            found.append(entries)
            kept = []
            for row, key in enumerate(entries.keys):
                name = prefix + key
                if name in seen:  # other tools count anew in every shard
                    of = self._shards[seen[name][0]]
                    one, other = found[seen[name][0]].spans[seen[name][1]], entries.spans[row]
                    if self._same((of, one.tolist()), (shard, other.tolist())):
                        faults.append(Fault(shard.shard, key, f"is in {of.shard} as well", lost=0))
                        continue
                    while name in seen:
                        name += f"@{PurePosixPath(shard.shard).stem}"
                seen[name] = number, row
                self._keys.append(name)
                kept.append(row)
            shard_of += [number] * len(kept)
            spans.append(entries.spans[kept])
            self._record_found(faults, shard, len(entries.keys))
        self._shard_of = np.asarray(shard_of, dtype=np.int32)
        self._spans = np.concatenate([*spans, np.empty((0, 4), dtype=np.int64)])
        sizes = np.bincount(self._shard_of, minlength=len(self._shards))
        self.parts = Parts(
            tuple(
                tuple(int(n) for n, shard in zip(sizes, self._shards, strict=True) if shard.part == part)
                for part in range(len(index.parts))
            ),
            tuple(part.weight for part in index.parts),
        )
        if log is not None and self.faults:
            log.check()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample | None:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        """Several at once, which costs a server one round of requests."""
        return [
            self.decoded(i, self._sample, *content)
            for i, content in zip(indices, self.raw(indices), strict=True)
        ]

    def __iter__(self) -> Iterator[Sample | None]:
        return (self[i] for i in range(len(self)))

    @property
    def image_keys(self) -> list[str]:
        """The key of every sample, by index."""
        return self._keys

    def questions(self) -> Iterator[tuple[Question, ...] | None]:
        """Of every sample in order, images unread; None where they are broken."""
        for low in range(0, len(self), TOGETHER):
            yield from self.questions_of(range(low, min(low + TOGETHER, len(self))))

    def questions_of(self, indices: Sequence[int]) -> list[tuple[Question, ...] | None]:
        """Of some samples, images unread; None where they are broken."""
        found: dict[int, tuple[Question, ...] | None] = {}
        for part, of_part in self._by_part(indices).items():
            wanted = [
                (self._name(i), start, start + length)
                for i in of_part
                for start, length in [self._spans[i, 2:].tolist()]
            ]
            for i, content in zip(of_part, self._storages[part].ranges(wanted), strict=True):
                found[i] = self.decoded(i, _questions, b"", content)
        return [found[i] for i in indices]

    def raw(self, indices: Sequence[int]) -> list[tuple[bytes | Exception, bytes | Exception]]:
        """The bytes of each sample's image and questions, or why they cannot be read."""
        results: dict[int, tuple[bytes | Exception, bytes | Exception]] = {}
        for part, of_part in self._by_part(indices).items():
            wanted: list[Range] = []
            for i in of_part:
                wanted += _ranges(self._name(i), self._spans[i].tolist())
            found = iter(self._storages[part].ranges(wanted))
            for i in of_part:
                results[i] = _split(found, self._spans[i].tolist())
        return [results[i] for i in indices]

    def _same(self, *places: tuple[Shard, list[int]]) -> bool:
        """Whether the samples at two places have the same bytes."""
        if places[0][1][1::2] != places[1][1][1::2]:
            return False
        one, other = (
            _split(iter(self._storages[shard.part].ranges(_ranges(shard.shard, span))), span)
            for shard, span in places
        )
        return one == other

    def _by_part(self, indices: Sequence[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for i in indices:
            found.setdefault(self._shards[int(self._shard_of[i])].part, []).append(i)
        return found

    def _sample(self, key: str, image: bytes, questions: bytes) -> Sample:
        parsed = parse_questions(questions)
        if not image:
            raise ValueError("the image has no bytes")
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            return Sample(key, fit(opened, self._size), parsed)

    def decoded(
        self,
        index: int,
        decode: Callable[[str, bytes, bytes], T],
        image: bytes | Exception,
        questions: bytes | Exception,
    ) -> T | None:
        """What decode makes of a sample's key and its bytes as `raw` has them, or None and a fault."""
        try:
            for content in (image, questions):
                if isinstance(content, Exception):
                    raise content
            return decode(self._keys[index], image, questions)  # type: ignore[arg-type]
        except UserError:
            raise
        except Exception as error:  # decoders raise almost anything on broken bytes
            self._lose(index, f"{type(error).__name__}: {error}")
            return None

    def lose(self, key: str, reason: str) -> None:
        """Record the sample `key` as broken for what only its use has shown. Raises UserError as the log
        does."""
        self._lose(self._keys.index(key), reason)

    def _lose(self, index: int, reason: str) -> None:
        key = self._keys[index]
        if key not in self._failed:
            self._failed.add(key)
            self._record(Fault(self._name(index), key, reason))
            logger.warning("%s", self.faults[-1])

    def _record(self, fault: Fault) -> None:
        self.faults.append(fault)
        if self._log is not None:
            self._log.add(fault)

    def _record_found(self, faults: list[Fault], shard: Shard, found: int) -> None:
        """Of one shard. What it should hold and does not, and no fault names by its key, is lost to the
        shard's own."""
        unnamed = max(0, shard.samples - found - sum(fault.lost for fault in faults if fault.key))
        own = next((fault for fault in faults if not fault.key), None)
        if own is None and unnamed:
            faults.append(Fault(shard.shard, "", f"holds {found} of {shard.samples} samples", unnamed))
        for fault in faults:
            self._record(replace(fault, lost=unnamed) if fault is own else fault)

    def _find(self) -> Iterator[tuple[Entries, list[Fault]]]:
        """The entries of every shard, from its list if there is a whole one."""
        for number, storage in enumerate(self._storages):
            mine = [shard for shard in self._shards if shard.part == number]
            for start in range(0, len(mine), TOGETHER):
                some = mine[start : start + TOGETHER]
                for shard, content in zip(
                    some, storage.files([list_name(shard.shard) for shard in some]), strict=True
                ):
                    yield _entries(storage, shard, content)

    def _name(self, index: int) -> str:
        return self._shards[int(self._shard_of[index])].shard


class Samples(Protocol):
    """A split's samples, however they are kept."""

    directory: Path
    parts: Parts

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | None: ...

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]: ...

    def questions(self) -> Iterator[tuple[Question, ...] | None]: ...


class Joined(Dataset[Sample | None]):
    """Samples that are trained on early, then those of `data`. early: how many the first are."""

    def __init__(self, first: Samples, data: Samples) -> None:
        self._first, self._data, self.early = first, data, len(first)
        self.directory, self.parts = data.directory, data.parts

    def __len__(self) -> int:
        return self.early + len(self._data)

    def __getitem__(self, index: int) -> Sample | None:
        return self._first[index] if index < self.early else self._data[index - self.early]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        """A batch is of the one or of the other."""
        if max(indices) < self.early:
            return self._first.__getitems__(indices)
        return self._data.__getitems__([index - self.early for index in indices])

    def questions(self) -> Iterator[tuple[Question, ...] | None]:
        yield from self._first.questions()
        yield from self._data.questions()


class Filled(Dataset[Sample | None]):
    """A dataset for training: a batch of which nothing can be read is the next sample that can be, so that no
    rank is left with nothing to learn from. Raises UserError where nothing at all can be read."""

    def __init__(self, data: Samples) -> None:
        self.data, self.parts, self.early = data, data.parts, getattr(data, "early", 0)

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        samples = self.data.__getitems__(indices)
        for step in range(1, len(self) + 1):
            if any(sample is not None for sample in samples):
                return samples
            samples = [self.data[(indices[-1] + step) % len(self)]]
        raise UserError(f"no image of {self.data.directory} can be read; the log names what is broken")

    def __getitem__(self, index: int) -> Sample | None:
        return self.__getitems__([index])[0]


def collate(samples: Sequence[Sample | None], side: int) -> Batch:
    """A batch of the samples that could be read, on a canvas of `side` pixels; of none, if none could."""
    return Batch.collate([sample for sample in samples if sample is not None], side)


def _entries(storage: Storage, shard: Shard, content: bytes | Exception) -> tuple[Entries, list[Fault]]:
    try:
        if isinstance(content, bytes):
            try:
                entries = parse(content)
            except ValueError as error:
                logger.warning(
                    "%s cannot be used, %s is read instead: %s", list_name(shard.shard), shard.shard, error
                )
            else:
                if isinstance(storage, LocalStorage):
                    return cut_off(entries, shard.shard, storage.local(shard.shard).stat().st_size)
                return entries, []
        return scan(storage.local(shard.shard))
    except OSError as error:
        return parse(b'{"keys": [], "spans": []}'), [
            Fault(shard.shard, "", f"{type(error).__name__}: {error}")
        ]


def _ranges(name: str, span: list[int]) -> list[Range]:
    """Of an image and its questions: one where they lie together, else one each."""
    image, image_length, questions, length = span
    start, stop = min(image, questions), max(image + image_length, questions + length)
    if stop - start <= image_length + length + GAP:
        return [(name, start, stop)]
    return [(name, image, image + image_length), (name, questions, questions + length)]


def _split(
    found: Iterator[bytes | Exception], span: list[int]
) -> tuple[bytes | Exception, bytes | Exception]:
    """The contents of `_ranges` -> the image's and the questions'."""
    image, image_length, questions, length = span
    start = min(image, questions)
    first = next(found)
    if len(_ranges("", span)) == 2:
        return first, next(found)
    if isinstance(first, Exception):
        return first, first
    return first[image - start : image - start + image_length], first[
        questions - start : questions - start + length
    ]


def _questions(key: str, image: bytes, questions: bytes) -> tuple[Question, ...]:
    return parse_questions(questions)


def parse_questions(content: bytes) -> tuple[Question, ...]:
    """Raises ValueError, TypeError or KeyError where the content is not as `pyrskip.data.shards` has it."""
    questions = tuple(
        Question(
            _text(q["text"]),
            tuple(_text(answer) for answer in q["answers"]),
            _text(q.get("type", "all")),
            _level(q.get("level")),
            tuple(_box(box) for box in q.get("boxes", ())),
            _metric(q.get("metric", "exact")),
        )
        for q in json.loads(content)["questions"]
    )
    if not questions:
        raise ValueError("no questions")
    if any(not question.answers for question in questions):
        raise ValueError("a question has no answer")
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
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(type(v) in (int, float) and 0 <= v <= 1 for v in value)
    ):
        raise ValueError(f"{value!r} is no box")
    x0, y0, x1, y1 = value
    return x0, y0, x1, y1


def _metric(value: object) -> str:
    if value not in METRICS:
        raise ValueError(f"{value!r} is no metric; allowed: {', '.join(METRICS)}")
    return str(value)
