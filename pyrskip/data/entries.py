"""Where the samples of a shard lie in it: written beside it (`<shard>.json` for `<shard>.tar`), or found from
its headers.

What a shard holds can be read without the list, by going through its headers. With it a shard can be read in
ranges from a server, and damage costs the samples that it hits and no other.
"""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrskip.data.faults import Fault

IMAGES = ("png", "jpg", "jpeg", "webp")

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
    """The whole samples of a shard, from the headers of its members alone, and what is wrong with the
    others."""
    faults: list[Fault] = []
    members: dict[str, dict[str, tuple[int, int]]] = {}
    length = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length = os.fstat(file.fileno()).st_size
            for member in tar:
                key, extension = split_name(member.name)
                kind = "image" if extension in IMAGES else extension
                reason = _refusal(member, extension)
                if reason is None and kind in members.get(key, {}):
                    reason = f"has more than one {kind}"
                if reason is None:
                    members.setdefault(key, {})[kind] = (member.offset_data, member.size)
                else:
                    faults.append(Fault(path.name, key, reason))
            # tarfile takes damage and truncation between members for the end, which is marked by a block of
            # zeros
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                faults.append(Fault(path.name, "", f"is damaged or cut off at byte {tar.offset} of {length}"))
            elif not members and not faults:
                faults.append(Fault(path.name, "", "is empty"))
    except (OSError, tarfile.TarError, ValueError) as error:
        faults.append(Fault(path.name, "", f"{type(error).__name__}: {error}"))
    keys, spans = [], []
    for key, found in members.items():
        missing = [kind for kind in ("image", "json") if kind not in found]
        if missing:
            faults.append(Fault(path.name, key, f"has no {missing[0]}"))
        else:
            keys.append(key)
            spans.append((*found["image"], *found["json"]))
    entries = Entries(tuple(keys), np.asarray(spans, dtype=np.int64).reshape(-1, 4))
    whole, cut = cut_off(entries, path.name, length)
    return whole, faults + cut


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


def _refusal(member: tarfile.TarInfo, extension: str) -> str | None:
    """Why a member is not to be read, or None."""
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return f"{member.name} points out of the shard"
    if not member.isreg() or member.issparse():
        return f"{member.name} is no plain file"
    if extension not in (*IMAGES, "json"):
        return f"{member.name} is none of {', '.join(IMAGES)}, json"
    return None
