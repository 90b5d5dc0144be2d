"""The named inputs of gates: one file each, found by themselves."""

from pyrskip.registry import import_modules
from pyrskip.signals.signal import PER, SIGNALS, SOURCES, Per, Signal, read, shapes_of, signals_of

import_modules(__name__)

__all__ = ["PER", "SIGNALS", "SOURCES", "Per", "Signal", "read", "shapes_of", "signals_of"]
