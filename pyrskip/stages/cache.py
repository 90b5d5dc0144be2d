"""Stage cache: the frozen encoder's maps of all images; and the encoder and its inputs, cached or not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pyrskip.config import Config
from pyrskip.data.cache import CachedDataset, check_cache, fingerprint, read_components, write_cache
from pyrskip.data.reader import Samples, ShardDataset, collate
from pyrskip.data.shards import SPLITS
from pyrskip.models.tiles import moments
from pyrskip.models.vision import VisionEncoder, map_stride
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch
from pyrskip.stages.data import DATA, samples_of
from pyrskip.stages.run import Run, Stage
from pyrskip.training.trainer import build_trainer

STATISTICS = 300
"""Training images that statistics of the encoder's features are taken from."""


def cache_maps(run: Run) -> None:
    config, pyramid, directory = run.config, pyramid_of(run.config), run.root / CACHE.name
    # maps serve runs of any precision
    trainer = build_trainer(replace(config.trainer, precision="32-true"), directory, title=CACHE.name)
    vision = encoder_of(run)
    data = {split: samples_of(run, split) for split in SPLITS}
    made = fingerprint(config.vision, vision, pyramid, run.directory(DATA))
    images, workers = config.loader.rollout_images, config.loader.workers
    write_cache(trainer, vision, pyramid, data, directory, made, images, workers)


def cache_of(run: Run) -> Path | None:
    """The directory of the cached maps, if they are to be used."""
    place = run.config.data.cache
    if place == "run":
        return run.directory(CACHE)
    return None if place is None else Path(place)


def check_cache_of(run: Run, vision: VisionEncoder) -> None:
    data, directory = run.directory(DATA) if run.done(DATA) else None, cache_of(run)
    assert directory is not None
    check_cache(directory, fingerprint(run.config.vision, vision, pyramid_of(run.config), data))


def inputs_of(
    run: Run, split: str, vision: VisionEncoder, glances: bool = False
) -> ShardDataset | CachedDataset:
    """A split's samples, with their maps where those are cached. glances: whether signals read pixels."""
    data, directory = samples_of(run, split), cache_of(run)
    if directory is None:
        return data
    check_cache_of(run, vision)
    return CachedDataset(data, directory, split, pyramid_of(run.config), glances)


def encoder_of(run: Run) -> VisionEncoder:
    """The encoder that the config asks for. Its components are those that its cache holds, or are fitted to
    training images; a cache of another run that holds no such ones is left to `check_cache_of`."""
    config, directory = run.config, cache_of(run)
    torch.manual_seed(config.flex.seed)  # weights=none are drawn, and in every stage alike
    vision = VisionEncoder(config.vision)
    if vision.components is None or (directory is not None and read_components(directory, vision.components)):
        return vision
    if config.data.cache in (None, "run"):
        batches = statistics(samples_of(run, "train"), config.loader.rollout_images, config.pyramid.size)
        whole = vision.whole()
        share = vision.components.fit(*moments(whole, pyramid_of(config), batches))
        run.say(
            f"{vision.channels} components of {whole.channels} channels keep {share:.1%} of their variance"
        )
    return vision


def statistics(data: Samples, images: int, side: int) -> Iterator[Batch]:
    """Batches of images that statistics are taken from, the same for every run: STATISTICS of them, drawn
    from all of the data, of which the first may be but one part of a mixture. What cannot be read is left
    out."""
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:STATISTICS].sort().values
    for rows in drawn.split(images):
        batch = collate(data.__getitems__(rows.tolist()), side)
        if len(batch):
            yield batch


def pyramid_of(config: Config) -> Pyramid:
    p = config.pyramid
    return Pyramid(p.size, p.levels, map_stride(config.vision), tuple(p.grid), p.halo)


CACHE = Stage(
    "cache",
    cache_maps,
    after=DATA,
    keys=("pyramid", "vision"),
    passes=True,  # cached maps are what the encoder gives
    applies=lambda config: config.data.cache == "run",
    without="data.cache=null",
)
