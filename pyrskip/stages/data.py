"""Stage data: the images and questions of a source as shards, divided into splits."""

from typing import Any

from pyrskip.config import Config
from pyrskip.data.conversion import convert
from pyrskip.data.convert import FORMATS
from pyrskip.data.faults import FaultLog
from pyrskip.data.gather import gather, read_there
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import WRITTEN, DataConfig, parse_index, prepare
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
