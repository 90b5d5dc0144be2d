"""Does an export do what the trained model and gate do? Checked on a whole split, at every export.

Both answer by `pyrskip.answering.answer`. Axes: B questions, T tiles, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pyrskip.answering import answer
from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.inference.decider import UNLIMITED, Decisions
from pyrskip.inference.engine import Engine
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.sample import Batch, Sample

MARGIN = 1e-4
TOLERANCE = 1e-4
IMAGES = 25


@dataclass(frozen=True)
class Parity:
    """One backend against the trained model on a split. decisions: compared, over all prices, without a limit
    of tokens and with one; inside: those whose margin is at most MARGIN, which may differ; differ: of the
    others; answers_differ counts questions whose decision was the same.

    outputs, logits: largest differences, of the gate's raw outputs and of the answer's first token;
    logits_over_scale: the same over each row's largest logit where that is above 1, since a float32 sum is as
    exact as it is large. fixed: decisions that are played in place of the gate's, compared; fixed_differ: of
    those. accuracy: at `price`, the export's and the model's.
    """

    backend: str
    questions: int
    prices: list[float]
    limit: int
    decisions: int
    inside: int
    inside_that_differ: int
    differ: int
    outputs: float
    logits: float
    logits_over_scale: float
    fixed: int
    fixed_differ: int
    price: float
    answers_differ: int
    accuracy: float
    accuracy_of_model: float

    @property
    def holds(self) -> bool:
        return (
            not self.differ
            and not self.fixed_differ
            and not self.answers_differ
            and max(self.outputs, self.logits_over_scale) <= TOLERANCE
        )

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.questions} questions, {self.decisions} decisions at {len(self.prices)} "
            f"prices, without a limit and with max_tokens={self.limit}: {self.differ} differ, {self.inside} "
            f"within {MARGIN} of a tie ({self.inside_that_differ} differ); largest difference of gate "
            f"outputs {self.outputs:.1e}, of logits {self.logits:.1e} ({self.logits_over_scale:.1e} of their "
            f"scale); {self.fixed_differ} of {self.fixed} fixed selections differ; {self.answers_differ} "
            f"answers differ; accuracy {self.accuracy:.4f}, the model's "
            f"{self.accuracy_of_model:.4f}"
        )


def check(
    model: NativeModel,
    gate: Gate,
    engines: dict[str, Engine],
    data: ShardDataset,
    unit: float,
    prices: Sequence[float],
    price: float,
) -> list[Parity]:
    """Compare every backend on every question of the split. prices: of the decisions; price: of the answers,
    one of them.

    Raises UserError, with what differs, where one of them is not the same.
    """
    limit = max(1, int(model.pyramid.capacity(torch.full((1, 2), model.pyramid.size)).sum()) // 4)
    sums = {name: _Sums() for name in engines}
    for samples in chunks(data):
        batch = Batch.collate(samples, model.pyramid.size)
        reference = _reference(model, Gated(model, gate, unit, price), batch, prices, limit)
        for name, engine in engines.items():
            _compare(sums[name], engine, samples, batch, reference, price)
    results = [_total(name, of, prices, price, limit) for name, of in sums.items()]
    for result in results:
        if not result.holds:
            raise UserError(f"the export is not the model, nothing was written: {result}")
    return results


@dataclass(frozen=True)
class _Reference:
    """decisions: price and limit -> decisions [B, T] and which of them are within MARGIN of another [B];
    listed: every listed decision by its name, [B, T]; at the price of the answers, without a limit: the
    gate's outputs, logits [B, V] of the first token, texts [B]."""

    decisions: dict[tuple[float, int | None], tuple[NDArray[np.int64], NDArray[np.bool_]]]
    listed: dict[str, NDArray[np.int64]]
    outputs: NDArray[np.float32]
    logits: NDArray[np.float32]
    texts: list[str]


class _Sums:
    def __init__(self) -> None:
        self.questions = self.inside = self.inside_that_differ = self.differ = self.answers_differ = 0
        self.decisions = self.fixed = self.fixed_differ = 0
        self.outputs = self.logits = self.logits_over_scale = self.right = self.right_of_model = 0.0

    def decisions_of(
        self, decided: Decisions, wanted: NDArray[np.int64], inside: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Count a batch; returns which decisions differ, [B]."""
        differ: NDArray[np.bool_] = (decided.asked != wanted).any(-1)
        self.decisions += len(differ)
        self.inside += int(inside.sum())
        self.inside_that_differ += int((inside & differ).sum())
        self.differ += int((~inside & differ).sum())
        return differ


@torch.no_grad()
def _reference(
    model: NativeModel, gated: Gated, batch: Batch, prices: Sequence[float], limit: int
) -> _Reference:
    """gated: the model with its gate at the price of the answers."""
    answers = answer(gated, batch)
    observed = gated.observe(batch, answers.seen)
    outputs = gated.gate(observed)
    visual, _ = model.visual(batch, answers.seen, answers.decided.tokens)
    logits = model.language.prefill(visual, model.language.tokenize(batch.texts))[0]
    decisions = {}
    priced = torch.tensor(prices, dtype=torch.float32)[:, None].expand(-1, len(observed.price))
    for price, at, of in zip(prices, priced, gated.gate.of_prices(observed, priced), strict=True):
        policy = gated.gate.policy(replace(observed, price=at), of)
        for most in (None, limit):
            decision = policy.mode(most)
            inside = (policy.margin(decision, most) <= MARGIN).numpy()
            decisions[price, most] = decision.tokens.numpy(), inside
    capacity, layout = model.pyramid.capacity(batch.size)[batch.image_of], gated.gate.layout
    tokens = layout.actions.tokens(capacity, layout.budget).numpy()
    listed = dict(zip(layout.actions.names, tokens.swapaxes(0, 1), strict=True))
    return _Reference(decisions, listed, outputs.numpy(), logits.numpy(), answers.texts)


def _compare(
    sums: _Sums, engine: Engine, samples: Sequence[Sample], batch: Batch, reference: _Reference, price: float
) -> None:
    pictures = [engine.picture(Image.fromarray(s.image.permute(1, 2, 0).numpy())) for s in samples]
    questions = zip(batch.image_of.tolist(), batch.texts, strict=True)
    asked = [engine.row(pictures[image], text, price) for image, text in questions]
    sums.questions += len(asked)
    safe = engine.spec.prices.safe
    for first, action in () if safe is None else safe.fixed:
        number = engine.spec.action(action)
        rows = [replace(row, price=first, action=number) for row in asked]
        decided = engine.decide(rows, engine.glance(rows))
        sums.fixed += len(rows)
        sums.fixed_differ += int((decided.asked != reference.listed[action]).any(-1).sum())
    for (dial, most), (wanted, inside) in reference.decisions.items():
        rows = [replace(row, price=float(dial), max_tokens=most or UNLIMITED) for row in asked]
        if (dial, most) != (price, None):
            sums.decisions_of(engine.decide(rows, engine.glance(rows)), wanted, inside)
            continue
        answers = answer(engine, rows)
        same = ~sums.decisions_of(answers.decided, wanted, inside)
        sums.outputs = max(sums.outputs, float(np.abs(answers.decided.outputs - reference.outputs).max()))
        if same.any():
            logits = engine.first_token(rows, answers.decided.pooled)
            apart = np.abs(logits - reference.logits)[same].max(-1)
            scale = np.abs(reference.logits)[same].max(-1).clip(min=1)
            sums.logits = max(sums.logits, float(apart.max()))
            sums.logits_over_scale = max(sums.logits_over_scale, float((apart / scale).max()))
        pairs = list(zip(answers.texts, reference.texts, batch.questions, same.tolist(), strict=True))
        sums.answers_differ += sum(text != expected for text, expected, _, alike in pairs if alike)
        sums.right += sum(score(text, q.answers, q.metric, q.text) for text, _, q, _ in pairs)
        sums.right_of_model += sum(
            score(expected, q.answers, q.metric, q.text) for _, expected, q, _ in pairs
        )


def _total(name: str, sums: _Sums, prices: Sequence[float], price: float, limit: int) -> Parity:
    return Parity(
        backend=name,
        questions=sums.questions,
        prices=list(prices),
        limit=limit,
        decisions=sums.decisions,
        inside=sums.inside,
        inside_that_differ=sums.inside_that_differ,
        differ=sums.differ,
        outputs=sums.outputs,
        logits=sums.logits,
        logits_over_scale=sums.logits_over_scale,
        fixed=sums.fixed,
        fixed_differ=sums.fixed_differ,
        price=price,
        answers_differ=sums.answers_differ,
        accuracy=sums.right / sums.questions,
        accuracy_of_model=sums.right_of_model / sums.questions,
    )


def chunks(data: ShardDataset) -> Iterator[list[Sample]]:
    for start in range(0, len(data), IMAGES):
        samples = [data[i] for i in range(start, min(start + IMAGES, len(data)))]
        readable = [sample for sample in samples if sample is not None]
        if readable:
            yield readable
