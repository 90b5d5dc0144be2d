"""Run an export that holds its model: what to look at, and the answer. numpy alone; the graphs run in a
backend.

Axes: B requests, T tiles, N visual tokens, V vocabulary.

A batch is decided together and answered in groups of one decision, so that what a request skips is never
computed: not padded, not masked, not encoded. An image that several requests share (the same object) is
encoded once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from pyrskip import answering
from pyrskip.inference.arrays import Floats, Ints, pad_ids, pool
from pyrskip.inference.bundle import STATE, Language, Spec
from pyrskip.inference.decider import (
    UNLIMITED,
    Array,
    Arrays,
    Backend,
    Decider,
    Decisions,
    Picture,
    Prepared,
    Request,
    Selection,
)
from pyrskip.inference.images import Source
from pyrskip.words import encoded, read


@dataclass(frozen=True)
class Answer:
    text: str
    selection: Selection


class Engine(Decider):
    """A loaded export, for `pyrskip.answering.answer`."""

    def __init__(
        self,
        spec: Spec,
        tokenizer: Tokenizer,
        query_tokenizer: Tokenizer | None,
        backend: Backend,
        digest: str,
    ) -> None:
        super().__init__(spec, query_tokenizer, backend, digest)
        self.tokenizer = tokenizer

    @property
    def language(self) -> Language:
        language = self.spec.answerer
        assert isinstance(language, Language), "an export that holds its model says how it is asked"
        return language

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

    def select_rows(self, rows: Sequence[Prepared]) -> list[Selection]:
        return self.decide(rows, self.glance(rows)).selections if rows else []

    def answer_rows(self, rows: Sequence[Prepared]) -> list[Answer]:
        if not rows:
            return []
        answers = answering.answer(self, rows)
        return [Answer(*of) for of in zip(answers.texts, answers.decided.selections, strict=True)]

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
        words = query = read(question, tokens, self.language.max_words) or [self.language.end]
        if self.query_tokenizer is not None:
            query = encoded([question], self.query_tokenizer)[0].ids
        cut = max(0, len(tokens) - len(words))
        return Prepared(picture, words, query, cut, len(words) + 1, price, max_tokens, action)

    def decide(self, rows: Sequence[Prepared], seen: Sequence[Picture]) -> Decisions:
        encode = self.spec.costs.encode
        flops = [[encode[r, c] if r else 0.0 for r, c in of] for of in self._windows(seen).tolist()]
        outputs, (asked, pooled, total, sure) = self._run(rows, seen, {"encode": np.array(flops)})
        return Decisions(outputs, asked, pooled, self._selections(rows, pooled.prod(-1), total, sure))

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

    def _source(self, name: str, rows: Sequence[Prepared], seen: Sequence[Picture]) -> tuple[Array, ...]:
        if name != "first_token":
            return super()._source(name, rows, seen)
        cells, glance = self._cells(seen), self.spec.pyramid.glance
        pooled = np.zeros_like(cells)
        pooled[:, glance] = cells[:, glance]
        return (self.first_token(rows, pooled),)

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
        end, most = self.language.end, self.language.max_answer
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
