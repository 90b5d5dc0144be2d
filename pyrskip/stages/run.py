"""A run: its directory, and what each of its stages was made from.

A stage's stage.json holds its fingerprint: the config keys that it depends on and the digest of the stage
before it. Same fingerprint: a finished stage is skipped, an unfinished one resumed. Changed: refused, naming
the key.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback
from rich.console import Console

from pyrskip.config import STAGES, Config, read_saved, to_plain
from pyrskip.errors import UserError
from pyrskip.files import run_lock, write_json
from pyrskip.identity import RANKS, identity
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.tracking.guard import first_rank
from pyrskip.tracking.loggers import Job
from pyrskip.tracking.versions import versions


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of every run. name: of its directory. work: does it. after: the stage that it follows.

    keys: groups and single keys of the config that it depends on, beside the stages that it follows; more:
    what else identifies it. passes: nothing that follows depends on what it left. applies: whether a run of
    this config has it; without: what to write for one that has it not. alone: the first rank works alone.
    borrowed: other runs may take it over; once: a sweep's jobs must not each make the same one. replans: it
    may go on with other ranks, with loader.replan. reads: splits of the data that must hold an image. whole:
    whether all that it left can be read; lacks: what a config needs of a finished one in a directory and does
    not find there, '' where it finds all.
    """

    name: str
    work: Callable[["Run"], None]
    keys: tuple[str, ...]
    after: "Stage | None" = None
    more: Callable[["Run"], dict[str, Any]] = lambda run: {}
    passes: bool = False
    applies: Callable[[Config], bool] = lambda config: True
    without: str = ""
    alone: bool = False
    borrowed: bool = True
    once: bool = False
    replans: bool = False
    reads: tuple[str, ...] = ()
    whole: Callable[["Run"], bool] = lambda run: True
    lacks: Callable[[Config, Path], str] = lambda config, directory: ""

    def before(self, config: Config) -> tuple["Stage", ...]:
        """The stages of such a run that it stands on, the first one first."""
        if self.after is None:
            return ()
        return (*self.after.before(config), *((self.after,) if self.after.applies(config) else ()))


@dataclass(frozen=True)
class Run:
    """A config with its directories. nodes: what the loggers are instantiated from. stopper: (a job's
    directory, its validation rollouts) -> a callback of its first gate's training, which may raise Pruned."""

    config: Config
    nodes: dict[str, Any]
    stopper: Callable[[Path, TableEnvironment], Callback] | None = None

    @property
    def root(self) -> Path:
        return self.config.directory

    @cached_property
    def lenders(self) -> tuple[Path, ...]:
        """The directories that stages are borrowed from: of the run in from=, of the one that it borrowed
        from, and so on. Raises UserError where the first holds no run."""
        found: list[Path] = []
        place = self.config.borrow
        while place is not None and Path(place).resolve() not in [path.resolve() for path in found]:
            if found and not (Path(place) / "config.json").is_file():
                break  # it may have been moved, and nothing of it may be needed
            found.append(Path(place))
            place = read_saved(place, "from").get("borrow")
        return tuple(found)

    def fingerprint(self, stage: Stage) -> dict[str, Any]:
        """Flat: the stage's config keys, and the digest of the stage before it."""
        flat = select(self.config, *stage.keys) | stage.more(self)
        before = [s for s in stage.before(self.config) if not s.passes]
        if before:
            # the batch may change within a run (loader.replan), and is compared by its own stage alone
            made = self.fingerprint(before[-1])
            flat[f"the {before[-1].name} stage"] = digest({k: v for k, v in made.items() if RANKS not in k})
        return flat

    def recorded(self, stage: Stage) -> tuple[Path, dict[str, Any]] | None:
        """Where a stage was begun, here or in a run to borrow from, and its fingerprint then, unchecked."""
        for directory in (self.root / stage.name, *(path / stage.name for path in self.lenders)):
            state = _read_state(directory)
            if state is not None:
                return directory, state["fingerprint"]
        return None

    def directory(self, stage: Stage) -> Path:
        """Where a stage is: borrowed if another run has it and this one does not. Raises UserError where that
        was made from another config, unless `stages` begins behind data and lists it."""
        own, listed = self.root / stage.name, self.config.stages
        if not stage.borrowed or (own / "stage.json").exists():
            return own
        begun = ((path / stage.name, _read_state(path / stage.name)) for path in self.lenders)
        there, state = next(((path, state) for path, state in begun if state is not None), (own, None))
        if state is None or not state["done"]:
            return own
        try:
            self._check(stage, state, there)
        except UserError:
            if stage.name in listed and listed[0] != STAGES[0]:
                return own  # a run that says from where on it differs does those stages itself
            raise
        return there

    def done(self, stage: Stage) -> bool:
        """Whether the stage is finished. Raises UserError where it was made from another config."""
        directory = self.directory(stage)
        state = _read_state(directory)
        if state is None:
            return False
        self._check(stage, state, directory)
        return bool(state["done"]) and stage.whole(self)

    def mark(self, stage: Stage, done: bool) -> None:
        if first_rank():
            state = {"fingerprint": self.fingerprint(stage), "done": done}
            write_json(self.root / stage.name / "stage.json", state)

    def _check(self, stage: Stage, state: dict[str, Any], directory: Path) -> None:
        was, now = state["fingerprint"], self.fingerprint(stage)

        def last(key: str) -> tuple[bool, bool, str]:
            """Keys that both know come first, and what other stages led to comes last."""
            return key.startswith("the "), (key in was) != (key in now), key

        for key in sorted(was.keys() | now.keys(), key=last):
            old, new = was.get(key), now.get(key)
            if old == new or (stage.replans and self.config.loader.replan and key.endswith(RANKS)):
                continue
            way = self._way_out(stage, directory)
            if key.startswith("the "):
                raise UserError(
                    f"{directory} was made with another {key[4:]} ({old}, now {new}); allowed: {way}"
                )
            raise UserError(
                f"{directory} was made with {key}={old}, this config has {key}={new}; keep {old}, or {way}"
            )
        missing = state["done"] and stage.lacks(self.config, directory)
        if missing:
            raise UserError(
                f"{directory} was made without {missing}; allowed: {self._way_out(stage, directory)}"
            )

    def _way_out(self, stage: Stage, directory: Path) -> str:
        """What to do where a stage that is there is not this config's."""
        if directory == self.root / stage.name:
            return "start another run with name=<other>"
        if stage.after is None:
            return "leave out from="
        rest = [s for s in STAGES[STAGES.index(stage.name) :] if s in Config.stages]
        return f"have this run do it with stages=[{','.join(rest)}]"

    def check_before(self, stage: Stage, wanted: tuple[str, ...] = ()) -> None:
        """Every earlier stage must be finished, or among the stages that this run will do."""
        for before in stage.before(self.config):
            if before.name not in wanted and not self.done(before):
                without = f", or do without: {before.without}" if before.without else ""
                raise UserError(
                    f"stage {stage.name} needs {self.root / before.name}, which is not finished; "
                    f"add {before.name} to stages, or borrow it with from=<run>{without}"
                )

    def keep_config(self) -> None:
        if first_rank():
            borrow = str(self.lenders[0].resolve()) if self.lenders else None
            write_json(self.root / "config.json", to_plain(self.config) | {"borrow": borrow})
            write_json(self.root / "versions.json", versions())

    def lock(self) -> AbstractContextManager[None]:
        """The lock of its directory, which the first rank holds for all."""
        return run_lock(self.root) if first_rank() else nullcontext()

    def job(self, name: str) -> Job:
        """What loggers are to know of a training, or of a stage."""
        config = self.config
        tags = (config.data.source, config.rule.name, config.gate.name, config.gate.policy)
        return Job(config.name, name, tags, to_plain(config) | {"versions": versions()}, config.trainer.quiet)

    def say(self, line: str) -> None:
        if first_rank() and not self.config.trainer.quiet:
            Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)

    def wait_for(self, stage: Stage) -> None:
        """Wait for the first rank, which alone runs this stage; there is no process group yet."""
        limit = self.config.trainer.timeout
        for _ in range(2 * limit):
            if self.done(stage):
                return
            time.sleep(0.5)
        raise UserError(
            f"{self.root / stage.name} was not finished by the first rank within trainer.timeout={limit} s; "
            f"allowed: run stages=[{stage.name}] alone before, or wait longer"
        )


def select(config: Config, *keys: str) -> dict[str, Any]:
    """What identifies, of these groups and single keys of a config: flat, as `pyrskip.identity` has it."""
    wanted = tuple(f"{key}." for key in keys)
    flat = identity(config, config.trainer.devices * config.trainer.nodes)
    return {key: value for key, value in flat.items() if f"{key.removesuffix(RANKS)}.".startswith(wanted)}


def digest(fingerprint: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:12]


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
