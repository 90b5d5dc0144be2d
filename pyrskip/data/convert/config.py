"""Which files of one's own to convert."""

from dataclasses import dataclass, field

from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import HOW
from pyrskip.metrics import METRICS

COLUMNS = ("question", "answers", "image", "image_id", "type", "key")


@dataclass(frozen=True)
class FilesConfig:
    """path: the annotation file, a path or URL, with *, ? and {a,b} for several. images: the folder that
    llava's images are in, or the parquet files of a table of images; '' where images are embedded. test:
    annotation files of a test split; '' to take test_fraction of the images. metric: how answers are scored.

    columns: names of a table's columns, where they are others than usual. workers: threads that write shards,
    null for one a core; the bytes do not depend on it.
    """

    path: str = "my_data.json"
    images: str = ""
    test: str = ""
    test_fraction: float = 0.1
    metric: str = "exact"
    columns: dict[str, str] = field(default_factory=dict)
    workers: int | None = field(default=None, metadata=HOW)

    def check(self) -> None:
        """Raises UserError where a value is not allowed: called where the source reads files."""
        if not self.path:
            raise UserError("data.files.path is empty; allowed: the path or URL of annotation files")
        if self.metric not in METRICS:
            raise unknown_name("data.files.metric", self.metric, METRICS)
        if not self.test and not 0 < self.test_fraction < 1:
            raise UserError(
                f"data.files.test_fraction={self.test_fraction} is no share of the images; allowed: between "
                "0 and 1"
            )
        for role in self.columns:
            if role not in COLUMNS:
                raise unknown_name("data.files.columns", role, COLUMNS)
        if self.workers is not None and self.workers < 0:
            raise UserError(f"data.files.workers={self.workers} is negative; allowed: null, or at least 0")
