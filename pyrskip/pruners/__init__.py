"""Pruners by name: one file each, found by themselves."""

from pyrskip.pruners.inside import InsidePruner, Narrowed, Narrowing
from pyrskip.pruners.pruner import (
    NONE,
    PRUNERS,
    KeepingPruner,
    Kept,
    Prunable,
    Pruner,
    PrunerConfig,
    build_pruner,
    check_pruner,
    pruner_config,
)
from pyrskip.registry import import_modules

import_modules(__name__)

__all__ = [
    "NONE",
    "PRUNERS",
    "InsidePruner",
    "KeepingPruner",
    "Kept",
    "Narrowed",
    "Narrowing",
    "Prunable",
    "Pruner",
    "PrunerConfig",
    "build_pruner",
    "check_pruner",
    "pruner_config",
]
