"""What files hold, as one digest: wherever they lie, and whenever they were copied.

A file that was digested before is not read again while its stamp is the same: size, inode and the times of
its last changes. Of a URL the stamp is all that is known, as its server gives it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache

from pyrskip.data.storage import filesystem, is_url

Known = dict[str, tuple[str, str]]
"""Path -> stamp and digest."""
STAMPS = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "Last-Modified")
_KNOWN: Known = {}


def content_of(paths: Iterable[str], known: Mapping[str, Iterable[str]] | None = None) -> tuple[str, Known]:
    """One digest of all files, in their order, and what is known of each. known: what was, before. Raises
    OSError where one is not there; clients of stores raise their own."""
    for path, (stamp, digest) in (known or {}).items():
        _KNOWN.setdefault(path, (stamp, digest))
    found: Known = {}
    for path in paths:
        path = path if is_url(path) else os.path.abspath(path)
        found[path] = _remote(path) if is_url(path) else _local(path)
        _KNOWN[path] = found[path]
    whole = "".join(digest for _, digest in found.values())
    return hashlib.sha256(whole.encode()).hexdigest()[:12], found


def _local(path: str) -> tuple[str, str]:
    about = os.stat(path)
    stamp = f"{about.st_size} {about.st_ino} {about.st_mtime_ns} {about.st_ctime_ns}"
    if path in _KNOWN and _KNOWN[path][0] == stamp:
        return _KNOWN[path]
    with open(path, "rb") as file:
        return stamp, hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _remote(url: str) -> tuple[str, str]:
    about = filesystem(url).info(url)
    stamp = " ".join(f"{name}={about[name]}" for name in STAMPS if about.get(name) is not None)
    return stamp, hashlib.sha256(stamp.encode()).hexdigest()
