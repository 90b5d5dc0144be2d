"""Files that are whole or not there, their digests, and the lock of a directory that one process at a time
may write."""

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import normalize

from pyrskip.errors import UserError

DIGITS = 12
"""Digits of a digest."""
PATIENCE = 20
"""Seconds that a process waits for what is left of a killed one to release a directory."""
# what the system says where a disk takes no more
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def there(path: str) -> str:
    """A path as the disk spells it: a letter with an accent may be one character there, or two."""
    if path.isascii() or os.path.lexists(path):
        return path
    found = ""
    for part in path.split("/"):
        found += next((form for form in forms(part) if os.path.lexists(found + form)), part) + "/"
    return found[:-1]


def forms(name: str) -> list[str]:
    """A name as it is, and its letters with accents as one character and as two."""
    return list(dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name))))


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Where to write a file that then takes the name `path`: once all of it is on the disk, or never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name once all of it is on the disk, and leaves nothing behind otherwise.

    Raises UserError where it cannot be written.
    """
    with writing(path), whole_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, text in UTF-8, whole or not at all. Raises UserError where it cannot be written."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """As `write_whole`."""
    write_whole(path, json.dumps(content, indent=1))


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Where to write a directory that then takes the name `path`, which is empty or not there: all of it, or
    never. Raises UserError where it cannot be written."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(path):
            part.mkdir(parents=True)
            yield part
            if path.exists():
                path.rmdir()
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def file_digest(path: Path) -> str:
    """The first digits of a file's SHA-256. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def folder_digest(folder: Path, kinds: Collection[str]) -> str:
    """One digest of a folder's files with these endings, as `file_digest`."""
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
    return hashlib.sha256("".join(f"{p.name} {file_digest(p)}" for p in files).encode()).hexdigest()[:DIGITS]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an OSError is one sentence that names `path`. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to a run's or a sweep's directory meanwhile.

    The system releases the lock when its process ends, however it does. Raises UserError where another
    process holds it, or where the disk takes no more.
    """
    from filelock import FileLock, Timeout  # of the training extra, and files are written without it

    lock, holder = FileLock(directory / ".lock"), directory / ".holder"
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            by = holder.read_text() if holder.exists() else "another process"
            raise UserError(
                f"{directory} is in use by {by}; allowed: wait for its end, or another name="
            ) from error
    try:
        write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{directory} cannot be written: {error}; make room and run the same command again"
        ) from error
    finally:
        lock.release()
