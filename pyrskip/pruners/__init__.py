"""Pruners by name: one file each, found by themselves."""

from pyrskip.pruners.pruner import NONE, PRUNERS, Prunable, Pruner, PrunerConfig, build_pruner, check_pruner
from pyrskip.registry import import_modules

import_modules(__name__)

__all__ = ["NONE", "PRUNERS", "Prunable", "Pruner", "PrunerConfig", "build_pruner", "check_pruner"]
