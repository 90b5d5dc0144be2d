"""Run an export: what to look at, and the answer. numpy alone; the graphs run in a backend.

Axes: B requests, T tiles, W words, N visual tokens, V vocabulary.

A batch is decided together and answered in groups of one decision, so that what a request skips is never
computed: not padded, not masked, not encoded. An image that several requests share (the same object) is
encoded once.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pyrskip import answering
from pyrskip.errors import UserError
from pyrskip.inference.arrays import Floats, Ints, pad_ids, pool
from pyrskip.inference.bundle import FIXED, STATE, Spec
from pyrskip.inference.images import Source, open_image
from pyrskip.picture import fitted, mipmaps
from pyrskip.words import encoded, read

MOST_TILES = 64
"""Tiles encoded in one run of the vision graph: bounds the memory of a large batch."""
UNLIMITED = 2**53
"""More tokens than any image gives."""

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


@dataclass(frozen=True)
class Answer:
    text: str
    selection: Selection


@dataclass
class Picture:
    """An image on its way: rows and columns, the levels' pixels (None where there are none), and the maps of
    encoded tiles."""

    size: Ints
    levels: Sequence[Floats | None]
    maps: dict[int, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and whose image is open. words: ids of the question for the language model,
    query: for the question encoder; cut: tokens of the question that `words` leaves out; action: the number
    of the listed one that is played, None where the gate decides."""

    picture: Picture
    words: list[int]
    query: list[int]
    cut: int
    price: float
    max_tokens: int
    action: int | None = None


@dataclass(frozen=True)
class Decisions:
    """A batch that is decided. outputs: the gate's raw ones, of the rows that it decides; asked [B, T]
    tokens; pooled [B, T, 2]: realised rows and columns of each tile."""

    outputs: Floats
    asked: Ints
    pooled: Ints
    selections: list[Selection]


class Engine:
    """A loaded export, for `pyrskip.answering.answer`: its rows are Prepared, and pictures hold what has been
    seen of them. `encoded` counts the tiles that went through the vision encoder; digest: of the export's
    checksums.

    Two threads must not use one at once, but for `prepare`.
    """

    def __init__(
        self,
        spec: Spec,
        tokenizer: Tokenizer,
        query_tokenizer: Tokenizer | None,
        backend: Backend,
        digest: str,
    ) -> None:
        self.spec, self.backend, self.digest = spec, backend, digest
        self.tokenizer, self.query_tokenizer = tokenizer, query_tokenizer
        self.encoded = 0

    def select(
        self,
        image: Source,
        question: str,
        *,
        price: float | None = None,
        max_tokens: int | None = None,
        retention: float | None = None,
        safe: bool = False,
    ) -> Selection:
        """What to look at. Raises UserError for a bad image or question, or what `check_dial` refuses."""
        return self.select_many([Request(image, question, price, max_tokens, retention, safe)])[0]

    def answer(
        self,
        image: Source,
        question: str,
        *,
        price: float | None = None,
        max_tokens: int | None = None,
        retention: float | None = None,
        safe: bool = False,
    ) -> Answer:
        """The answer, from what was selected alone. Raises UserError as `select` does."""
        return self.answer_many([Request(image, question, price, max_tokens, retention, safe)])[0]

    def select_many(self, requests: Sequence[Request]) -> list[Selection]:
        """A batch. One request's selection never depends on the others."""
        return self.select_rows(self.prepare(requests))

    def answer_many(self, requests: Sequence[Request]) -> list[Answer]:
        """A batch. One request's answer never depends on the others."""
        return self.answer_rows(self.prepare(requests))

    def select_rows(self, rows: "Sequence[Prepared]") -> list[Selection]:
        return self.decide(rows, self.glance(rows)).selections if rows else []

    def answer_rows(self, rows: "Sequence[Prepared]") -> list[Answer]:
        if not rows:
            return []
        answers = answering.answer(self, rows)
        return [Answer(*of) for of in zip(answers.texts, answers.decided.selections, strict=True)]

    def prepare(self, requests: Sequence[Request]) -> "list[Prepared]":
        """Check requests and open their images, each once. Raises UserError for the first that is wrong."""
        opened: dict[object, Picture] = {}
        return [self.prepare_one(request, opened) for request in requests]

    def prepare_one(self, request: Request, opened: "dict[object, Picture]") -> "Prepared":
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

    def row(
        self,
        picture: Picture,
        question: str,
        price: float,
        max_tokens: int = UNLIMITED,
        action: int | None = None,
    ) -> Prepared:
        """A request as it is, its question cut to what the model reads; with an action, no gate decides.
        Raises UserError where its options alone are more."""
        [tokens] = encoded([question], self.tokenizer)
        words = query = read(question, tokens, self.spec.max_words) or [self.spec.end]
        if self.query_tokenizer is not None:
            query = encoded([question], self.query_tokenizer)[0].ids
        return Prepared(picture, words, query, max(0, len(tokens) - len(words)), price, max_tokens, action)

    def picture(self, image: Image.Image) -> Picture:
        pixels = fitted(image, self.spec.pyramid.size)
        return Picture(np.array(pixels.shape[1:]), mipmaps(pixels, self.spec.pyramid.levels))

    def glance(self, rows: Sequence[Prepared]) -> list[Picture]:
        seen = [row.picture for row in rows]
        self._encode([(picture, self.spec.pyramid.glance) for picture in seen])
        return seen

    def decide(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> Decisions:
        cells = self._cells(seen)
        asked, pooled = np.zeros(cells.shape[:2], np.int64), np.zeros_like(cells)
        flops, sure = np.zeros(len(rows)), np.ones(len(rows))
        outputs = np.zeros((0, 0), np.float32)
        at = [i for i, row in enumerate(rows) if row.action is None]
        if at:
            some = [rows[i] for i in at]
            outputs, asked[at], pooled[at], flops[at], sure[at] = self.backend.run(
                "gate",
                {
                    "signals": self._signals(some, [seen[i] for i in at]),
                    **self._tiles(some, cells[at]),
                    "price": np.array([row.price for row in some], dtype=np.float32),
                    "max_tokens": np.array([row.max_tokens for row in some]),
                },
            )
            flops[at] += self.spec.costs.gate
        at = [i for i, row in enumerate(rows) if row.action is not None]
        if at:
            some = [rows[i] for i in at]
            action = {"action": np.array([row.action for row in some])}
            asked[at], pooled[at], flops[at] = self.backend.run(FIXED, action | self._tiles(some, cells[at]))
        parts = zip(pooled.prod(-1).tolist(), flops.tolist(), sure.tolist(), rows, strict=True)
        selections = [self._selection(tiles, cost, confidence, row) for tiles, cost, confidence, row in parts]
        return Decisions(outputs.astype(np.float32), asked, pooled, selections)

    def _tiles(self, rows: Sequence[Prepared], cells: Ints) -> dict[str, Array]:
        """What decisions cost by. cells [B, T, 2]."""
        costs = self.spec.costs.encode
        encode = [[costs[r, c] if r else 0.0 for r, c in of] for of in cells.tolist()]
        words = np.array([len(row.words) + 1 for row in rows])
        return {"cells": cells, "encode": np.array(encode), "words": words}

    def look(
        self, rows: Sequence[Prepared], seen: Sequence[Picture], decided: Decisions
    ) -> Sequence[Picture]:
        of_rows = zip(seen, decided.pooled, strict=True)
        self._encode([(picture, int(tile)) for picture, of in of_rows for tile in np.flatnonzero(of[:, 0])])
        return seen

    def write(self, rows: Sequence[Prepared], seen: Sequence[Picture], decided: Decisions) -> list[str]:
        texts = [""] * len(rows)
        for group in _groups(decided.pooled):
            written = self._write([rows[row] for row in group], decided.pooled[group[0]])
            for row, text in zip(group, written, strict=True):
                texts[row] = text
        return texts

    def first_token(self, rows: Sequence[Prepared], pooled: Ints) -> Floats:
        """Logits [B, V] of each answer's first token from what is encoded already. pooled [B, T, 2]."""
        logits: list[Floats] = [np.zeros(0, np.float32)] * len(rows)
        for group in _groups(pooled):
            found = self._read([rows[row] for row in group], pooled[group[0]])[0]
            for row, of in zip(group, found, strict=True):
                logits[row] = of
        return np.stack(logits)

    def _selection(self, tiles: list[int], flops: float, confidence: float, row: Prepared) -> Selection:
        levels = dict.fromkeys(self.spec.pyramid.places[t].level for t, n in enumerate(tiles) if n)
        cost = flops / self.spec.costs.unit
        return Selection(tuple(levels), sum(tiles), tuple(tiles), cost, flops, confidence, row.price, row.cut)

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

    def _signals(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> dict[str, Array]:
        """Every tensor that the gate reads, [B, ...]."""
        sources: dict[str, tuple[Array, ...]] = {}
        signals: dict[str, Array] = {}
        for of in self.spec.signals.values():
            if of.source not in sources:
                sources[of.source] = self._source(of.source, rows, seen)
            found: Sequence[Array] = sources[of.source]
            if of.graph is not None:
                found = self.backend.run(of.graph, dict(zip(("value", "mask"), found, strict=False)))
            signals |= zip(of.tensors, found, strict=True)
        return signals

    def _source(self, name: str, rows: Sequence[Prepared], seen: Sequence[Picture]) -> tuple[Array, ...]:
        """What pyrskip.signals.SOURCES gives of a model."""
        if name == "question":
            return pad_ids([row.query for row in rows])
        pyramid, cells = self.spec.pyramid, self._cells(seen)
        side, glance = pyramid.places[pyramid.glance].side, pyramid.glance
        if name == "glance":
            return _padded([picture.maps[glance] for picture in seen], side // pyramid.stride)
        if name == "pixels":
            levels = [picture.levels[-1] for picture in seen]
            return _padded([level for level in levels if level is not None], side)
        pooled = np.zeros_like(cells)
        pooled[:, glance] = cells[:, glance]
        return (self.first_token(rows, pooled),)

    def _encode(self, wanted: Sequence[tuple[Picture, int]]) -> None:
        """Encode tiles that are not yet, those of one shape together."""
        shapes: dict[tuple[int, int], dict[tuple[int, int], tuple[Picture, int]]] = defaultdict(dict)
        for picture, tile in wanted:
            if tile not in picture.maps:
                rows, columns = self.spec.pyramid.cells(picture.size[None])[0, tile].tolist()
                if rows:
                    shapes[rows, columns][id(picture), tile] = picture, tile
        for shape, distinct in shapes.items():
            tiles = list(distinct.values())
            for start in range(0, len(tiles), MOST_TILES):
                some = tiles[start : start + MOST_TILES]
                crops = [self._crop(picture, tile, np.array(shape)) for picture, tile in some]
                features = self.backend.run("vision", {"pixels": np.stack(crops)})[0].astype(np.float32)
                self.encoded += len(some)
                for (picture, tile), of in zip(some, features, strict=True):
                    picture.maps[tile] = of

    def _crop(self, picture: Picture, tile: int, cells: Ints) -> Floats:
        """A tile's valid part [3, rows, columns], padded with 0 to whole cells."""
        pyramid = self.spec.pyramid
        level = picture.levels[pyramid.places[tile].level]
        assert level is not None, "a tile of a level without pixels is asked for"
        valid = pyramid.crop(level, tile)
        out = np.zeros((3, *(cells * pyramid.stride)), dtype=np.float32)
        out[:, : valid.shape[1], : valid.shape[2]] = valid
        return out

    def _read(self, rows: Sequence[Prepared], pooled: Ints) -> tuple[Floats, Arrays]:
        """Logits [B, V] of the first token under one decision [T, 2], and the STATE."""
        tiles = np.flatnonzero(pooled[:, 0]).tolist()
        pyramid, pictures = self.spec.pyramid, [row.picture for row in rows]
        size = np.stack([picture.size for picture in pictures])
        level = np.concatenate([np.full(pooled[t].prod(), pyramid.places[t].level) for t in tiles])
        features = np.stack([np.concatenate([pool(p.maps[t], pooled[t]) for t in tiles]) for p in pictures])
        places = [pyramid.where(size, t, pooled[None, t], tuple(pooled[t].tolist())) for t in tiles]
        centre, extent = (np.concatenate(part, axis=1) for part in zip(*places, strict=True))
        inputs = {"features": features, "centre": centre, "extent": extent, "level": level}
        ids, mask = pad_ids([row.words for row in rows])
        visual = self.backend.run("projector", inputs)[0]
        logits, *state = self.backend.run("prefill", {"visual": visual, "ids": ids, "mask": mask})
        return logits.astype(np.float32), state

    def _write(self, rows: Sequence[Prepared], pooled: Ints) -> list[str]:
        """Greedy answers under one decision [T, 2]."""
        end, most = self.spec.end, self.spec.max_answer
        logits, state = self._read(rows, pooled)
        written: list[Ints] = []
        done = np.zeros(len(rows), dtype=bool)
        for step in range(most):
            token = np.where(done, end, logits.argmax(-1))
            written.append(token)
            done |= token == end
            if done.all() or step + 1 == most:
                break
            inputs = {"token": token, "step": np.array([step + 1]), **dict(zip(STATE, state, strict=False))}
            logits, *longer = self.backend.run("decode", inputs)
            state[: len(longer)] = longer
        ids = np.stack(written, axis=1).tolist()
        ids = [row[: row.index(end)] if end in row else row for row in ids]
        return [self.tokenizer.decode(row).strip() for row in ids]


def _groups(pooled: Ints) -> list[list[int]]:
    """Rows of one decision together. pooled [B, T, 2]."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, of in enumerate(pooled):
        groups[of.tobytes()].append(row)
    return list(groups.values())


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
