"""Trackers may fail, trainings may not: what a logger raises is reported once, and the others go on."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

# failures in a row after which a tracker is left alone: each may have waited for a network
PATIENCE = 3


class Guard(Logger):
    """Hands everything to `inner`. key: what the config calls it. lasting: it is never left alone (the
    CSV)."""

    def __init__(self, inner: Logger, key: str, lasting: bool = False) -> None:
        super().__init__()
        self.inner, self.key, self.lasting = inner, key, lasting
        self._failures = 0
        self._warned: set[str] = set()

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        return self.inner.save_dir

    @property
    def log_dir(self) -> str | None:
        return self.inner.log_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.lasting:
            self._tell_not_finite(metrics, step)
        self.attempt(self.inner.log_metrics, dict(metrics), step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.attempt(self.inner.log_hyperparams, params, *args, **kwargs)

    @rank_zero_only
    def save(self) -> None:
        self.attempt(self.inner.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.attempt(self.inner.finalize, status)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.attempt(self.inner.after_save_checkpoint, checkpoint_callback)

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call, unless it failed too often. What it raises is reported the first time."""
        if self._failures >= PATIENCE and not self.lasting:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever a tracker's own package raises
            self._failures += 1
            kept = "it is kept and tried again" if self.lasting else "csv/metrics.csv has every line"
            self._tell("failed", f"logger.{self.key} failed ({reason(error)}); training goes on, {kept}")
        else:
            self._failures = 0

    def _tell_not_finite(self, metrics: Mapping[str, float], step: int | None) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._tell(name, f"{name} is {float(value)} at step {step}; training goes on, said once")

    def _tell(self, what: str, line: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            tell(line)


def tell(line: str) -> None:
    """A warning on stderr, from the first rank."""
    if first_rank():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def first_rank() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
