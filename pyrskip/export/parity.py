"""Does an export do what the trained model and gate do? Checked on a whole split, at every export.

The reference is the path of the evaluation's real inference: encode the glance, ask the gate, encode what it
asked for, answer. Axes: B questions, T tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.inference.engine import Engine, Prepared
from pyrskip.inference.policy import UNLIMITED
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.sample import Batch, Sample

MARGIN = 1e-4
TOLERANCE = 1e-4
IMAGES = 25


@dataclass(frozen=True)
class Parity:
    """One backend against the trained model on a split. decisions: compared, over all prices; inside: those
    whose margin is at most MARGIN, which may differ; differ: of the others; answers_differ counts questions
    whose decision was the same.

    outputs, logits: largest differences, of the gate's raw outputs and of the answer's first token;
    logits_over_scale: the same over each row's largest logit where that is above 1, since a float32 sum is as
    exact as it is large. accuracy: at `price`, the export's and the model's.
    """

    backend: str
    questions: int
    prices: list[float]
    decisions: int
    inside: int
    inside_that_differ: int
    differ: int
    outputs: float
    logits: float
    logits_over_scale: float
    price: float
    answers_differ: int
    accuracy: float
    accuracy_of_model: float

    @property
    def holds(self) -> bool:
        return (
            not self.differ
            and not self.answers_differ
            and max(self.outputs, self.logits_over_scale) <= TOLERANCE
        )

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.questions} questions, {self.decisions} decisions at {len(self.prices)} "
            "prices: "
            f"{self.differ} differ, {self.inside} within {MARGIN} of a tie ({self.inside_that_differ} "
            "differ); "
            f"largest difference of gate outputs {self.outputs:.1e}, of logits {self.logits:.1e} "
            f"({self.logits_over_scale:.1e} of their scale); {self.answers_differ} answers differ; "
            f"accuracy {self.accuracy:.4f}, the model's {self.accuracy_of_model:.4f}"
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
    sums = {name: _Sums() for name in engines}
    for samples in _chunks(data):
        batch = Batch.collate(samples, model.pyramid.size)
        reference = _reference(model, gate, batch, unit, prices, price)
        for name, engine in engines.items():
            _compare(sums[name], engine, samples, batch, reference, prices, price)
    results = [_total(name, of, prices, price) for name, of in sums.items()]
    for result in results:
        if not result.holds:
            raise UserError(f"the export is not the model, nothing was written: {result}")
    return results


def as_plain(results: Sequence[Parity]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]


@dataclass(frozen=True)
class _Reference:
    """asked: price -> [B, T]; logits [B, V] and texts [B] at the price of the answers."""

    outputs: np.ndarray[Any, Any]
    asked: dict[float, np.ndarray[Any, Any]]
    logits: np.ndarray[Any, Any]
    texts: list[str]


class _Sums:
    def __init__(self) -> None:
        self.questions = self.inside = self.inside_that_differ = self.differ = self.answers_differ = 0
        self.outputs = self.logits = self.logits_over_scale = self.right = self.right_of_model = 0.0


@torch.no_grad()
def _reference(
    model: NativeModel, gate: Gate, batch: Batch, unit: float, prices: Sequence[float], price: float
) -> _Reference:
    gated = Gated(model, gate, unit)
    features = gated.glance(batch)
    asked, outputs = {}, None
    for dial in prices:
        gated.price = float(dial)
        seen = gated.observe(batch, features)
        raw = gate(seen)
        asked[dial] = gate.policy(seen, raw).mode().tokens
        if dial == price:
            outputs = raw
    assert outputs is not None, "the price of the answers is among those of the decisions"
    features = model.look(batch, features, asked[price])
    visual, _ = model.visual(batch, features, asked[price])
    question = model.language.tokenize(batch.texts)
    logits = model.language.prefill(visual, question)[0]
    texts = model.language.generate(visual, question)
    return _Reference(outputs.numpy(), {k: v.numpy() for k, v in asked.items()}, logits.numpy(), texts)


def _compare(
    sums: _Sums,
    engine: Engine,
    samples: Sequence[Sample],
    batch: Batch,
    reference: _Reference,
    prices: Sequence[float],
    price: float,
) -> None:
    pictures = [engine.picture(Image.fromarray(s.image.permute(1, 2, 0).numpy())) for s in samples]
    rows = list(zip(batch.image_of.tolist(), batch.texts, strict=True))
    sums.questions += len(rows)
    for dial in prices:
        decisions = engine.decide(
            [Prepared(pictures[image], text, float(dial), UNLIMITED) for image, text in rows]
        )
        differ = (decisions.decided.asked != reference.asked[dial]).any(-1)
        inside = decisions.decided.margin <= MARGIN
        sums.inside += int(inside.sum())
        sums.inside_that_differ += int((inside & differ).sum())
        sums.differ += int((~inside & differ).sum())
        if dial == price:
            sums.outputs = max(sums.outputs, float(np.abs(decisions.outputs - reference.outputs).max()))
            written, same = engine.write(decisions), ~differ
            if same.any():
                apart = np.abs(written.logits - reference.logits)[same].max(-1)
                scale = np.abs(reference.logits)[same].max(-1).clip(min=1)
                sums.logits = max(sums.logits, float(apart.max()))
                sums.logits_over_scale = max(sums.logits_over_scale, float((apart / scale).max()))
            pairs = list(zip(written.texts, reference.texts, batch.questions, same.tolist(), strict=True))
            sums.answers_differ += sum(text != expected for text, expected, _, alike in pairs if alike)
            sums.right += sum(score(text, q.answers, q.metric, q.text) for text, _, q, _ in pairs)
            sums.right_of_model += sum(
                score(expected, q.answers, q.metric, q.text) for _, expected, q, _ in pairs
            )


def _total(name: str, sums: _Sums, prices: Sequence[float], price: float) -> Parity:
    return Parity(
        backend=name,
        questions=sums.questions,
        prices=list(prices),
        decisions=sums.questions * len(prices),
        inside=sums.inside,
        inside_that_differ=sums.inside_that_differ,
        differ=sums.differ,
        outputs=sums.outputs,
        logits=sums.logits,
        logits_over_scale=sums.logits_over_scale,
        price=price,
        answers_differ=sums.answers_differ,
        accuracy=sums.right / sums.questions,
        accuracy_of_model=sums.right_of_model / sums.questions,
    )


def _chunks(data: ShardDataset) -> Iterator[list[Sample]]:
    for start in range(0, len(data), IMAGES):
        samples = [data[i] for i in range(start, min(start + IMAGES, len(data)))]
        readable = [sample for sample in samples if sample is not None]
        if readable:
            yield readable
