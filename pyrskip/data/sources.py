"""Where images and questions come from before they are shards: sources by name, in `data.source`."""

from collections.abc import Callable, Container, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from pyrskip.errors import UserError
from pyrskip.record import Record
from pyrskip.registry import Registry
from pyrskip.sample import Question
from pyrskip.scenes import SceneSource


class Source(Protocol):
    """Images and questions of a source's own splits, 'train' and 'test'."""

    def keys(self, split: str) -> list[str]:
        """Of every image of the split."""
        ...

    def records(self, split: str, keep: Container[str]) -> Generator[Record]:
        """Those whose key is kept, always in the same order."""
        ...


Listing = Callable[[str], Iterator[Record]]
SOURCES: Registry[Listing | type[SceneSource]] = Registry("data.source", "docs/extending-models.md")
"""Functions of the source's own split, 'train' or 'test', that yield its records, always in the same order;
or the class of a source that is configured in data.<name>."""
SOURCES.register("scenes", SceneSource)


@dataclass(frozen=True)
class ListedSource:
    """A source that a function lists, whose images are files already."""

    listing: Listing

    def keys(self, split: str) -> list[str]:
        return [record.key for record in self.listing(split)]

    def records(self, split: str, keep: Container[str]) -> Generator[Record]:
        return (record for record in self.listing(split) if record.key in keep)


def easy_vqa(split: str) -> Iterator[Record]:
    """easy-VQA: one coloured shape on each 64 x 64 image, 4000 for training and 1000 for testing, about 10
    questions each.

    split: 'train' or 'test'. Raises UserError where the package is not installed.
    """
    try:
        import easy_vqa as package
    except ImportError as error:
        raise UserError("data.source=easy_vqa needs a package: pip install easy-vqa==1.0") from error

    read = {
        "train": (package.get_train_questions, package.get_train_image_paths),
        "test": (package.get_test_questions, package.get_test_image_paths),
    }
    get_questions, get_paths = read[split]
    questions: dict[int, list[Question]] = {}
    for text, answer, image in zip(*get_questions(), strict=True):
        questions.setdefault(image, []).append(Question(text, (answer,), _easy_vqa_type(text)))
    for image, path in sorted(get_paths().items()):
        yield Record(f"{split}-{image:06d}", Path(path).read_bytes(), "png", tuple(questions[image]))


SOURCES.register("easy_vqa", easy_vqa)


@cache
def _easy_vqa_type(text: str) -> str:
    """What a question asks for, from its words alone.

    'what color is the circle?' color, 'what is the red shape?' shape, 'is there a red shape?' yesno_color,
    'is there a circle?' yesno_shape.
    """
    if text.startswith("what"):
        return "color" if "color" in text else "shape"
    return "yesno_color" if "shape" in text else "yesno_shape"
