"""What flows from the shards to the models: samples (an image with all its questions) and batches of them.

Axes: I images, B questions, S canvas side in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyrskip.transfer import sent


@dataclass(frozen=True)
class Question:
    """A question on an image. answers: one or more accepted; type: the group it is reported under.

    level: the coarsest pyramid level of the stored image that shows the answer; boxes: what holds it, x0, y0,
    x1, y1 as shares of the image's width and height. Ground truth where a source knows it, for evaluation
    alone: nothing learns from it. metric: how an answer is scored, a name of `pyrskip.metrics.METRICS`.
    """

    text: str
    answers: tuple[str, ...]
    type: str = "all"
    level: int | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    metric: str = "exact"


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [3, h, w] fitted to the canvas, with all its questions. key: unique in the data set.

    maps: where a cache holds them, the encoder's map of each tile, [rows, columns, C] half, the glance's
    float32; the image is blank then, and glance, where something reads pixels, the coarsest level [3, s, s]
    in 0..1, zero in padding.
    """

    key: str
    image: Tensor
    questions: tuple[Question, ...]
    maps: tuple[Tensor, ...] | None = None
    glance: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """B questions on I images. An image is held once however many questions it has, so it is encoded at most
    once.

    image uint8 [I, 3, S, S], zero in padding; size int64 [I, 2]: valid rows, columns; image_of int64 [B]: the
    row of `image` that each question is about. maps: None, or from a cache each tile's map [I, C, rows,
    columns] half, the glance's float32, zero in padding; the images are blank then, and glance, if it is
    there, their coarsest level [I, 3, s, s] in 0..1. known: size and image_of on the CPU, of a batch that was
    moved from there.
    """

    image: Tensor
    size: Tensor
    image_of: Tensor
    questions: tuple[Question, ...]
    keys: tuple[str, ...]
    image_keys: tuple[str, ...]
    maps: tuple[Tensor, ...] | None = None
    known: tuple[Tensor, Tensor] | None = None
    glance: Tensor | None = None

    @classmethod
    def collate(cls, samples: Sequence[Sample], side: int) -> "Batch":
        """Pad the samples' images to side x side and line up their questions. keys are '<image
        key>/<number>'."""
        size = torch.tensor([sample.image.shape[1:] for sample in samples]).view(-1, 2)
        maps = [sample.maps for sample in samples if sample.maps is not None]
        assert len(maps) in (0, len(samples)), "samples come from a cache, or do not"
        glances = [sample.glance for sample in samples if sample.glance is not None]
        if maps:
            image = torch.zeros(1, dtype=torch.uint8).expand(len(samples), 3, side, side)
        else:
            image = torch.zeros(len(samples), 3, side, side, dtype=torch.uint8)
            for row, sample in enumerate(samples):
                image[row, :, : size[row, 0], : size[row, 1]] = sample.image
        return cls(
            image=image,
            size=size,
            image_of=torch.tensor(
                [row for row, s in enumerate(samples) for _ in s.questions], dtype=torch.int64
            ),
            questions=tuple(q for s in samples for q in s.questions),
            keys=tuple(f"{s.key}/{i}" for s in samples for i in range(len(s.questions))),
            image_keys=tuple(s.key for s in samples),
            maps=tuple(map(_pad, zip(*maps, strict=True))) or None,
            glance=torch.stack(glances) if glances else None,
        )

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def texts(self) -> list[str]:
        return [q.text for q in self.questions]

    @property
    def types(self) -> list[str]:
        return [q.type for q in self.questions]

    @property
    def on_cpu(self) -> tuple[Tensor, Tensor]:
        """size and image_of on the CPU, where shapes are made: nothing waits for an accelerator."""
        return self.known or (self.size.cpu(), self.image_of.cpu())

    def of_images(self, keep: Tensor) -> Tensor:
        """The tiles that any question of an image keeps. keep [B, T] bool -> [I, T] bool, both on the CPU."""
        kept = torch.zeros(len(self.image), keep.shape[1], dtype=torch.int64)
        return kept.index_add(0, self.on_cpu[1], keep.long()) > 0

    def rows(self, index: Sequence[int]) -> "Batch":
        """The batch of these questions alone, with the images that they are about."""
        images, image_of = torch.unique(self.on_cpu[1][list(index)], return_inverse=True)
        return self._taken(images, image_of, index)

    def _taken(self, images: Tensor, image_of: Tensor, index: Sequence[int]) -> "Batch":
        """These images, and these questions on them. images, image_of: on the CPU."""
        known = self.on_cpu[0][images], image_of
        blank = self.maps is not None  # one number, seen many times
        return Batch(
            image=self.image[:1].expand(len(images), -1, -1, -1) if blank else self.image[images],
            size=sent(known[0], self.size.device),
            image_of=sent(image_of, self.size.device),
            questions=tuple(self.questions[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
            image_keys=tuple(self.image_keys[i] for i in images.tolist()),
            maps=None if self.maps is None else tuple(m[images] for m in self.maps),
            known=self.known and known,
            glance=None if self.glance is None else self.glance[images],
        )

    def part(self, low: int, high: int) -> "Batch":
        """The batch of these images alone, from low to before high, with their questions."""
        of = self.on_cpu[1]
        index = [i for i, image in enumerate(of.tolist()) if low <= image < high]
        return self._taken(torch.arange(low, high), of[index] - low, index)

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        return self._mapped(lambda tensor: sent(tensor, torch.device(device)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Between processes one tensor goes through shared memory, for each costs a file handle and a
        handshake; a blank image is none."""
        if self.size.device.type != "cpu":
            return super().__reduce_ex__(protocol)
        image: Tensor | tuple[int, ...] = self.image
        kinds: list[tuple[torch.dtype, torch.Size]] = []
        flat = None
        if self.maps is not None:
            image, kinds = tuple(self.image.shape), [(m.dtype, m.shape) for m in self.maps]
            # the glance first: longer numbers begin at a multiple of their length
            parts = [m.permute(0, 2, 3, 1).flatten().view(torch.uint8) for m in reversed(self.maps)]
            flat = torch.cat(parts)
        small = self.size.numpy(), self.image_of.numpy()
        beside = self.known, self.glance
        return _whole, (image, *small, self.questions, self.keys, self.image_keys, flat, kinds, *beside)

    def pin_memory(self) -> "Batch":
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, of: Callable[[Tensor], Tensor]) -> "Batch":
        # of blank images one number
        image = of(self.image) if self.maps is None else of(self.image[:1, :1, :1, :1]).expand_as(self.image)
        maps = None if self.maps is None else tuple(map(of, self.maps))
        glance = None if self.glance is None else of(self.glance)
        moved = replace(self, image=image, size=of(self.size), image_of=of(self.image_of), known=self.on_cpu)
        return replace(moved, maps=maps, glance=glance)


def _whole(
    image: Tensor | tuple[int, ...],
    size: Any,
    image_of: Any,
    questions: tuple[Question, ...],
    keys: tuple[str, ...],
    image_keys: tuple[str, ...],
    flat: Tensor | None,
    kinds: Sequence[tuple[torch.dtype, tuple[int, ...]]],
    known: tuple[Tensor, Tensor] | None,
    glance: Tensor | None,
) -> Batch:
    """A batch from another process."""
    if not isinstance(image, Tensor):
        image = torch.zeros(1, dtype=torch.uint8).expand(image)
    maps = None
    if flat is not None:
        backwards = kinds[::-1]
        parts = flat.split([prod(shape) * dtype.itemsize for dtype, shape in backwards])
        whole = [
            part.view(dtype).view(i, rows, columns, c).permute(0, 3, 1, 2)
            for part, (dtype, (i, c, rows, columns)) in zip(parts, backwards, strict=True)
        ]
        maps = tuple(whole[::-1])
    here = torch.from_numpy(size), torch.from_numpy(image_of)
    return Batch(image, *here, questions, keys, image_keys, maps, known, glance)


def _pad(maps: Sequence[Tensor]) -> Tensor:
    """Maps [rows, columns, C], of one tile -> [I, C, most rows, most columns], zero in padding."""
    rows, columns = (max(m.shape[axis] for m in maps) for axis in (0, 1))
    if all(m.shape[:2] == (rows, columns) for m in maps):
        return torch.stack(list(maps)).permute(0, 3, 1, 2)
    out = maps[0].new_zeros(len(maps), rows, columns, maps[0].shape[2])
    for row, m in enumerate(maps):
        out[row, : m.shape[0], : m.shape[1]] = m
    return out.permute(0, 3, 1, 2)
