"""What flows from the shards to the models: samples (an image with all its questions) and batches of them.

Axes: I images, B questions, S canvas side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Question:
    """A question on an image. answers: one or more accepted; type: the group it is reported under.

    level: the coarsest pyramid level of the stored image that shows the answer; boxes: what holds it, x0, y0, x1, y1 as shares
    of the image's width and height. Ground truth where a source knows it, for evaluation alone: nothing learns from it.
    metric: how an answer is scored, a name of `pyrskip.metrics.METRICS`.
    """

    text: str
    answers: tuple[str, ...]
    type: str = "all"
    level: int | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    metric: str = "exact"


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [3, h, w] fitted to the canvas, with all its questions. key: unique in the data set."""

    key: str
    image: Tensor
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Batch:
    """B questions on I images. An image is held once however many questions it has, so it is encoded at most once.

    image uint8 [I, 3, S, S], zero in padding; size int64 [I, 2]: valid rows, columns; image_of int64 [B]: the row of `image`
    that each question is about.
    """

    image: Tensor
    size: Tensor
    image_of: Tensor
    questions: tuple[Question, ...]
    keys: tuple[str, ...]
    image_keys: tuple[str, ...]

    @classmethod
    def collate(cls, samples: Sequence[Sample], side: int) -> "Batch":
        """Pad the samples' images to side x side and line up their questions. keys are '<image key>/<number>'."""
        image = torch.zeros(len(samples), 3, side, side, dtype=torch.uint8)
        size = torch.empty(len(samples), 2, dtype=torch.int64)
        for row, sample in enumerate(samples):
            _, height, width = sample.image.shape
            image[row, :, :height, :width] = sample.image
            size[row] = torch.tensor([height, width])
        return cls(
            image=image,
            size=size,
            image_of=torch.tensor([row for row, s in enumerate(samples) for _ in s.questions], dtype=torch.int64),
            questions=tuple(q for s in samples for q in s.questions),
            keys=tuple(f"{s.key}/{i}" for s in samples for i in range(len(s.questions))),
            image_keys=tuple(s.key for s in samples),
        )

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def texts(self) -> list[str]:
        return [q.text for q in self.questions]

    @property
    def types(self) -> list[str]:
        return [q.type for q in self.questions]

    def rows(self, index: Sequence[int]) -> "Batch":
        """The batch of these questions alone, with the images that they are about."""
        images, image_of = torch.unique(self.image_of[list(index)], return_inverse=True)
        return Batch(
            image=self.image[images],
            size=self.size[images],
            image_of=image_of,
            questions=tuple(self.questions[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
            image_keys=tuple(self.image_keys[i] for i in images.tolist()),
        )

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(
            self.image.to(device),
            self.size.to(device),
            self.image_of.to(device),
            self.questions,
            self.keys,
            self.image_keys,
        )
