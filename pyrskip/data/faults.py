"""What is broken in data: each thing named and counted, by all processes of a run together."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyrskip.errors import UserError

LISTED = 10
"""Faults that a message lists; files hold them all."""


@dataclass(frozen=True)
class Fault:
    """Something broken: the sample `key` of a shard or row `key` of a file, or where key is empty, what is
    left of it.

    lost: samples that it costs.
    """

    shard: str
    key: str
    reason: str
    lost: int = 1

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}: {self.reason}" if self.key else f"{self.shard}: {self.reason}"


class FaultLog:
    """The faults of one split of a run, from every rank and loader worker, over every resumption.

    Each process writes a file of its own in `folder`, so that none waits for another. images: of the split,
    broken ones included. allowed: the share of them that may be lost. Nothing is written before there is a
    fault.
    """

    def __init__(self, folder: Path, images: int, allowed: float) -> None:
        self._folder, self._images, self._allowed = folder, images, allowed
        self._unchecked = 0

    def add(self, fault: Fault) -> None:
        """Raises UserError, with the list, once more is lost than is allowed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(fault)) + "\n"
        with open(
            self._folder / f"{socket.gethostname()}-{os.getpid()}.jsonl", "a", encoding="utf-8"
        ) as file:
            file.write(line)
        self._unchecked += fault.lost
        # every process looks at what all have lost each time that it lost a hundredth of what is allowed
        if self._unchecked * 100 > self._allowed * self._images:
            self._unchecked = 0
            self.check()

    def check(self) -> None:
        faults = self.read()
        lost = sum(fault.lost for fault in faults)
        if lost > self._allowed * self._images:
            raise too_many(
                faults,
                f"{self._folder.name}: {lost} of {self._images} images",
                self._allowed,
                str(self._folder),
            )

    def read(self) -> list[Fault]:
        """Each fault once, ordered by shard and key."""
        found: dict[tuple[str, str], Fault] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    fault = Fault(**json.loads(line))
                except (ValueError, TypeError):  # a killed process's last line
                    continue
                found.setdefault((fault.shard, fault.key), fault)
        return [found[name] for name in sorted(found)]

    def summary(self) -> dict[str, Any]:
        """For a report: how much is lost, and the first that are."""
        faults = self.read()
        return {
            "images": self._images,
            "lost": sum(f.lost for f in faults),
            "first": [str(f) for f in faults[:LISTED]],
        }


def too_many(faults: Sequence[Fault], what: str, allowed: float, where: str) -> UserError:
    """The error that ends a run or a conversion. what: is broken; where: all faults are written."""
    listed = "; ".join(str(fault) for fault in faults[:LISTED])
    more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return UserError(
        f"{what} are broken, more than data.max_bad_fraction={allowed}: {listed}{more}; mend them and delete "
        f"{where}, or allow more"
    )
