"""Where the samples of a shard lie in it: written beside it (`<shard>.json` for `<shard>.tar`), or found from
its headers.

What a shard holds can be read without the list, by going through its headers. With it a shard can be read in
ranges from a server, and damage costs the samples that it hits and no other.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrskip.data.faults import Fault
from pyrskip.picture import EXTENSIONS

KINDS = ("image", "json")
META = re.compile("__[^/]*__($|/)")
"""Names of members that tell of the shard, not of a sample, as webdataset has them."""

Span = tuple[int, int]
"""Offset and length."""
Spans = NDArray[np.int64]


@dataclass(frozen=True)
class Entries:
    """The whole samples of a shard. spans int64 [n, 4]: offset and length of the image, offset and length of
    the questions."""

    keys: tuple[str, ...]
    spans: Spans

    def rows(self, kept: list[int]) -> "Entries":
        return Entries(tuple(self.keys[i] for i in kept), self.spans[kept])


def list_name(shard: str) -> str:
    """The name of a shard's list of entries."""
    return str(PurePosixPath(shard).with_suffix(".json"))


def to_json(entries: Entries) -> bytes:
    return json.dumps({"keys": entries.keys, "spans": entries.spans.tolist()}).encode()


def parse(content: bytes) -> Entries:
    """Raises ValueError where the content is no list of entries."""
    try:
        plain: dict[str, Any] = json.loads(content)
        keys, spans = plain["keys"], np.asarray(plain["spans"], dtype=np.int64).reshape(-1, 4)
    except (TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) != len(spans):
        raise ValueError(f"{len(spans)} places for other keys than as many texts")
    if (spans < 0).any():
        raise ValueError("a place before the shard")
    return Entries(tuple(keys), spans)


def scan(path: Path) -> tuple[Entries, list[Fault]]:
    """The whole samples of a shard, from the headers of its members alone, and what is wrong with the others.

    Members are grouped as webdataset does it, but wherever they lie: what is neither an image nor json, or
    has no name before its first dot, belongs to no sample and costs none. A key that comes again is a sample
    of its own, unless it has the same bytes.
    """
    faults: list[Fault] = []
    groups: dict[str, list[dict[str, Span]]] = {}
    refused: dict[str, str] = {}
    length = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length = os.fstat(file.fileno()).st_size
            for member in tar:
                key, kind = _place(member.name)
                if kind is None or member.isdir():
                    continue
                of_key, reason = groups.setdefault(key, [{}]), _refusal(member)
                if reason is not None:
                    refused[key] = reason
                    continue
                group = next((group for group in of_key if kind not in group), None)
                if group is None:
                    of_key.append(group := {})
                group[kind] = (member.offset_data, member.size)
            # tarfile takes damage and truncation between members for the end, which is marked by a block of
            # zeros
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                faults.append(Fault(path.name, "", f"is damaged or cut off at byte {tar.offset} of {length}"))
            elif not groups:
                faults.append(Fault(path.name, "", "is empty"))
    except (OSError, tarfile.TarError, ValueError) as error:
        faults.append(Fault(path.name, "", f"{type(error).__name__}: {error}"))
    found = list(_samples(groups, refused, path, faults))
    spans = [(*group["image"], *group["json"]) for _, group in found]
    entries = Entries(tuple(key for key, _ in found), np.asarray(spans, dtype=np.int64).reshape(-1, 4))
    whole, cut = cut_off(entries, path.name, length)
    return whole, faults + cut


def _samples(
    groups: dict[str, list[dict[str, Span]]], refused: dict[str, str], path: Path, faults: list[Fault]
) -> Iterator[tuple[str, dict[str, Span]]]:
    """The whole samples; for each key that has none, or more than is read, a fault is added."""

    def content(group: dict[str, Span]) -> Iterator[bytes]:
        with open(path, "rb") as file:
            for kind in KINDS:
                file.seek(group[kind][0])
                yield file.read(group[kind][1])

    for key, of_key in groups.items():
        base, more = split_name(key)
        if more and base in groups:  # a further field of that sample
            continue
        whole = [group for group in of_key if len(group) == len(KINDS)]
        if whole:
            yield key, whole[0]
        else:
            missing = next(kind for kind in KINDS if kind not in of_key[0])
            faults.append(Fault(path.name, key, refused.get(key, f"has no {missing}")))
            continue
        known = {tuple(content(whole[0]))} if len(whole) > 1 else set()
        for number, group in enumerate(whole[1:], 2):
            if (own := tuple(content(group))) not in known:
                known.add(own)
                yield f"{key}~{number}", group
        twice = next((kind for group in of_key[len(whole) :] for kind in group), None)
        if key in refused or twice:
            why = refused.get(key, f"has more than one {twice}, of which the first is read")
            faults.append(Fault(path.name, key, why, lost=0))


def cut_off(entries: Entries, shard: str, length: int) -> tuple[Entries, list[Fault]]:
    """The entries that lie within `length` bytes, and faults for the others."""
    inside = ((entries.spans[:, [0, 2]] + entries.spans[:, [1, 3]]).max(-1, initial=0) <= length).tolist()
    faults = [
        Fault(shard, key, f"is cut off: the shard ends at byte {length}")
        for key, whole in zip(entries.keys, inside, strict=True)
        if not whole
    ]
    return (entries.rows(np.flatnonzero(inside).tolist()) if faults else entries), faults


def split_name(name: str) -> tuple[str, str]:
    """'a/b.png' -> 'a/b', 'png': as webdataset has it, the key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _place(name: str) -> tuple[str, str | None]:
    """The key and the kind of a member, None for one that belongs to no sample. Where an extension of several
    parts is none, the key ends at the last dot."""
    key, extension = split_name(name)
    if not extension or key.endswith("/") or not key or META.match(name):
        return key, None
    last = extension.rpartition(".")[2]
    kind = "image" if last in EXTENSIONS else "json" if last == "json" else None
    return (key if last == extension else name[: -len(last) - 1]), kind


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member is not to be read, or None."""
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"{member.name} points out of the shard"
    if not member.isreg() or member.issparse():
        return f"{member.name} is no plain file"
    return None
