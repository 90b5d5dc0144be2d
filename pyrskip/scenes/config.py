"""Which scenes to make."""

from dataclasses import dataclass, field

from pyrskip.errors import UserError
from pyrskip.identity import HOW
from pyrskip.scenes.questions import MIX, check_types

SMALLEST, LARGEST, UNIT = 256, 2048, 64
EDITION = 2
"""What is drawn from the same config: shards of another edition are other images. 2: larger large objects."""


@dataclass(frozen=True)
class SceneConfig:
    """size: side of the square images, pixels. train, test: images of the source's own splits. types: what is
    asked.

    further: at most so many questions of each image that flex trains on, beside the mix; other splits have
    the mix alone. closeups: at most so many of each image that flex trains on, with `further` questions each,
    for it to train on first. workers: processes that draw, 0 for none; the images do not depend on it.
    """

    size: int = 512
    train: int = 4000
    test: int = 1000
    types: tuple[str, ...] = tuple(MIX)
    further: int = 0
    closeups: int = 0
    seed: int = 0
    workers: int = field(default=0, metadata=HOW)

    def check(self) -> None:
        """Raises UserError where a value is not allowed: called where the source is scenes, as other sources
        ignore it all."""
        if self.size % UNIT or not SMALLEST <= self.size <= LARGEST:
            near = min(max(round(self.size / UNIT) * UNIT, SMALLEST), LARGEST)
            raise UserError(
                f"data.scenes.size={self.size} does not fit a pyramid's levels; "
                f"allowed: multiples of {UNIT} from {SMALLEST} to {LARGEST}, such as {near}"
            )
        for name in ("train", "test"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"data.scenes.{name}={getattr(self, name)} is too small; allowed: at least 1 image"
                )
        for name in ("further", "closeups", "seed", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"data.scenes.{name}={getattr(self, name)} is negative; allowed: at least 0")
        if self.closeups and not self.further:
            raise UserError(
                f"data.scenes.closeups={self.closeups} have none but further questions; allowed: "
                "data.scenes.further of at least 1, or no close-ups"
            )
        check_types(self.types)
