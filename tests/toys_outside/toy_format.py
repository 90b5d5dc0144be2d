"""A format: lines of a picture's path, a question and its answer, with tabs between."""

from collections.abc import Iterator
from pathlib import Path

from pyrskip.data.convert import FORMATS, Format, Found, Row, image_key
from pyrskip.sample import Question


@FORMATS.register("toy_format")
class Lines(Format):
    def rows(self, path: str) -> Iterator[Row]:
        for line in Path(path).read_text().splitlines():
            picture, question, answer = line.split("\t")
            yield Found(image_key(picture), picture, (Question(question, (answer,)),))

    def image(self, place: str) -> bytes:
        return (Path(self.files.images) / place).read_bytes()
