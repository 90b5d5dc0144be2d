"""Run an export: what to look at, and the answer. numpy alone; the graphs run in a backend.

Axes: B requests, T tiles, S listed actions, W words, N visual tokens, L levels.

A batch is decided together and answered in groups of one decision, so that what a request skips is never
computed: not padded, not masked, not encoded. An image that several requests share (the same object) is
encoded once.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from pyrskip.cost import answer_flops
from pyrskip.errors import UserError
from pyrskip.inference.arrays import Floats, Ints, pad_ids, pool
from pyrskip.inference.bundle import STATE, Spec
from pyrskip.inference.images import Source, open_image
from pyrskip.inference.policy import UNLIMITED, Decided, realise
from pyrskip.picture import fitted, mipmaps

MOST_TILES = 64
"""Tiles encoded in one run of the vision graph: bounds the memory of a large batch."""


class Backend(Protocol):
    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Outputs of a graph of pyrskip.inference.bundle.GRAPHS."""
        ...


@dataclass(frozen=True)
class Request:
    """A question on an image: a path, bytes or a PIL image. price: what relative cost 1 is worth in score;
    max_tokens: most visual tokens; with neither, the export's default price; with max_tokens alone, the
    lowest price."""

    image: Source
    question: str
    price: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Selection:
    """What the gate decided. levels: kept, finest first; tokens: visual tokens in all; tiles: of each tile, 0
    = skipped; cost: FLOPs of everything that runs over the mean full pyramid's; confidence: the policy's
    probability of this selection."""

    levels: tuple[int, ...]
    tokens: int
    tiles: tuple[int, ...]
    cost: float
    flops: float
    confidence: float
    price: float


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
class Decisions:
    """A batch that is decided. outputs: the gate's raw ones; pooled [B, T, 2]: realised rows and columns of
    each tile."""

    pictures: list[Picture]
    words: list[list[int]]
    outputs: Floats
    decided: Decided
    pooled: Ints
    selections: list[Selection]


@dataclass(frozen=True)
class Written:
    """texts [B], and logits [B, V] of each answer's first token."""

    texts: list[str]
    logits: Floats


class Engine:
    """A loaded export. `encoded` counts the tiles that went through the vision encoder; digest: of the
    export's checksums.

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
        self.longest = max(map(len, tokenizer.get_vocab()))
        self.encoded = 0

    def select(
        self, image: Source, question: str, *, price: float | None = None, max_tokens: int | None = None
    ) -> Selection:
        """What to look at. Raises UserError for a bad image, question, price or max_tokens."""
        return self.select_many([Request(image, question, price, max_tokens)])[0]

    def answer(
        self, image: Source, question: str, *, price: float | None = None, max_tokens: int | None = None
    ) -> Answer:
        """The answer, from what was selected alone. Raises UserError for a bad image, question, price or
        max_tokens."""
        return self.answer_many([Request(image, question, price, max_tokens)])[0]

    def select_many(self, requests: Sequence[Request]) -> list[Selection]:
        """A batch. One request's selection never depends on the others."""
        return self.decide(self.prepare(requests)).selections if requests else []

    def answer_many(self, requests: Sequence[Request]) -> list[Answer]:
        """A batch. One request's answer never depends on the others."""
        if not requests:
            return []
        decisions = self.decide(self.prepare(requests))
        return [Answer(t, s) for t, s in zip(self.write(decisions).texts, decisions.selections, strict=True)]

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

    def prepared(self, picture: Picture, request: Request) -> "Prepared":
        """A request whose picture is open. Raises UserError for a bad question, price or max_tokens."""
        price, most = self.check_dial(request.price, request.max_tokens)
        self.check_question(request.question)
        return Prepared(picture, request.question, price, most)

    def picture(self, image: Image.Image) -> Picture:
        pixels = fitted(image, self.spec.pyramid.size)
        return Picture(np.array(pixels.shape[1:]), mipmaps(pixels, self.spec.pyramid.levels))

    def check_question(self, question: str) -> None:
        """Raises UserError where it is empty or longer than the model reads."""
        if not isinstance(question, str) or not question.strip():
            raise UserError("the question is empty; allowed: one with at least a word")
        # what is cut off here is more than max_words of the longest token
        words = len(self.tokenizer.encode(question[: self.longest * self.spec.max_words + 1]).ids)
        if words > self.spec.max_words:
            raise UserError(
                f"the question has more than {self.spec.max_words} tokens, which is as many as the model "
                "reads"
            )

    def decide(self, prepared: "Sequence[Prepared]") -> Decisions:
        """Encode the glances and the questions, and ask the gate."""
        spec, pyramid = self.spec, self.spec.pyramid
        pictures = [p.picture for p in prepared]
        self._encode([(picture, pyramid.glance) for picture in pictures])
        size = np.stack([picture.size for picture in pictures])
        cells = pyramid.cells(size)
        capacity = cells.prod(-1)
        # one by one: the batch calls hand rows to threads, which costs more than so few rows do
        words = [self.tokenizer.encode(p.question).ids[: spec.max_words] or [spec.end] for p in prepared]
        length = np.array([len(row) + 1 for row in words])
        query_ids = words
        if self.query_tokenizer is not None:
            query_ids = [self.query_tokenizer.encode(p.question).ids for p in prepared]
        ids, mask = pad_ids(query_ids)
        price = np.array([p.price for p in prepared], dtype=np.float32)
        encode = np.array([[spec.costs.encode[r, c] if r else 0.0 for r, c in row] for row in cells.tolist()])
        asked = spec.rule.budget.tokens(spec.rule.selection[None], capacity[:, None])
        tokens = realise(asked, cells[:, None]).prod(-1)
        cost = (self._flops(tokens, encode[:, None], length[:, None]) / spec.costs.unit).astype(np.float32)
        maps, inside = self._glances(pictures, cells[:, pyramid.glance])
        outputs = self.backend.run(
            "gate",
            {
                "query": self.backend.run("query", {"ids": ids, "mask": mask})[0],
                "query_mask": mask,
                "glance": maps,
                "glance_mask": inside,
                "capacity": capacity,
                "cost": cost,
                "price": price,
            },
        )[0].astype(np.float32)
        decided = spec.rule.decide(outputs, capacity, cost, price, np.array([p.max_tokens for p in prepared]))
        pooled = realise(decided.asked, cells)
        realised = pooled.prod(-1)
        flops = self._flops(realised, encode, length) + spec.costs.gate
        rows = zip(realised.tolist(), flops.tolist(), decided.confidence.tolist(), prepared, strict=True)
        selections = [self._selection(tiles, cost, sure, p.price) for tiles, cost, sure, p in rows]
        return Decisions(pictures, words, outputs, decided, pooled, selections)

    def write(self, decisions: Decisions) -> Written:
        """Encode what was asked for and answer, in groups of one decision."""
        wanted = [
            (picture, tile)
            for picture, row in zip(decisions.pictures, decisions.pooled, strict=True)
            for tile in np.flatnonzero(row[:, 0]).tolist()
        ]
        self._encode(wanted)
        groups: dict[bytes, list[int]] = defaultdict(list)
        for row, pooled in enumerate(decisions.pooled):
            groups[pooled.tobytes()].append(row)
        texts = [""] * len(decisions.pictures)
        logits: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(texts)
        for rows in groups.values():
            pictures = [decisions.pictures[row] for row in rows]
            first, written = self._generate(
                pictures, decisions.pooled[rows[0]], [decisions.words[row] for row in rows]
            )
            for row, of, text in zip(rows, first, written, strict=True):
                logits[row], texts[row] = of, text
        return Written(texts, np.stack(logits))

    def _selection(self, tiles: list[int], flops: float, confidence: float, price: float) -> Selection:
        levels = dict.fromkeys(self.spec.pyramid.places[t].level for t, n in enumerate(tiles) if n)
        cost = flops / self.spec.costs.unit
        return Selection(tuple(levels), sum(tiles), tuple(tiles), cost, flops, confidence, price)

    def check_dial(self, price: float | None, max_tokens: int | None) -> tuple[float, int]:
        """The price and the most tokens that a request means. Raises UserError where one is out of range."""
        prices = self.spec.prices
        if max_tokens is not None and (
            isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1
        ):
            raise UserError(f"max_tokens={max_tokens!r}: allowed: whole numbers of at least 1")
        most = UNLIMITED if max_tokens is None else min(max_tokens, UNLIMITED)
        if price is None:
            return (prices.default if max_tokens is None else prices.low), most
        if isinstance(price, bool) or not isinstance(price, int | float) or not math.isfinite(price):
            raise UserError(f"price={price!r}: allowed: a finite number")
        if not prices.low <= price <= prices.high:
            allowed = (
                f"{prices.low} to {prices.high}" if math.isfinite(prices.high) else f"at least {prices.low}"
            )
            if prices.low == prices.high:
                allowed = f"{prices.low} alone, which it was trained for"
            raise UserError(f"price={price} is out of this gate's range; allowed: {allowed}")
        return float(price), most

    def _flops(self, tokens: Ints, encode: NDArray[np.float64], words: Ints) -> NDArray[np.float64]:
        """Without the gate. tokens, encode [..., T], words [...] of the prompt -> [...]."""
        costs = self.spec.costs
        visual = tokens.sum(-1).astype(np.float64)
        read = answer_flops(
            costs.transformer,
            visual,
            words.astype(np.float64),
            costs.answer_tokens,
            convention=costs.convention,
        )
        looked = costs.projector * visual + ((tokens > 0) * encode).sum(-1)
        total: NDArray[np.float64] = read + looked
        return total

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

    def _glances(self, pictures: Sequence[Picture], cells: Ints) -> tuple[Floats, NDArray[np.bool_]]:
        """Encoded glances padded to the tile, and what of them is no padding. cells [B, 2]."""
        pyramid = self.spec.pyramid
        glance = pyramid.glance
        side = pyramid.places[glance].side // pyramid.stride
        channels = len(pictures[0].maps[glance])
        maps = np.zeros((len(pictures), channels, side, side), dtype=np.float32)
        for row, picture in enumerate(pictures):
            of = picture.maps[glance]
            maps[row, :, : of.shape[1], : of.shape[2]] = of
        place = np.arange(side)
        return maps, (place[:, None] < cells[:, :1, None]) & (place < cells[:, 1:, None])

    def _generate(
        self, pictures: Sequence[Picture], pooled: Ints, words: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.float32], list[str]]:
        """Greedy answers under one decision, and the first tokens' logits."""
        tiles = np.flatnonzero(pooled[:, 0]).tolist()
        pyramid, size = self.spec.pyramid, np.stack([picture.size for picture in pictures])
        level = np.concatenate([np.full(pooled[t].prod(), pyramid.places[t].level) for t in tiles])
        features = np.stack([np.concatenate([pool(p.maps[t], pooled[t]) for t in tiles]) for p in pictures])
        places = [pyramid.where(size, t, pooled[None, t], tuple(pooled[t].tolist())) for t in tiles]
        centre, extent = (np.concatenate(part, axis=1) for part in zip(*places, strict=True))
        inputs = {"features": features, "centre": centre, "extent": extent, "level": level}
        ids, mask = pad_ids(words)
        visual = self.backend.run("projector", inputs)[0]
        logits, *state = self.backend.run("prefill", {"visual": visual, "ids": ids, "mask": mask})
        first = logits
        written: list[NDArray[np.int64]] = []
        done = np.zeros(len(ids), dtype=bool)
        for step in range(self.spec.max_answer):
            token = np.where(done, self.spec.end, logits.argmax(-1))
            written.append(token)
            done |= token == self.spec.end
            if done.all() or step + 1 == self.spec.max_answer:
                break
            inputs = {"token": token, "step": np.array([step + 1]), **dict(zip(STATE, state, strict=False))}
            logits, *longer = self.backend.run("decode", inputs)
            state[: len(longer)] = longer
        rows = np.stack(written, axis=1).tolist()
        rows = [row[: row.index(self.spec.end)] if self.spec.end in row else row for row in rows]
        return first.astype(np.float32), [self.tokenizer.decode(row).strip() for row in rows]


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and whose image is open."""

    picture: Picture
    question: str
    price: float
    max_tokens: int
