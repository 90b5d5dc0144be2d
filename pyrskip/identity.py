"""Which keys of a config identify what is made from it: all, but those whose field's metadata says otherwise.

A key marked HOW says where or how something runs or is shown, and not what. One marked PER_RANK counts times
the ranks: as many samples are seen with half of them on twice the ranks. One marked `read_where` belongs to
some values of another key of its group alone.
"""

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

HOW: dict[str, Any] = {"identity": "how"}
PER_RANK: dict[str, Any] = {"identity": "per rank"}
RANKS = " x trainer.devices x trainer.nodes"
"""Ends the name of a key that is marked PER_RANK."""


def read_where(key: str, values: Collection[object]) -> dict[str, Any]:
    """Metadata of a field that is read where the group's `key` has one of these values."""
    return {"read where": (key, values)}


def unread(group: Any) -> set[str]:
    """The fields of a dataclass that its own values leave unread."""
    return {
        f.name
        for f in fields(group)
        if "read where" in f.metadata
        and getattr(group, f.metadata["read where"][0]) not in f.metadata["read where"][1]
    }


def identity(group: Any, ranks: int, prefix: str = "") -> dict[str, Any]:
    """Flat: dotted key -> value of all that identifies, as JSON has it. ranks: devices x nodes."""
    found: dict[str, Any] = {}
    left_out = unread(group)
    for f in fields(group):
        mark, key, value = f.metadata.get("identity"), prefix + f.name, getattr(group, f.name)
        if mark == "how" or f.name in left_out:
            continue
        if is_dataclass(value):
            found |= identity(value, ranks, f"{key}.")
        elif mark == "per rank":
            found[key + RANKS] = value * ranks
        elif isinstance(value, dict) and value:
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found
