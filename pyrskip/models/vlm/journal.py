"""Replies of a server as they come, so that a run that is killed has lost those on their way alone.

A line of JSON a reply, in a file a process. A line that broke off is as if it had not been written.
"""

import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

from pyrskip.files import writing
from pyrskip.models.vlm.client import Reply, Request

FILES = "requests-*.jsonl"


class Journal:
    """replies: by a request's key, those that processes before this one were given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.replies = {entry["key"]: _reply(entry) for entry in entries(directory)}
        self._lock = Lock()
        self._file: int | None = None

    def add(self, request: Request, reply: Reply) -> None:
        """Raises UserError where the disk takes no more."""
        line = json.dumps({"key": request.key, "kept": request.kept, **asdict(reply)})
        with self._lock, writing(self.directory):
            if self._file is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                path = self.directory / FILES.replace("*", f"{socket.gethostname()}-{os.getpid()}")
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            # in one call, behind the end of what may have broken off
            os.write(self._file, f"\n{line}".encode())

    def sync(self) -> None:
        """Have the disk hold what was added: a kill takes nothing that was added, a power cut what was added
        since."""
        if self._file is not None:
            with writing(self.directory):
                os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def entries(directory: Path) -> Iterator[dict[str, Any]]:
    """key, kept and a reply's members, of every reply in a journal."""
    for path in sorted(directory.glob(FILES)):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                _reply(entry)
            except (ValueError, KeyError, TypeError):
                continue
            yield entry


def remove(directory: Path) -> None:
    """A journal, of all processes."""
    for path in directory.glob(FILES):
        path.unlink(missing_ok=True)


def by_decision(directory: Path) -> dict[tuple[int, ...], dict[str, float | None]]:
    """Of the answers in a journal, by the tiles that they were shown: how many, and medians of their prompts'
    tokens, the seconds to their first piece and to their end, None where they are not told."""
    found: dict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries(directory):
        if entry["kept"] is not None:
            found[tuple(entry["kept"])].append(entry)
    return {
        kept: {
            "requests": len(of),
            "prompt_tokens": _median(of, "tokens"),
            "seconds_to_first_token": _median(of, "first"),
            "seconds": _median(of, "total"),
        }
        for kept, of in sorted(found.items())
    }


def _median(of: list[dict[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in of if entry[name] is not None]
    return median(known) if known else None


def _reply(entry: dict[str, Any]) -> Reply:
    logprobs = entry["logprobs"]
    return Reply(
        entry["text"],
        entry["tokens"],
        entry["first"],
        entry["total"],
        None if logprobs is None else tuple(logprobs),
    )
