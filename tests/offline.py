"""Reads what a W&B offline run holds."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind a header of its own."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service may still hold the last rows back
    content, at, parts = path.read_bytes(), FILE_HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(parts)
            parts = b""


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows, nested names joined by a dot."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            )
    return rows


def run_record(path: Path) -> Any:
    """What the run says of itself: id, group, job type, tags, config."""
    return next(record.run for record in records(path) if record.HasField("run"))


def offline_runs(directory: Path) -> list[Path]:
    """The .wandb files below a directory, in the order in which they were begun."""
    return sorted(directory.rglob("*.wandb"), key=lambda path: path.parent.name)
