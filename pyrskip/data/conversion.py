"""Files of one's own -> shards: streaming, resumable, in parallel, the images' bytes as they are.

Two passes. The first lists: every annotation file is read once, and what it tells goes into a plan on the
disk. The second writes: images are divided into splits and shards, and each shard is written from its images
by one of several threads.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from pyrskip.data.convert import FORMATS, Format, Row
from pyrskip.data.convert.rows import image_extension
from pyrskip.data.entries import list_name
from pyrskip.data.faults import Fault, too_many
from pyrskip.data.plan import Plan, Planned
from pyrskip.data.shards import INDEX, DataConfig, Index, Shard, counted, shard_name, write_index, write_shard
from pyrskip.data.storage import expand
from pyrskip.errors import UserError
from pyrskip.files import write_json, writing
from pyrskip.progress import progress
from pyrskip.record import Record

PLAN, REPORT = "plan.sqlite", "conversion.json"
AHEAD = 2
"""Shards that each thread may be ahead of the one that is noted."""
Done = tuple[Shard | None, list[Fault]]


def convert(config: DataConfig, directory: Path) -> Index:
    """Write the shards of the files that config.files names, their index, and `conversion.json`: what was
    skipped or broken.

    A conversion that was killed goes on when it is called again. The same files give the same bytes, whatever
    the number of threads. Raises UserError where nothing can be read, or more than config.max_bad_fraction of
    the questions is broken.
    """
    form = FORMATS[config.source](config.files)
    form.check()
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / INDEX).unlink(missing_ok=True)
    try:
        plan = Plan(directory / PLAN)
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{directory / PLAN} cannot be read ({error}); delete it to convert from the start"
        ) from error
    try:
        _list(plan, form, config, directory)
        _write(plan, form, config, directory)
        splits = plan.written()
        report, found = _report(plan), plan.questions()
    except sqlite3.OperationalError as error:
        raise UserError(f"{directory / PLAN} cannot be written: {error}") from error
    finally:
        plan.close()
    if not splits["train"]:
        raise UserError(
            f"data.files.path={config.files.path} gives no image to train on; {json.dumps(report)}"
        )
    write_json(directory / REPORT, report)
    index = write_index(directory, config.source, splits)
    (directory / PLAN).unlink()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    kept = sum(shard.questions for shards in splits.values() for shard in shards)
    for line in (*counted(splits), f"kept: {kept} of {found} questions", *_lines_of(report)):
        console.print(line, markup=False)
    return index


def _list(plan: Plan, form: Format, config: DataConfig, directory: Path) -> None:
    """The first pass. A file that was listed to its end before is not read again."""
    files = config.files
    wanted: list[tuple[str, str, Iterator[Row]]] = []
    for part, pattern in (("train", files.path), ("test", files.test)):
        for path in expand(pattern) if pattern else ():
            wanted.append((path, part, form.rows(path)))
    # of both parts: where an image is says nothing of what is asked about it
    wanted += [(path, "train", rows) for path, rows in form.image_rows()]
    with progress(f"listing {config.source}", len(wanted), "file") as work:
        for path, part, rows in wanted:
            if not plan.listed(path, part):
                plan.note(path, part, _guarded(rows, path))
            work.advance()
    if plan.undivided():
        plan.divide(config)
    _check(plan, config, directory)


def _guarded(rows: Iterator[Row], path: str) -> Iterator[Row]:
    """A file that breaks off ends no other."""
    try:
        yield from rows
    except UserError:
        raise
    except Exception as error:  # readers of formats raise their own
        yield Fault(path, "", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _write(plan: Plan, form: Format, config: DataConfig, directory: Path) -> None:
    """The second pass: all shards that are not written yet."""
    shards, workers = plan.shards(), config.files.workers
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(shards))
    with progress(f"writing {config.source}", len(shards), "shard") as work:

        def note(split: str, number: int, done: Done) -> None:
            plan.wrote(split, number, *done)
            if done[1]:
                _check(plan, config, directory, writing=True)
            work.advance()

        if workers <= 1:
            for split, number in shards:
                samples = list(plan.samples(split, number))
                note(split, number, write_planned(directory / shard_name(split, number), form, samples))
            return
        # threads: nearly all of the work is reading, hashing and writing, which leave the interpreter free
        pool = ThreadPoolExecutor(workers)
        waiting: dict[Future[Done], tuple[str, int]] = {}
        try:
            while shards or waiting:
                while shards and len(waiting) < AHEAD * workers:
                    split, number = shards.pop(0)
                    path, samples = directory / shard_name(split, number), list(plan.samples(split, number))
                    waiting[pool.submit(write_planned, path, form, samples)] = (split, number)
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    note(*waiting.pop(future), future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def write_planned(path: Path, form: Format, samples: Sequence[Planned]) -> Done:
    """Write one shard of a plan. An image that cannot be read is a fault and loses no other."""
    faults: list[Fault] = []

    def records() -> Iterator[Record]:
        for key, place, questions in samples:
            try:
                content = form.image(place)
                record = Record(key, content, image_extension(content), questions)
            except Exception as error:  # stores and formats raise their own
                place = place.replace("\t", ":")
                faults.append(
                    Fault(path.name, key, f"{place}: {type(error).__name__}: {error}", len(questions))
                )
                continue
            yield record

    shard = write_shard(path, records())
    if not shard.samples:
        for empty in (path, path.with_name(list_name(path.name))):
            empty.unlink()
        return None, faults
    return shard, faults


def _check(plan: Plan, config: DataConfig, directory: Path, writing: bool = False) -> None:
    faults = plan.faults()
    lost, whole = sum(fault.lost for fault in faults), plan.questions()
    if lost > config.max_bad_fraction * whole:
        write_json(directory / REPORT, _report(plan))
        at_least = "at least " if writing and plan.shards() else ""
        what = f"{at_least}{lost} of {whole} questions"
        raise too_many(faults, what, config.max_bad_fraction, str(directory))


def _report(plan: Plan) -> dict[str, Any]:
    return {
        "rows": plan.rows(),
        "skipped": plan.skipped(),
        "broken": [asdict(fault) for fault in plan.faults()],
    }


def _lines_of(report: dict[str, Any]) -> Iterator[str]:
    for reason, rows in report["skipped"].items():
        yield f"skipped: {rows} x {reason}"
    if report["broken"]:
        first = Fault(**report["broken"][0])
        lost = sum(fault["lost"] for fault in report["broken"])
        yield f"broken and left out: {lost}, listed in {REPORT}; the first: {first}"
