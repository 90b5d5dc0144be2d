"""Run a gate: what to look at. numpy alone; the graphs run in a backend.

Axes: B requests, T tiles, W words.

A batch is decided together, and no request's decision depends on the others.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pyrskip.errors import UserError
from pyrskip.inference.arrays import Floats, Ints, pad_ids
from pyrskip.inference.bundle import FIXED, Spec
from pyrskip.inference.images import Source, open_image
from pyrskip.picture import Mipmaps, shrunk

MOST_TILES = 64
"""Tiles encoded in one run of the vision graph: bounds the memory of a large batch."""
UNLIMITED = 2**53
"""More tokens than any image gives."""
REMEMBERED = 128
"""Questions whose tensors are kept, the latest that were read alone."""

Array = NDArray[Any]
Arrays = list[Array]
Inputs = Mapping[str, Array | Mapping[str, Array]]


class Backend(Protocol):
    def run(self, graph: str, inputs: Inputs) -> Arrays:
        """Outputs of a graph of the export."""
        ...


@dataclass(frozen=True)
class Request:
    """A question on an image: a path, bytes or a PIL image. price: what relative cost 1 is worth in score;
    max_tokens: most visual tokens; retention: of the full pyramid's score, one that the export guarantees,
    alone; with none, the export's default price; with max_tokens alone, the lowest price. safe: play a fixed
    selection at prices where the gate was not found to be above those."""

    image: Source
    question: str
    price: float | None = None
    max_tokens: int | None = None
    retention: float | None = None
    safe: bool = False


@dataclass(frozen=True)
class Selection:
    """What the gate decided. levels: kept, finest first; tokens: visual tokens in all; tiles: of each tile, 0
    = skipped; cost: FLOPs of everything that runs over the mean full pyramid's; confidence: the policy's
    probability of this selection, 1 of a fixed one; cut: tokens of the question that were too many to be
    read."""

    levels: tuple[int, ...]
    tokens: int
    tiles: tuple[int, ...]
    cost: float
    flops: float
    confidence: float
    price: float
    cut: int


@dataclass
class Picture:
    """An image on its way: rows and columns, the pixels of the levels that are there, and the maps of encoded
    tiles."""

    size: Ints
    levels: Mapping[int, Floats]
    maps: dict[int, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and whose image is open. words: ids of the question for the language model,
    none where that is elsewhere; query: for the question encoder; cut: tokens of the question that are not
    read; prompt: tokens of the prompt beside its pictures; action: the number of the listed one that is
    played, None where the gate decides."""

    picture: Picture
    words: list[int]
    query: list[int]
    cut: int
    prompt: int
    price: float
    max_tokens: int
    action: int | None = None


@dataclass(frozen=True)
class Decisions:
    """A batch that is decided. outputs: the gate's raw ones, of the rows that it decides; asked [B, T]
    tokens; pooled [B, T, 2]: rows and columns of each tile's map as they are kept."""

    outputs: Floats
    asked: Ints
    pooled: Ints
    selections: list[Selection]


class Decider(ABC):
    """Decides, for the model of the same export or for one that runs elsewhere. Rows are Prepared, and
    pictures hold what has been seen of them. `encoded` counts the tiles that went through the vision encoder;
    digest: of the export's checksums.

    Two threads must not use one at once, but for `prepare` and `read_ahead`.
    """

    def __init__(self, spec: Spec, query_tokenizer: Tokenizer | None, backend: Backend, digest: str) -> None:
        self.spec, self.query_tokenizer, self.backend, self.digest = spec, query_tokenizer, backend, digest
        self.encoded = 0
        self.read = OrderedDict[tuple[int, ...], Future[dict[str, Array]]]()
        self.reading = Lock()

    def prepare(self, requests: Sequence[Request]) -> list[Prepared]:
        """Check requests and open their images, each once. Raises UserError for the first that is wrong."""
        opened: dict[object, Picture] = {}
        return [self.prepare_one(request, opened) for request in requests]

    def prepare_one(self, request: Request, opened: dict[object, Picture]) -> Prepared:
        """opened: pictures of the batch so far; requests for the same path or object share one."""
        image = request.image
        key = str(image) if isinstance(image, str | Path) else id(image)
        if key not in opened:
            opened[key] = self.picture(open_image(image))
        return self.prepared(opened[key], request)

    def prepared(self, picture: Picture, request: Request) -> Prepared:
        """A request whose picture is open. Raises UserError for a bad question, and as `check_dial` does."""
        price, most = self.check_dial(request.price, request.max_tokens, request.retention, request.safe)
        if not isinstance(request.question, str) or not request.question.strip():
            raise UserError("the question is empty; allowed: one with at least a word")
        safe = self.spec.prices.safe if request.safe else None
        played = None if safe is None else safe.at(price)
        action = None if played is None else self.spec.action(played)
        return self.row(picture, request.question, price, most, action)

    @abstractmethod
    def row(
        self,
        picture: Picture,
        question: str,
        price: float,
        max_tokens: int = UNLIMITED,
        action: int | None = None,
    ) -> Prepared:
        """A request as it is; with an action, no gate decides. Raises UserError for a question that cannot be
        read."""

    @abstractmethod
    def decide(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> Decisions:
        """What the gate's mode decides from the questions and the glance, which is encoded, and the actions
        of rows that have one."""

    def picture(self, image: Image.Image) -> Picture:
        pyramid = self.spec.pyramid
        pixels = np.asarray(shrunk(image, pyramid.size))
        return Picture(np.array(pixels.shape[:2]), Mipmaps(pixels, pyramid.levels))

    def glance(self, rows: Sequence[Prepared]) -> list[Picture]:
        seen = [row.picture for row in rows]
        self._encode([(picture, self.spec.pyramid.glance) for picture in seen])
        return seen

    def _run(
        self, rows: Sequence[Prepared], seen: Sequence[Picture], own: Mapping[str, Array]
    ) -> tuple[Floats, Arrays]:
        """The gate's raw outputs, of the rows that it decides; and of all rows what else the graphs give, at
        last FLOPs [B], the gate's included where it decides, and probability [B]. own: inputs of this kind of
        export, beside those of every kind."""
        words = np.array([row.prompt for row in rows])
        tiled = {"cells": self._cells(seen), **own, "words": words}
        order: list[int] = []
        parts: list[Arrays] = []
        outputs = np.zeros((0, 0), np.float32)
        at = [i for i, row in enumerate(rows) if row.action is None]
        if at:
            some = [rows[i] for i in at]
            outputs, *found, flops, sure = self.backend.run(
                "gate",
                {
                    "signals": self._signals(some, [seen[i] for i in at]),
                    **{name: of[at] for name, of in tiled.items()},
                    "price": np.array([row.price for row in some], dtype=np.float32),
                    "max_tokens": np.array([row.max_tokens for row in some]),
                },
            )
            order += at
            parts.append([*found, flops + self.spec.costs.gate, sure])
        at = [i for i, row in enumerate(rows) if row.action is not None]
        if at:
            action = {"action": np.array([rows[i].action for i in at])}
            played = self.backend.run(FIXED, action | {name: of[at] for name, of in tiled.items()})
            order += at
            parts.append([*played, np.ones(len(at))])
        back = np.argsort(order)
        return outputs.astype(np.float32), [np.concatenate(of)[back] for of in zip(*parts, strict=True)]

    def _selections(
        self, rows: Sequence[Prepared], tokens: Array, flops: Array, probability: Array
    ) -> list[Selection]:
        """tokens [B, T] realised; flops [B] of everything; probability [B]."""
        places, costs = self.spec.pyramid.places, self.spec.costs
        found = []
        parts = zip(rows, tokens.tolist(), flops.tolist(), probability.tolist(), strict=True)
        for row, tiles, total, sure in parts:
            levels = tuple(dict.fromkeys(places[tile].level for tile, n in enumerate(tiles) if n))
            cost = total / costs.unit
            found.append(Selection(levels, sum(tiles), tuple(tiles), cost, total, sure, row.price, row.cut))
        return found

    def check_dial(
        self, price: float | None, max_tokens: int | None, retention: float | None = None, safe: bool = False
    ) -> tuple[float, int]:
        """The price and the most tokens that a request means. Raises UserError where one is out of range, for
        a retention that is not guaranteed or does not stand alone, or where `safe` cannot be kept."""
        prices = self.spec.prices
        if safe is not False:
            self._check_safe(safe, max_tokens, retention)
        if retention is not None:
            if price is not None or max_tokens is not None:
                raise UserError(
                    f"retention={retention!r} with price={price!r}, max_tokens={max_tokens!r}: a guarantee "
                    "is of its own price, without a limit of tokens; allowed: retention alone"
                )
            return self._guaranteed(retention), UNLIMITED
        if max_tokens is not None and (
            isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1
        ):
            raise UserError(f"max_tokens={max_tokens!r}: allowed: whole numbers of at least 1")
        most = UNLIMITED if max_tokens is None else min(max_tokens, UNLIMITED)
        if price is None:
            return (prices.default if max_tokens is None else prices.low), most
        if (
            isinstance(price, bool)
            or not isinstance(price, int | float)
            or not abs(price) <= sys.float_info.max  # an int may be larger than any float
        ):
            raise UserError(f"price={price!r}: allowed: a finite number")
        if not prices.low <= price <= prices.high:
            allowed = (
                f"{prices.low} to {prices.high}" if math.isfinite(prices.high) else f"at least {prices.low}"
            )
            if prices.low == prices.high:
                allowed = f"{prices.low} alone, which it was trained for"
            raise UserError(f"price={price} is out of this gate's range; allowed: {allowed}")
        return float(price), most

    def _check_safe(self, safe: bool, max_tokens: int | None, retention: float | None) -> None:
        if safe is not True:
            raise UserError(f"safe={safe!r}: allowed: true, false")
        if max_tokens is not None or retention is not None:
            raise UserError(
                f"safe=True with max_tokens={max_tokens!r}, retention={retention!r}: a gate was held against "
                "fixed selections without a limit of tokens, and a guarantee is of its own decisions; "
                "allowed: safe=True with a price, or alone"
            )
        if self.spec.prices.safe is None:
            raise UserError(
                "safe=True: this export does not say where its gate is above fixed selections; allowed: "
                "safe=False, or to export again"
            )

    def _guaranteed(self, retention: float) -> float:
        """The price that guarantees it."""
        known = {of.retention: of.price for of in self.spec.prices.guaranteed}
        if not isinstance(retention, bool) and isinstance(retention, int | float) and retention in known:
            return known[retention]
        allowed = ", ".join(map(str, known)) or "price, since this export guarantees none"
        raise UserError(f"retention={retention!r} is not guaranteed by this export; allowed: {allowed}")

    def _cells(self, seen: Sequence[Picture]) -> Ints:
        """Rows and columns of every tile's map, [B, T, 2]."""
        return self.spec.pyramid.cells(np.stack([picture.size for picture in seen]))

    def _windows(self, seen: Sequence[Picture]) -> Ints:
        """Rows and columns of the map that is made for every tile, its halo's included, [B, T, 2]."""
        window = self.spec.pyramid.window(np.stack([picture.size for picture in seen]))
        cells: Ints = -(-window[..., 2:] // self.spec.pyramid.stride)
        return cells

    def _signals(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> dict[str, Array]:
        """Every tensor that the gate reads, [B, ...]."""
        signals = self._of_questions(rows)
        for source in dict.fromkeys(of.source for of in self.spec.signals.values()):
            if source != "question":
                signals |= self._computed(source, self._source(source, rows, seen))
        return signals

    def read_ahead(self, question: str) -> None:
        """Read a question that is about to be decided on alone, while its image is opened elsewhere. Raises
        UserError as `row` does."""
        self._read_alone(tuple(self.row(Picture(np.zeros(2, np.int64), {}), question, 0.0).query))

    def _of_questions(self, rows: Sequence[Prepared]) -> dict[str, Array]:
        """The tensors that are computed from questions. Each question is read once; one that every row asks,
        and that is remembered, not at all."""
        asked = [tuple(row.query) for row in rows]
        place = {text: i for i, text in enumerate(dict.fromkeys(asked))}
        first, *others = place
        found = self._computed("question", pad_ids(list(place))) if others else self._read_alone(first)
        at = [place[text] for text in asked]
        return {name: of[at] for name, of in found.items()}

    def _read_alone(self, text: tuple[int, ...]) -> dict[str, Array]:
        """The tensors that are computed from one question, [1, ...]; of a thread that reads it just now, what
        that finds."""
        with self.reading:
            known = self.read.get(text)
            mine = known is None
            if known is None:
                known = self.read[text] = Future()
                if len(self.read) > REMEMBERED:
                    self.read.popitem(last=False)
            else:
                self.read.move_to_end(text)
        if mine:
            try:
                known.set_result(self._computed("question", pad_ids([text])))
            except BaseException as error:
                with self.reading:
                    self.read.pop(text, None)
                known.set_exception(error)
        return known.result()

    def _computed(self, source: str, given: tuple[Array, ...]) -> dict[str, Array]:
        """The tensors of every signal that reads a source, from what that gives."""
        signals: dict[str, Array] = {}
        for of in self.spec.signals.values():
            if of.source == source:
                found: Sequence[Array] = given
                if of.graph is not None:
                    found = self.backend.run(of.graph, dict(zip(("value", "mask"), given, strict=False)))
                signals |= zip(of.tensors, found, strict=True)
        return signals

    def _source(self, name: str, rows: Sequence[Prepared], seen: Sequence[Picture]) -> tuple[Array, ...]:
        """What pyrskip.signals.SOURCES gives of a model, beside questions."""
        pyramid = self.spec.pyramid
        side, glance = pyramid.places[pyramid.glance].side, pyramid.glance
        if name == "glance":
            return _padded([picture.maps[glance] for picture in seen], side // pyramid.stride)
        if name == "pixels":
            return _padded([picture.levels[pyramid.levels - 1] for picture in seen], side)
        raise AssertionError(f"nothing here gives {name}")

    def _encode(self, wanted: Sequence[tuple[Picture, int]]) -> None:
        """Encode tiles that are not yet, those of one shape together."""
        pyramid = self.spec.pyramid
        pictures = {id(picture): picture for picture, tile in wanted if tile not in picture.maps}
        if not pictures:
            return
        size = np.stack([picture.size for picture in pictures.values()])
        window = dict(zip(pictures, pyramid.window(size), strict=True))
        cells = dict(zip(pictures, pyramid.cells(size), strict=True))
        shapes: dict[tuple[int, int], dict[tuple[int, int], tuple[Picture, int]]] = defaultdict(dict)
        for picture, tile in wanted:
            if tile not in picture.maps:
                rows, columns = (-(-window[id(picture)][tile, 2:] // pyramid.stride)).tolist()
                if rows:
                    shapes[rows, columns][id(picture), tile] = picture, tile
        for shape, distinct in shapes.items():
            tiles = list(distinct.values())
            for start in range(0, len(tiles), MOST_TILES):
                some = tiles[start : start + MOST_TILES]
                crops = [
                    self._crop(picture, tile, window[id(picture)][tile], shape) for picture, tile in some
                ]
                features = self.backend.run("vision", {"pixels": np.stack(crops)})[0].astype(np.float32)
                self.encoded += len(some)
                for (picture, tile), of in zip(some, features, strict=True):
                    picture.maps[tile] = pyramid.inner(of, tile, cells[id(picture)][tile])

    def _crop(self, picture: Picture, tile: int, window: Ints, cells: tuple[int, int]) -> Floats:
        """The pixels [3, rows, columns] of a tile's window [4], padded with 0 to whole cells."""
        pyramid = self.spec.pyramid
        top, left, rows, columns = window.tolist()
        level = picture.levels[pyramid.places[tile].level]
        out = np.zeros((3, cells[0] * pyramid.stride, cells[1] * pyramid.stride), dtype=np.float32)
        out[:, :rows, :columns] = level[:, top : top + rows, left : left + columns]
        return out


def _padded(maps: Sequence[Floats], side: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Maps [C, h, w] of various sizes -> [B, C, side, side], 0 in padding, and what of them is none [B, side,
    side]."""
    padded = np.zeros((len(maps), len(maps[0]), side, side), dtype=np.float32)
    inside = np.zeros((len(maps), side, side), dtype=bool)
    for row, of in enumerate(maps):
        _, height, width = of.shape
        padded[row, :, :height, :width] = of
        inside[row, :height, :width] = True
    return padded, inside
