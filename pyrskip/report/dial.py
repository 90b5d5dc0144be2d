"""The dial from dear to cheap, as a GIF: one question, and what the gate keeps for it at each price."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pyrskip.errors import UserError
from pyrskip.evaluation.inference import Shown
from pyrskip.pyramid import Pyramid
from pyrskip.report.detail import draw_finest, foveate
from pyrskip.report.selections import levels_of

SIDE, GAP, LINE, STEP = 320, 8, 20, 900
"""Pixels of a picture, between two, of a line of text; milliseconds of a frame."""


def write_dial(frames: Sequence[tuple[float, Shown]], pyramid: Pyramid, path: Path) -> None:
    """A frame for each price: the picture as the model saw it, the finest level of each region, question,
    answer and cost. The last is shown twice as long. Raises UserError where it cannot be written."""
    pictures = [draw(price, shown, pyramid) for price, shown in frames]
    times = [STEP] * (len(pictures) - 1) + [2 * STEP]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def draw(price: float, shown: Shown, pyramid: Pyramid) -> Image.Image:
    """One frame."""
    levels = levels_of(shown.image, pyramid)
    question = textwrap.wrap(shown.question, 76) or [""]
    picture = Image.new("RGB", (2 * SIDE + GAP, SIDE + GAP + LINE * (len(question) + 2)), "white")
    picture.paste(foveate(levels, shown.kept, pyramid, SIDE), (0, 0))
    picture.paste(draw_finest(levels, shown.kept, pyramid, SIDE), (SIDE + GAP, 0))
    right = "right" if shown.right else f"wrong: {shown.truth}"
    cost = f"{shown.relative_cost:.1%} of full, {shown.tokens} tokens, price {price:.3g}"
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for number, line in enumerate([*question, f"{shown.answer or '(nothing)'} ({right})", cost]):
        pen.text((2, SIDE + GAP + LINE * number), line, fill="black", font=font)
    return picture
