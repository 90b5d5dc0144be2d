"""What the frontier has the model itself do: questions answered as a server would answer them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrskip.answering import answer
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.metrics import score
from pyrskip.models.halves import in_halves
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import GatedModel
from pyrskip.progress import each
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Sample


@dataclass(frozen=True)
class Shown:
    """A question as answered under a decision. image uint8 [3, h, w]; kept [T] bool; tokens: realised, all
    tiles together; relative_cost: 1 = mean full; heat: what the gate thought of each tile, name -> [T] in
    0..1, of one that tells."""

    image: Tensor
    question: str
    answer: str
    truth: str
    right: bool
    kept: Tensor
    tokens: int
    relative_cost: float
    type: str
    heat: Mapping[str, Tensor] = field(default_factory=dict)


def check_inference(
    model: GatedModel,
    gate: Gate,
    table: RolloutTable,
    test: ShardDataset,
    unit: float,
    price: float,
    images: int = 250,
) -> dict[str, Any]:
    """Answer test questions as a server would, only kept tiles encoded, and hold it against the rollout
    table.

    Returns the accuracy of both on the same questions and how many decisions and scores differ.
    """
    environment = TableEnvironment(table, model.pyramid, gate.layout.budget, unit)
    gated = Gated(model, gate, unit, price)
    where = {key: row for row, key in enumerate(table.keys)}
    right, expected, differ, encoded, wanted = [], [], 0, model.encoded, 0

    def check(batch: Batch) -> None:
        nonlocal right, expected, differ, wanted
        rows = torch.tensor([where[key] for key in batch.keys])
        answers = answer(gated, batch)
        with torch.no_grad():
            from_table = gate.policy(environment.observe(rows, torch.full((len(rows),), price))).mode()
        wanted += int(batch.of_images(answers.decided.selection).sum())
        if not isinstance(model, NativeModel):  # the gate has an encoder of its own for the glance
            wanted += len(batch.image)
        differ += int((answers.decided.tokens != from_table.tokens).any(-1).sum())
        pairs = zip(answers.texts, batch.questions, strict=True)
        right += [score(text, q.answers, q.metric, q.text) for text, q in pairs]
        expected += environment.score(rows, from_table).tolist()

    for start in each(range(0, min(images, len(test)), 25), "frontier, real inference", "batch"):
        samples = [test[i] for i in range(start, min(start + 25, len(test)))]
        batch = collate(samples, model.pyramid.size)
        batch = batch.rows([row for row, key in enumerate(batch.keys) if key in where])
        if len(batch):
            in_halves(check, batch)
    return {
        "price": price,
        "questions": len(right),
        "accuracy": sum(right) / len(right),
        "accuracy_from_table": sum(expected) / len(expected),
        "decisions_that_differ": differ,
        "scores_that_differ": sum(a != b for a, b in zip(right, expected, strict=True)),
        "tiles_encoded": model.encoded - encoded,
        "tiles_asked_for": wanted,
    }


def shown(
    model: GatedModel, gate: Gate, samples: Sequence[Sample], unit: float, price: float, gate_flops: float
) -> list[Shown]:
    """One question of each sample, answered as a server would: types in turn, and of a type its questions."""
    result = []
    for i, sample in enumerate(samples):
        kinds = sorted({q.type for q in sample.questions})
        turn, kind = divmod(i, len(kinds))
        rows = [row for row, q in enumerate(sample.questions) if q.type == kinds[kind]]
        result.append(answered(model, gate, sample, rows[turn % len(rows)], unit, price, gate_flops))
    return result


def answered(
    model: GatedModel, gate: Gate, sample: Sample, row: int, unit: float, price: float, gate_flops: float
) -> Shown:
    """A sample's question, answered as a server would."""
    batch = Batch.collate([sample], model.pyramid.size).rows([row])
    gated = Gated(model, gate, unit, price)
    answers = answer(gated, batch)
    heat = gate.heat(gated.observe(batch, gated.glance(batch))) if gate.scores else {}
    tokens, question, text = answers.decided.tokens, batch.questions[0], answers.texts[0]
    cost = model.cost(model.realise(tokens, batch.size), batch.size, model.prompt_tokens(batch))
    return Shown(
        image=sample.image,
        question=question.text,
        answer=text,
        truth=question.answers[0],
        right=score(text, question.answers, question.metric, question.text) > 0,
        kept=tokens[0] > 0,
        tokens=int(cost.tokens),
        relative_cost=(float(cost.flops) + gate_flops) / unit,
        type=question.type,
        heat={name: score[0].cpu() for name, score in heat.items()},
    )


BETWEEN = 4
"""Prices that are tried between two of those that are given."""


def across(
    model: GatedModel, gate: Gate, sample: Sample, row: int, unit: float, prices: Sequence[float]
) -> list[tuple[float, Shown]]:
    """A sample's question, answered at prices from the lowest to the highest: the first price of each
    decision that differs from the one before. The gate's own FLOPs are part of the cost."""
    batch = Batch.collate([sample], model.pyramid.size).rows([row])
    own = Gated(model, gate, unit).gate_flops(batch)
    places = np.linspace(0, len(prices) - 1, (len(prices) - 1) * (BETWEEN + 1) + 1)
    found: list[tuple[float, Shown]] = []
    for price in np.exp(np.interp(places, range(len(prices)), np.log(np.maximum(prices, 1e-9)))).tolist():
        one = answered(model, gate, sample, row, unit, price, own)
        if not found or not one.kept.equal(found[-1][1].kept):
            found.append((price, one))
    return found
