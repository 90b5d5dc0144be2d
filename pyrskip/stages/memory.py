"""More tiles than memory allows: what grows with tiles and selections, compared with what there is before any
work.

Of what a run allocates these grow fastest with T, the tiles, and with the decisions of a question, S listed,
two outside of the list and K drawn: what a pass of the rollouts tries, the rollout tables, and a gate's step.
What an encoder and a language model hold depends on pixels and tokens; where that does not fit an
accelerator, a pass is done in halves, and a training step says so.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrskip.config import Config
from pyrskip.data.shards import parse_index
from pyrskip.decision import MAX_ACTIONS, count
from pyrskip.errors import UserError
from pyrskip.gates.gate import GATES
from pyrskip.rollouts.table import OUTSIDE
from pyrskip.stages.cache import pyramid_of
from pyrskip.stages.data import DATA
from pyrskip.stages.gate import GATE
from pyrskip.stages.rollouts import ROLLED, ROLLOUTS
from pyrskip.stages.run import Run

REALISED = 170
"""Bytes for each tile of a decision while a pass realises it: what is asked, and the pairs of int64 and
float64 that rows and columns are computed with (`pyrskip.decision.realise`)."""
TOLD = 32
"""Bytes of a decision's score, probability and three costs in a rollout table."""
WRITTEN = 2
"""How often a table is in memory while it is written: in the parts that it is joined from, and joined."""
COMPARED = 8
"""Bytes of a decision's relative cost, twice, where a gate learns from a table."""


@dataclass(frozen=True)
class Need:
    """bytes: of what; ways: keys that it grows with, each with its value and what is added to that."""

    what: str
    bytes: float
    ways: tuple[tuple[str, int, int], ...]

    def fits_with(self, limit: int) -> str:
        """The first key that alone makes it fit, with the most that it may be."""
        for key, value, added in self.ways:
            most = int((value + added) * limit / self.bytes) - added
            if value and most >= 1:
                return f"{key}={most} or less"
        return "fewer tiles (pyramid.grid) or selections (actions)"


def check_memory(run: Run) -> None:
    """Raises UserError, with both sizes and a key that makes it fit, where more is needed than there is.
    Before there are data, for a question an image and no table."""
    config = run.config
    actions = count(pyramid_of(config), config.budget, config.actions)
    if actions > MAX_ACTIONS:
        return  # too many to be listed, whatever the memory
    listed = parse_index(run.directory(DATA)).splits if run.done(DATA) else {}
    splits = {
        split: (sum(s.samples for s in listed[split]), sum(s.questions for s in listed[split]))
        for split in ROLLED
        if split in listed
    }
    if ROLLOUTS.name in config.stages and not run.done(ROLLOUTS):
        _check(rolled_out(config, actions, splits), machine(), "this machine")
    if GATE.name in config.stages and not run.done(GATE):
        # the question alone starts CUDA, which no process may have before it forks
        forks = config.trainer.strategy == "ddp_fork"
        on_gpu = config.trainer.accelerator in ("gpu", "cuda", "auto") and not forks
        on_gpu = on_gpu and torch.cuda.is_available()
        limit = torch.cuda.get_device_properties(0).total_memory if on_gpu else machine()
        _check(learned(config, actions, splits), limit, "the accelerator" if on_gpu else "this machine")


def rolled_out(config: Config, actions: int, splits: dict[str, tuple[int, int]]) -> Iterator[Need]:
    """What the rollouts hold. splits: images and questions of each; actions: that are listed."""
    tiles, drawn, ranks = config.pyramid.tiles, config.actions.drawn, config.trainer.devices
    columns = actions + len(OUTSIDE) + drawn
    each = max((questions / max(1, images) for images, questions in splits.values()), default=1.0)
    images = config.loader.rollout_images
    questions = each * images * ranks
    ways = _ways(config, actions)
    yield Need(
        f"a pass of the rollouts, {columns} decisions on {tiles} tiles for each of {questions:.0f} questions",
        questions * columns * tiles * REALISED,
        (("loader.rollout_images", images, 0), *ways),
    )
    tried = {split: 0 if split == "test" else drawn for split in splits}  # nothing learns from test
    tables = {split: splits[split][1] * _row(actions, of, tiles) for split, of in tried.items()}
    if tables:
        split = max(tables, key=lambda name: tables[name])
        yield Need(
            f"a table of the rollouts, {actions + len(OUTSIDE) + tried[split]} decisions on {tiles} tiles "
            f"for each of {splits[split][1]} questions of {split}",
            tables[split] * WRITTEN,
            ways,
        )


def learned(config: Config, actions: int, splits: dict[str, tuple[int, int]]) -> Iterator[Need]:
    """What a gate's training holds: a step's vectors of tiles, and the tables that it learns from and is
    validated on."""
    tiles, drawn = config.pyramid.tiles, config.actions.drawn
    rows = 1 if config.rule.online else config.rule.batch
    yield Need(
        f"a step of gate.name={config.gate.name} on {tiles} tiles for each of {rows} questions",
        rows * GATES[config.gate.name].memory(config.gate, tiles),
        () if config.rule.online else (("rule.batch", rows, 0),),
    )
    columns = actions + len(OUTSIDE) + drawn
    questions = sum(splits[split][1] for split in ("gate", "val") if split in splits)
    yield Need(
        f"a gate that learns from {columns} decisions on {tiles} tiles for each of {questions} questions",
        questions * (_row(actions, drawn, tiles) + columns * COMPARED),
        _ways(config, actions),
    )


def machine(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or what its control groups allow, which lie
    in `root` and are named in `own`."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kind, group = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        base, name = (root / kind, "memory.limit_in_bytes") if kind else (root, "memory.max")
        place = base / group.lstrip("/")
        for path in (place, *place.parents):
            if path.is_relative_to(base) and (path / name).is_file():
                said = (path / name).read_text().strip()
                found += [int(said)] if said.isdigit() else []
    return min(found)


def _row(actions: int, drawn: int, tiles: int) -> int:
    """Bytes of a question's row of a rollout table: what comes of its decisions, and those drawn."""
    return (actions + len(OUTSIDE) + drawn) * TOLD + drawn * tiles


def _ways(config: Config, actions: int) -> tuple[tuple[str, int, int], ...]:
    drawn, outside = config.actions.drawn, len(OUTSIDE)
    sample = min(config.actions.sample or 0, actions)
    return ("actions.drawn", drawn, actions + outside), ("actions.sample", sample, outside + drawn)


def _check(needs: Iterator[Need], limit: int, place: str) -> None:
    for need in needs:
        if need.bytes > limit:
            raise UserError(
                f"not enough memory for {need.what}: that takes {need.bytes / 1e9:,.1f} GB, and {place} has "
                f"{limit / 1e9:.1f} GB; allowed: {need.fits_with(limit)}"
            )
