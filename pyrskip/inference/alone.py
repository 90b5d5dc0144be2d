"""A gate alone, loaded: what to send in place of an image to a model that runs elsewhere.

Axes: B requests, T tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from pyrskip.inference.bundle import Spec
from pyrskip.inference.decider import (
    UNLIMITED,
    Backend,
    Decider,
    Decisions,
    Picture,
    Prepared,
    Request,
    Selection,
)
from pyrskip.inference.images import Source
from pyrskip.inference.outside import Outside
from pyrskip.inference.processor import View, cut, views_of
from pyrskip.picture import Mipmaps
from pyrskip.pyramid import Pyramid
from pyrskip.words import encoded


@dataclass(frozen=True)
class Replacement:
    """What is sent in place of an image: pictures, upright and in RGB, coarse to fine, the glance first, and
    views: what each shows. selection: its tokens are those that the model gives the pictures. saved: tokens
    less than those of the image as one picture, the finest level of one tile; below 0 where it is more."""

    selection: Selection
    views: tuple[View, ...]
    saved: int
    pyramid: Pyramid = field(repr=False)
    levels: Mipmaps = field(repr=False, compare=False)

    @cached_property
    def pictures(self) -> tuple[Image.Image, ...]:
        """Cut when they are first asked for, by whoever asks: a service's engine decides on the next."""
        return tuple(cut(self.pyramid, self.levels, self.views))


class OutsideDecider(Decider):
    """tokenizer: of the model, where the questions' tokens are counted by it."""

    def __init__(
        self,
        spec: Spec,
        tokenizer: Tokenizer | None,
        query_tokenizer: Tokenizer,
        backend: Backend,
        digest: str,
    ) -> None:
        super().__init__(spec, query_tokenizer, backend, digest)
        assert isinstance(spec.answerer, Outside)
        self.outside, self.tokenizer, self.query = spec.answerer, tokenizer, query_tokenizer
        # what the model is given where nothing decides: pyrskip.decision.one_picture
        self.whole = next(
            n for n, place in enumerate(spec.pyramid.places) if spec.pyramid.grid[place.level] == 1
        )

    def row(
        self,
        picture: Picture,
        question: str,
        price: float,
        max_tokens: int = UNLIMITED,
        action: int | None = None,
    ) -> Prepared:
        [words] = encoded([question], self.query)
        left_out = sum(piece.special_tokens_mask.count(0) for piece in words.overflowing)
        prompt = self.outside.prompt(question, self.tokenizer)
        return Prepared(picture, [], words.ids, left_out, prompt, price, max_tokens, action)

    def decide(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> Decisions:
        """asked: tokens [B, T] that the model gives each kept tile. Raises UserError for a tile of a size
        that the model does not take."""
        pixels = self.spec.pyramid.pixels(np.stack([picture.size for picture in seen]))
        tokens = self.outside.tokens(pixels).round().astype(np.int64)
        places = self.outside.places(pixels).round().astype(np.int64)
        own = {"tokens": tokens, "places": places, "encode": self.outside.encode(pixels)}
        if (lone := self.outside.lone) is not None:
            glance = pixels[:, self.spec.pyramid.glance]
            numbers = [lone.tokens(glance), lone.places(glance), lone.encode(glance)]
            own["lone"] = np.stack(numbers, axis=-1)
        outputs, (keep, total, sure) = self._run(rows, seen, own)
        asked = self.outside.visual(pixels, keep).round().astype(np.int64)
        pooled = self._cells(seen) * keep[..., None]
        return Decisions(outputs, asked, pooled, self._selections(rows, asked, total, sure))

    def replace_rows(self, rows: Sequence[Prepared]) -> list[Replacement]:
        """What is sent in place of each row's image."""
        if not rows:
            return []
        pyramid, seen = self.spec.pyramid, self.glance(rows)
        pictures_of_one = self.outside.lone or self.outside
        decided, found = self.decide(rows, seen), []
        for picture, pooled, selection in zip(seen, decided.pooled, decided.selections, strict=True):
            views = views_of(pyramid, picture.size, pooled)
            whole = int(pictures_of_one.tokens(pyramid.pixels(picture.size[None])[0, self.whole]).round())
            assert isinstance(picture.levels, Mipmaps), "the whole image is at hand"
            found.append(Replacement(selection, views, whole - selection.tokens, pyramid, picture.levels))
        return found


class GateAlone:
    """A loaded gate for a model that runs elsewhere. Two threads must not decide with one at once."""

    def __init__(self, decider: OutsideDecider) -> None:
        self.decider, self.spec, self.digest = decider, decider.spec, decider.digest

    def decide(
        self,
        image: Source,
        question: str,
        *,
        price: float | None = None,
        max_tokens: int | None = None,
        retention: float | None = None,
    ) -> Replacement:
        """What to send in place of an image. max_tokens: most tokens of its pictures, in the model's own
        count; the glance is sent in any case.

        Raises UserError for a bad image or question, a picture that the model does not take, or what
        `Decider.check_dial` refuses.
        """
        return self.decide_many([Request(image, question, price, max_tokens, retention)])[0]

    def decide_many(self, requests: Sequence[Request]) -> list[Replacement]:
        """A batch. One request's decision never depends on the others."""
        return self.decider.replace_rows(self.decider.prepare(requests))
