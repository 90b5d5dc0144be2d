"""What a data directory holds: counts, sizes, types, answers, needed levels, what is broken, and a picture of
some of it."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pyrskip.data.faults import Fault
from pyrskip.data.proposal import said
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import parse_index
from pyrskip.errors import UserError
from pyrskip.sample import Sample

WHOLE = 1 << 16
"""A canvas that no image is shrunk to fit."""
COLORS = ("#e6194b", "#1e9e3c", "#2b5fe3", "#e08a00", "#911eb4", "#00a3a3", "#d63cc8", "#7a5c00")
SHOWN = 6
"""Answers and image sizes that the report names, the most frequent first."""


@dataclass
class TypeReport:
    """Questions of one type. levels: how often which is needed, of the questions whose source knows."""

    questions: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)


@dataclass
class Report:
    """Counts over a data directory; str(report) is the table of them. splits: images and questions that can
    be read."""

    source: str
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    types: dict[str, TypeReport] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"source  {self.source}"
        for split, (images, questions) in self.splits.items():
            yield f"{split:7} {images:7} images {questions:8} questions"
        sizes = [f"{width} x {height} ({count})" for (width, height), count in self.sizes.most_common(SHOWN)]
        yield f"sizes   {', '.join(sizes) or 'none'}{_more(len(self.sizes))}"
        if self.sizes:
            yield f"pyramid {said([max(size) for size in self.sizes.elements()])}"
        width = max(map(len, [*self.types, "type"]))
        yield f"{'type':{width}}  questions  needed level            answers"
        for kind, found in sorted(self.types.items()):
            levels = " ".join(f"{level}:{found.levels[level]}" for level in sorted(found.levels)) or "unknown"
            answers = ", ".join(
                f"{a} {count / found.questions:.0%}" for a, count in found.answers.most_common(SHOWN)
            )
            yield f"{kind:{width}}  {found.questions:9}  {levels:22}  {answers}{_more(len(found.answers))}"
        yield f"broken  {sum(fault.lost for fault in self.faults)}"
        yield from (f"  {fault}" for fault in self.faults)


def inspect(directory: Path) -> Report:
    """Read every sample of a data directory. Raises UserError where it has no index; what else is broken is
    in the report."""
    index = parse_index(directory)
    report = Report(index.source)
    for split in index.splits:
        dataset = ShardDataset(directory, split, WHOLE)
        images = questions = 0
        for sample in _readable(dataset):
            images, questions = images + 1, questions + len(sample.questions)
            report.sizes[sample.image.shape[2], sample.image.shape[1]] += 1
            for question in sample.questions:
                of_type = report.types.setdefault(question.type, TypeReport())
                of_type.questions += 1
                of_type.answers[question.answers[0]] += 1
                if question.level is not None:
                    of_type.levels[question.level] += 1
        report.splits[split] = images, questions
        report.faults += dataset.faults
    return report


def contact_sheet(
    directory: Path, picture: Path, split: str = "train", images: int = 12, side: int = 420
) -> None:
    """Draw a split's first images, their questions below and what answers them framed in the colour of the
    question.

    picture: a .png to write. side: of an image in it, pixels. Raises UserError where no image can be read, or
    none written.
    """
    dataset = ShardDataset(directory, split, WHOLE)
    samples = [sample for sample, _ in zip(_readable(dataset), range(images), strict=False)]
    if not samples:
        raise UserError(
            f"{directory} holds no image of the split {split} that can be read, so there is nothing to show"
        )
    cells = [_cell(sample, side) for sample in samples]
    columns = min(4, len(cells))
    height = max(cell.height for cell in cells)
    sheet = Image.new("RGB", (columns * side, -(-len(cells) // columns) * height), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * side, number // columns * height))
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(picture, "PNG")
    except OSError as error:
        raise UserError(f"{picture} cannot be written: {error.strerror or error}") from error


def _readable(dataset: ShardDataset) -> Iterator[Sample]:
    return (sample for sample in map(dataset.__getitem__, range(len(dataset))) if sample is not None)


def _cell(sample: Sample, side: int) -> Image.Image:
    """One image, fitted into side x side, above its questions."""
    image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    scale = (side - 8) / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    face, line = ImageFont.load_default(14), 18
    texts = []
    for number, question in enumerate(sample.questions[: len(COLORS)]):
        level = "" if question.level is None else f" (level {question.level})"
        wrapped = textwrap.wrap(f"{question.text} {question.answers[0]}{level}", side // 8)
        texts += [(text, COLORS[number]) for text in wrapped]
    cell = Image.new("RGB", (side, side + line * len(texts) + 12), "white")
    cell.paste(image, (4, 4))
    draw = ImageDraw.Draw(cell)
    for number, question in enumerate(sample.questions[: len(COLORS)]):
        for x0, y0, x1, y1 in question.boxes:
            # each question's frame is a little wider than the one before, so that frames of one thing all
            # show
            frame = (
                x0 * size[0] - number,
                y0 * size[1] - number,
                x1 * size[0] + number,
                y1 * size[1] + number,
            )
            draw.rectangle([4 + edge for edge in frame], outline=COLORS[number])
    for row, (text, color) in enumerate(texts):
        draw.text((6, side + row * line), text, font=face, fill=color)
    return cell


def _more(number: int) -> str:
    return f" and {number - SHOWN} more" if number > SHOWN else ""
