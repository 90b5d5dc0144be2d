"""A run: its directory, and what each of its stages was made from.

A stage's stage.json holds its fingerprint: the config keys that it depends on and the digests of the stages
before it. Same fingerprint: a finished stage is skipped, an unfinished one resumed. Changed: refused, naming
the key.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from pyrskip.config import Config, to_plain
from pyrskip.data.convert.config import FORMATS
from pyrskip.data.shards import WRITTEN
from pyrskip.errors import UserError
from pyrskip.files import run_lock, write_json
from pyrskip.scenes.config import EDITION
from pyrskip.tracking.versions import versions

# what each stage depends on, beside the stages before it; the rest of `trainer` is where and how fast, not
# what
LEARNING = ("trainer.accumulate", "trainer.gradient_clip", "trainer.precision")
KEYS: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "cache": ("pyramid", "vision"),
    "flex": (
        "pyramid",
        "vision",
        "text",
        "language",
        "flex",
        "loader.batch_images",
        "loader.order",
        *LEARNING,
    ),
    "rollouts": ("actions", "budget", "cost"),
    "gate": ("gate", "rule", "reward", "seed", "seeds", "ablations", *LEARNING),
    "frontier": ("evaluation",),
    "compare": ("compare", "gate", "reward", "seed"),
}
# of the rollouts of a served model, which no flex stage stands behind
SERVED = ("model", "pyramid", "vision", "text")
# where a served model is and how fast it is asked, not what it answers
PLACES = (
    *(f"model.remote.{k}" for k in ("url", "key", "parallel", "timeout", "retries")),
    "model.hf.at_once",
)
# keys of a source that another source ignores, and keys that say how, not what; a key at its first default is
# not told, so that a run of before it was there is still the same run
OF_SOURCES = {"scenes": ("scenes",), "files": FORMATS, "shards": (WRITTEN,)}
UNTOLD = ("data.cache", "data.max_bad_fraction", "data.scenes.workers", "data.files.workers")
OF_SCENES = "the scenes' edition"
SINCE: dict[str, object] = {
    "loader.order": "samples",
    "compare.others": [],
    "vision.components": None,
    "flex.dropout": 0.0,
    "gate.confidence": False,
    OF_SCENES: 1,
}


@dataclass(frozen=True)
class Run:
    """A config with its directories. nodes: what the loggers are instantiated from. prunes: whether its gate
    is given up where it falls behind other jobs' of its sweep."""

    config: Config
    nodes: dict[str, Any]
    prunes: bool = False

    @property
    def root(self) -> Path:
        return self.config.directory

    @cached_property
    def borrowed(self) -> Path | None:
        if self.config.borrow is None:
            return None
        path = Path(self.config.borrow)
        if not (path / "config.json").is_file():
            raise UserError(
                f"from={self.config.borrow} is no run: it holds no config.json; allowed: a run's directory"
            )
        return path

    def fingerprint(self, stage: str) -> dict[str, Any]:
        """Flat: the stage's config keys, and the digest of the stage before it."""
        plain = to_plain(self.config)
        flat: dict[str, Any] = {}
        keys = KEYS[stage] + SERVED * (stage == "rollouts" and self.config.model.served)
        for key in keys:
            value = plain
            for part in key.split("."):
                value = value[part]
            flat |= _flatten(value, key)
        ignored = tuple(
            f"data.{group}."
            for group, sources in OF_SOURCES.items()
            if self.config.data.source not in sources
        )
        flat = {
            k: v
            for k, v in flat.items()
            if not f"{k}.".startswith(ignored) and k not in UNTOLD and SINCE.get(k) != v
        }
        others = tuple(f"model.{name}." for name in ("hf", "remote") if name != self.config.model.name)
        flat = {k: v for k, v in flat.items() if k not in PLACES and not k.startswith(others)}
        if stage == "data" and self.config.data.source == "scenes":
            flat[OF_SCENES] = EDITION
        # cached maps are what the encoder gives, so nothing depends on the cache
        before = ["data"] if stage == "cache" else [s for s in stands_on(self.config, stage) if s != "cache"]
        if before:
            flat[f"the {before[-1]} stage"] = digest(self.fingerprint(before[-1]))
        return flat

    @property
    def cache(self) -> Path | None:
        """The directory of the cached maps, if they are to be used."""
        if self.config.data.cache == "run":
            return self.directory("cache")
        return None if self.config.data.cache is None else Path(self.config.data.cache)

    def directory(self, stage: str) -> Path:
        """Where a stage is: borrowed if another run has it and this one does not. Raises UserError where that
        was made from another config, unless `stages` begins behind data and lists it."""
        own = self.root / stage
        if self.borrowed is None or (own / "stage.json").exists():
            return own
        state = _read_state(self.borrowed / stage)
        if state is None or not state["done"]:
            return own
        if stage in ("gate", "frontier", "compare"):
            return own
        listed = self.config.stages
        if (
            stage in listed
            and listed[0] != "data"
            and state["fingerprint"] != json.loads(json.dumps(self.fingerprint(stage)))
        ):
            return own  # a run that says from where on it differs does those stages itself
        self._check(stage, state, self.borrowed / stage)
        return self.borrowed / stage

    def done(self, stage: str) -> bool:
        """Whether the stage is finished. Raises UserError where it was made from another config."""
        directory = self.directory(stage)
        state = _read_state(directory)
        if state is None:
            return False
        self._check(stage, state, directory)
        return bool(state["done"])

    def mark(self, stage: str, done: bool) -> None:
        if first_rank():
            state = {"fingerprint": self.fingerprint(stage), "done": done}
            write_json(self.root / stage / "stage.json", state)

    def _check(self, stage: str, state: dict[str, Any], directory: Path) -> None:
        now = json.loads(json.dumps(self.fingerprint(stage)))
        for key in sorted(now.keys() | state["fingerprint"].keys(), key=lambda k: k.startswith("the ")):
            old, new = state["fingerprint"].get(key, SINCE.get(key)), now.get(key, SINCE.get(key))
            if old == new:
                continue
            way = "start another run with name=<other>"
            if directory != self.root / stage:
                rest = [s for s in self.config.chain[self.config.chain.index(stage) :] if s != "compare"]
                way = (
                    "leave out from="
                    if stage == "data"
                    else f"have this run do it with stages=[{','.join(rest)}]"
                )
            if key.startswith("the "):
                raise UserError(
                    f"{directory} was made with another {key[4:]} ({old}, now {new}); allowed: {way}"
                )
            raise UserError(
                f"{directory} was made with {key}={old}, this config has {key}={new}; keep {old}, or {way}"
            )

    def check_before(self, stage: str, wanted: Sequence[str] = ()) -> None:
        """Every earlier stage must be finished, or among the stages that this run will do."""
        for before in stands_on(self.config, stage):
            if before not in wanted and not self.done(before):
                raise UserError(
                    f"stage {stage} needs {self.root / before}, which is not finished; "
                    f"add {before} to stages, or borrow it with from=<run>"
                )

    def keep_config(self) -> None:
        if first_rank():
            borrow = self.borrowed and str(self.borrowed.resolve())
            write_json(self.root / "config.json", to_plain(self.config) | {"borrow": borrow})
            write_json(self.root / "versions.json", versions())

    def lock(self) -> AbstractContextManager[None]:
        """The run's lock, which the first rank holds for all."""
        return run_lock(self.root) if first_rank() else nullcontext()

    def say(self, line: str) -> None:
        if first_rank() and not self.config.trainer.quiet:
            Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)

    def wait_for(self, stage: str) -> None:
        """Wait for the first rank, which alone runs this stage; there is no process group yet."""
        limit = self.config.trainer.timeout
        for _ in range(2 * limit):
            if self.done(stage):
                return
            time.sleep(0.5)
        raise UserError(
            f"{self.root / stage} was not finished by the first rank within trainer.timeout={limit} s; "
            "allowed: run "
            f"stages=[{stage}] alone before, or wait longer"
        )


def stands_on(config: Config, stage: str) -> tuple[str, ...]:
    """The stages that a stage stands on: a comparison trains gates of its own, from rollouts."""
    return config.chain[: config.chain.index("gate" if stage == "compare" else stage)]


def first_rank() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def digest(fingerprint: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, inner in value.items() for k, v in _flatten(inner, f"{key}.{name}").items()}
    return {key: value}


def _read_state(directory: Path) -> dict[str, Any] | None:
    path = directory / "stage.json"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        if (
            not isinstance(state, dict)
            or not isinstance(state.get("fingerprint"), dict)
            or "done" not in state
        ):
            raise ValueError("no fingerprint in it")
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete {directory} to run that stage again"
        ) from error
    return state
