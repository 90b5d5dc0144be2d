"""Scenes: generated high-resolution images whose questions have a known answer to 'how closely must one
look?'.

See docs/scenes-data.md for the types of questions, the thresholds and where the icons, fonts and photographs
come from.
"""

import io
from collections import deque
from collections.abc import Container, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.record import Record
from pyrskip.scenes.assets import load_assets
from pyrskip.scenes.closeup import closeups
from pyrskip.scenes.config import SceneConfig
from pyrskip.scenes.further import further_questions
from pyrskip.scenes.scene import make_scene

QUALITY = 92
FURTHER = 1
"""Sets the randomness of further questions apart from a scene's own, so that they change neither images nor
other questions."""
AHEAD = 8
"""Images that each worker may be ahead of the one that is written."""


@dataclass(frozen=True)
class SceneSource:
    """The source `scenes`: the same bytes whatever the number of workers."""

    config: SceneConfig

    def keys(self, split: str) -> list[str]:
        return [_key(split, index) for index in range(getattr(self.config, split))]

    def records(self, split: str, keep: Container[str]) -> Generator[Record]:
        """Those of the split whose key is kept, in order; no other is drawn. Raises UserError where fonts are
        missing."""
        load_assets()
        kept = (index for index, key in enumerate(self.keys(split)) if key in keep)
        if not self.config.workers:
            for index in kept:
                yield make_record(self.config, split, index)
            return
        pool = ProcessPoolExecutor(self.config.workers)
        waiting: deque[Future[Record]] = deque()
        try:
            for index in kept:
                waiting.append(pool.submit(make_record, self.config, split, index))
                if len(waiting) > AHEAD * self.config.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"data.scenes.workers={self.config.workers}: a process that draws scenes was killed, for "
                "want of memory perhaps; allowed: fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def make_record(config: SceneConfig, split: str, index: int) -> Record:
    """The scene of this number."""
    scene, key = make_scene(config, split, index), _key(split, index)
    record = Record(key, _jpeg(scene.paint()), "jpg", scene.questions)
    if split != "train" or not config.further:
        return record
    rng = np.random.default_rng([config.seed, index, FURTHER])
    further = further_questions(scene, config.further, rng)
    found = enumerate(closeups(scene, config.closeups, config.further, rng))
    parts = tuple(Record(f"{key}-{i}", _jpeg(picture), "jpg", questions) for i, (picture, questions) in found)
    return replace(record, further=further, closeups=parts)


def _jpeg(picture: Image.Image) -> bytes:
    """With full resolution of colour too: it is what tiny objects are asked for."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue()


def _key(split: str, index: int) -> str:
    return f"{split}-{index:06d}"
