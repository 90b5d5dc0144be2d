"""What a format of annotation files is, and the registry of them all."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.convert.rows import Row
from pyrskip.data.storage import expand
from pyrskip.registry import Registry

FORMATS: "Registry[type[Format]]" = Registry("data.source", "docs/extending-models.md")


class Format(ABC):
    """Reads the files that a config names, in one format. Safe to use from several threads."""

    def __init__(self, files: FilesConfig) -> None:
        self.files = files

    def patterns(self) -> tuple[str, ...]:
        """What names the files whose content identifies the data; '' names none."""
        return self.files.path, self.files.test, self.files.images

    def check(self) -> None:
        """Refuse, before any work, what names no file. Raises UserError."""
        for pattern in filter(None, self.patterns()):
            expand(pattern)

    @abstractmethod
    def rows(self, path: str) -> Iterator[Row]:
        """Of one annotation file, in a single pass; a broken row is a Fault and ends nothing but itself."""

    def image_rows(self) -> Iterable[tuple[str, Iterator[Row]]]:
        """Each file that says where images are and asks nothing about them, with its rows. None by
        default."""
        return ()

    @abstractmethod
    def image(self, place: str) -> bytes:
        """The bytes of an image, as they are, by the place that a row gave. Raises whatever its file does."""
