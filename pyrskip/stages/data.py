"""Stage data: the images and questions of a source as shards, divided into splits."""

from collections.abc import Iterable
from typing import Any

from pyrskip.config import Config
from pyrskip.data.conversion import convert
from pyrskip.data.convert import FORMATS
from pyrskip.data.faults import FaultLog
from pyrskip.data.gather import gather, read_there
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import SPLITS, WRITTEN, DataConfig, parse_index, prepare
from pyrskip.errors import UserError
from pyrskip.scenes.config import EDITION
from pyrskip.stages.run import Run, Stage


def prepare_data(run: Run) -> None:
    config, directory = run.config.data, run.root / DATA.name
    if config.source in FORMATS:
        convert(config, directory)
    elif config.source == WRITTEN:
        gather(config.shards, directory)
    else:
        prepare(config, directory)


def check_source(config: DataConfig) -> None:
    """Refuse data that is not there. Raises UserError."""
    if config.source in FORMATS:
        FORMATS[config.source](config.files).check()
    if config.source == WRITTEN:
        for path in config.shards.paths:
            read_there(path)


def check_splits(run: Run, splits: Iterable[str]) -> None:
    """Refuse data of which one of these splits has no image. Raises UserError."""
    held = parse_index(run.directory(DATA)).splits
    images = {split: sum(shard.samples for shard in held[split]) for split in SPLITS if split != "close"}
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


def _edition(config: Config) -> dict[str, Any]:
    return {"the scenes' edition": EDITION} if config.data.source == "scenes" else {}


DATA = Stage("data", prepare_data, keys=("data",), more=_edition, alone=True)
