"""Learned skip gates over image pyramids. `pyrskip.load` runs an export; importing this costs nothing until
then."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrskip.inference import load
    from pyrskip.inference.hub import push_to_hub

__all__ = ["load", "push_to_hub"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from pyrskip.inference import load

        return load
    if name == "push_to_hub":
        from pyrskip.inference.hub import push_to_hub

        return push_to_hub
    raise AttributeError(f"module 'pyrskip' has no attribute {name!r}")
