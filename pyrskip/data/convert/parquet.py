"""Tables with embedded images, as lmms-eval's sets on the Hugging Face hub are: TextVQA, DocVQA, POPE, MME,
ChartQA, and GQA with its questions in one table and its images in another.

An image is a struct of `bytes` and `path`, as the datasets library writes it, or plain bytes. It is known by
its bytes, so that rows with the same image are questions on one image; or in GQA's form by its id. Columns
are found by their usual names (`USUAL`), or given as data.files.columns; a dot reaches into a struct. Options
in columns of their own and `hint` belong to the question, as in VLMEvalKit's tables.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyrskip.data.convert.answers import listed, missing, text_of
from pyrskip.data.convert.choices import Choices, Later, with_options
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.convert.format import FORMATS, Format
from pyrskip.data.convert.rows import SEVERAL, WITHOUT, Found, Row, Skipped, content_key, image_key
from pyrskip.data.faults import Fault
from pyrskip.data.storage import expand, open_file
from pyrskip.errors import UserError
from pyrskip.sample import Question

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS = 64
"""Rows in memory at a time."""
USUAL: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query"),
    "answers": ("answers", "answer", "label"),
    "image": ("image", "images"),
    "image_id": ("imageId", "image_id"),
    "type": ("types.structural", "category", "question_types", "question_type", "type"),
    "key": ("id", "imageId", "image_id"),
}
"""What a column is for -> the names that it has in published sets. key: an image's own, in a table of
images."""


@FORMATS.register("parquet")
class Parquet(Format):
    """Where data.files.images is given, images are in those tables, and rows name them by id."""

    def __init__(self, files: FilesConfig) -> None:
        super().__init__(files)
        self._last = threading.local()

    def rows(self, path: str) -> Iterator[Row]:
        with open_file(path) as file:
            table = _open(file, path)
            wanted = ("question", "answers", "image_id" if self.files.images else "image")
            named = {role: self._column(table, role, path) for role in wanted}
            named["type"] = self._column(table, "type", path, needed=False)
            names = table.schema_arrow.names
            choices = Choices(names, self.files.metric)
            read = {*filter(None, named.values()), *choices.columns, *(("hint",) if "hint" in names else ())}
            waiting = deque[tuple[int, str, str | None, dict[str, Any]]]()
            image = named[wanted[2]]
            for number, place, row in _rows(table, path, sorted(read)):
                if isinstance(row, Fault):
                    yield row
                    continue
                try:
                    images = _images(_reach(row, image))
                    if len(images) != 1:
                        yield Skipped(SEVERAL if images else WITHOUT)
                        continue
                    if self.files.images:
                        found, key = None, image_key(text_of(images[0]))
                    else:
                        found, key = place, content_key(_bytes(images[0]))
                    if "." not in image:
                        del row[image]
                    yield Found(key, found, (self._question(row, named, choices, last=False),))
                except Later:
                    waiting.append((number, key, found, row))
                except (ValueError, TypeError, KeyError) as error:
                    yield Fault(path, f"row {number}", f"{type(error).__name__}: {error}")
            while waiting:
                number, key, found, row = waiting.popleft()
                try:
                    yield Found(key, found, (self._question(row, named, choices, last=True),))
                except ValueError as error:
                    yield Fault(path, f"row {number}", f"{type(error).__name__}: {error}")

    def _question(self, row: dict[str, Any], named: dict[str, str], choices: Choices, last: bool) -> Question:
        """Raises ValueError, TypeError, KeyError, or Later as of Choices."""
        text = _reach(row, named["question"])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"question={text!r} is no text")
        options = choices.options(row)
        return Question(
            with_options(text.strip(), options, row.get("hint")),
            choices.answers(listed(_reach(row, named["answers"])), options, last),
            _kind(_reach(row, named["type"]) if named["type"] else None),
            metric=self.files.metric,
        )

    def image_rows(self) -> Iterator[tuple[str, Iterator[Row]]]:
        for path in expand(self.files.images) if self.files.images else ():
            yield path, self._images(path)

    def _images(self, path: str) -> Iterator[Row]:
        """Of a table of images."""
        with open_file(path) as file:
            table = _open(file, path)
            key = self._column(table, "key", path)
            self._column(table, "image", path)
            for _, place, row in _rows(table, path, [key]):
                yield row if isinstance(row, Fault) else Found(image_key(text_of(_reach(row, key))), place)

    def image(self, place: str) -> bytes:
        path, group, row = place.rsplit("\t", 2)
        column = self.files.columns.get("image", "")
        (image,) = _images(self._group_images(path, int(group), column)[int(row)].as_py())
        return _bytes(image)

    def _group_images(self, path: str, group: int, column: str) -> Any:
        """The images of a row group. Each thread keeps its last: rows of a shard come in the order of the
        file."""
        last = self._last
        if getattr(last, "place", None) != (path, group, column):
            last.place = last.images = None  # one at a time
            with open_file(path) as file:
                table = _open(file, path)
                name = column or next(name for name in USUAL["image"] if name in table.schema_arrow.names)
                last.images = table.read_row_group(group, columns=[name]).column(name)
            last.place = (path, group, column)
        return last.images

    def _column(self, table: "ParquetFile", role: str, path: str, needed: bool = True) -> str:
        """The name of the column that is there for this; '' where none is and none is needed."""
        names = table.schema_arrow.names
        given = self.files.columns.get(role)
        for name in (given,) if given else USUAL[role]:
            if name in names or ("." in name and _has(table.schema_arrow, name)):
                return name
        if not needed and not given:
            return ""
        raise UserError(
            f"{path} has no column for data.files.columns.{role} "
            f"({'named ' + given if given else 'of the usual names ' + ', '.join(USUAL[role])}); it has "
            f"{', '.join(names)}"
        )


def _open(file: Any, path: str) -> "ParquetFile":
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("data.source=parquet needs the extra: pip install 'pyrskip[convert]'") from error
    try:
        return ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no parquet file that can be read: {' '.join(str(error).split())}"
        ) from error


def _rows(
    table: "ParquetFile", path: str, columns: list[str]
) -> Iterator[tuple[int, str, dict[str, Any] | Fault]]:
    """The number of every row, where it is, and its values, or what is wrong with it or with the rest of its
    row group."""
    import pyarrow

    number = 0
    for group in range(table.num_row_groups):
        in_group, length = 0, table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
                for row in range(batch.num_rows):
                    place, values = f"{path}\t{group}\t{in_group}", _values(batch, row)
                    if isinstance(values, ValueError):
                        yield number, place, Fault(path, f"row {number}", f"ValueError: {values}")
                    else:
                        yield number, place, values
                    number, in_group = number + 1, in_group + 1
        except (pyarrow.ArrowException, OSError) as error:
            lost = length - in_group
            reason = f"row group {group} cannot be read: {' '.join(str(error).split())}"
            yield number, "", Fault(path, f"rows {number} to {number + lost - 1}", reason, lost)
            number += lost


def _values(batch: Any, row: int) -> dict[str, Any] | ValueError:
    """A row's, by column. A text whose bytes are no UTF-8 is a ValueError."""
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except ValueError as error:
        return error


def _has(schema: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    if first not in schema.names:
        return False
    kind = schema.field(first).type
    return hasattr(kind, "get_field_index") and kind.get_field_index(rest) >= 0


def _reach(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value[part] if value is not None else None
    return value


def _images(value: Any) -> list[Any]:
    """What is there of a picture, or of a list of them."""
    if isinstance(value, dict) and value.get("bytes"):
        return [value]
    values = value if isinstance(value, list) else [value]
    return [
        one
        for one in values
        if not missing(one) and not (isinstance(one, dict) and not any(one.get(k) for k in ("bytes", "path")))
    ]


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError("the image is not embedded")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    return str(value) if value else "all"
