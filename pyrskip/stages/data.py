"""Stage data: the images and questions of a source as shards, divided into splits."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyrskip.data.content import Known, content_of
from pyrskip.data.conversion import convert
from pyrskip.data.convert import FORMATS
from pyrskip.data.faults import FaultLog
from pyrskip.data.gather import gather, read_there
from pyrskip.data.proposal import longer_sides, propose, said
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import INDEX, SPLITS, WRITTEN, DataConfig, parse_index, prepare
from pyrskip.data.storage import expand
from pyrskip.errors import UserError
from pyrskip.files import write_json
from pyrskip.scenes.config import EDITION
from pyrskip.stages.run import Run, Stage

CONTENT = "the content of data.files"
"""In the fingerprint of a data stage."""
KNOWN = "files.json"
"""In its directory: what is known of each file that it was made from."""


def prepare_data(run: Run) -> None:
    config, directory = run.config.data, run.root / DATA.name
    found = _content(config, None)
    if found:
        write_json(directory / KNOWN, found[1])
    if config.source in FORMATS:
        convert(config, directory)
        _propose_pyramid(run)
    elif config.source == WRITTEN:
        gather(config.shards, directory)
    else:
        prepare(config, directory)


def _propose_pyramid(run: Run) -> None:
    """Say which pyramid the pictures ask for, where the run has another."""
    pyramid = run.config.pyramid
    sides = longer_sides(ShardDataset(run.root / DATA.name, "train", pyramid.size))
    if sides and propose(sides) != (pyramid.size, pyramid.levels):
        run.say(f"{said(sides)}; this run has {pyramid.size} and {pyramid.levels}")


def check_source(config: DataConfig) -> None:
    """Refuse data that is not there. Raises UserError."""
    if config.source in FORMATS:
        FORMATS[config.source](config.files).check()
    if config.source == WRITTEN:
        for path in config.shards.paths:
            read_there(path)


def check_splits(run: Run, splits: Iterable[str]) -> None:
    """Refuse data of which one of these splits has no image. Raises UserError."""
    listed = parse_index(run.directory(DATA)).splits
    images = {split: sum(shard.samples for shard in listed[split]) for split in SPLITS if split != "close"}
    empty = [split for split in splits if not images[split]]
    if empty:
        shares = ["data.gate_fraction", "data.val_fraction"]
        shares += ["data.files.test_fraction"] * (run.config.data.source in FORMATS)
        raise UserError(
            f"{run.directory(DATA)} has no image for {' and '.join(empty)} "
            f"({', '.join(f'{split}: {number}' for split, number in images.items())}); allowed: at least one "
            f"for each, from more images or other shares of them ({', '.join(shares)}), with another name="
        )


def samples_of(run: Run, split: str) -> ShardDataset:
    data = ShardDataset(run.directory(DATA), split, run.config.pyramid.size, fault_log(run, split))
    if data.faults:
        report_faults(run, split)
    return data


def fault_log(run: Run, split: str) -> FaultLog:
    images = sum(shard.samples for shard in parse_index(run.directory(DATA)).splits[split])
    return FaultLog(run.root / "faults" / split, images, run.config.data.max_bad_fraction)


def report_faults(run: Run, split: str) -> None:
    found = fault_log(run, split).summary()
    for line in found["first"]:
        run.say(f"broken, left out: {line}")
    if found["lost"]:
        run.say(
            f"{split}: {found['lost']} of {found['images']} images lost; {run.root / 'faults' / split} lists "
            "them"
        )


def _more(run: Run) -> dict[str, Any]:
    """What the files of a source hold. Files that are gone, and those of a run that kept no digest, count as
    unchanged."""
    config, recorded = run.config.data, run.recorded(DATA)
    if config.source == "scenes":
        return {"the scenes' edition": EDITION}
    if recorded is not None and CONTENT not in recorded[1]:
        return {}
    found = _content(config, recorded[0] if recorded else None)
    now = found[0] if found else recorded[1][CONTENT] if recorded else None
    return {} if now is None else {CONTENT: now}


def _content(config: DataConfig, directory: Path | None) -> tuple[str, Known] | None:
    """The digest of a source's files, and what is known of each; None where it reads none, or one is gone.
    directory: of a data stage that may have read them."""
    try:
        if config.source in FORMATS:
            form = FORMATS[config.source](config.files)
            paths = [path for pattern in form.patterns() if pattern for path in expand(pattern)]
            paths = [path for path in paths if not os.path.isdir(path)]
        elif config.source == WRITTEN:
            paths = [f"{path.rstrip('/')}/{INDEX}" for path in config.shards.paths]
        else:
            return None
        kept = directory / KNOWN if directory else None
        return content_of(paths, json.loads(kept.read_text()) if kept and kept.is_file() else None)
    except Exception:  # clients of stores raise their own
        return None


DATA = Stage("data", prepare_data, keys=("data",), more=_more, alone=True)
