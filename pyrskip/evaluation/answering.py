"""What the frontier has the model itself do: what a gate decides there and costs, and what is answered as a
server would answer it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.gates.gate import Gate
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features, GatedModel
from pyrskip.rollouts.environments import TableEnvironment, observe
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Sample


@dataclass(frozen=True)
class Shown:
    """A question as answered under a decision. image uint8 [3, h, w]; kept [T] bool; tokens: realised, all
    tiles together; relative_cost: 1 = mean full."""

    image: Tensor
    question: str
    answer: str
    truth: str
    right: bool
    kept: Tensor
    tokens: int
    relative_cost: float
    type: str


def decision_of(
    model: GatedModel, gate: Gate, batch: Batch, features: Features, price: Tensor, unit: float
) -> Tensor:
    """What a gate decides after the glance, tokens [B, T]. features: with the glance encoded; price [B]."""
    seen = observe(model, gate.layout, batch, features, price, unit, gate.config.confidence)
    return gate.policy(seen).mode()


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
    where = {key: row for row, key in enumerate(table.keys)}
    gather = partial(collate, side=model.pyramid.size)
    right, expected, differ, encoded, wanted = [], [], 0, model.encoded, 0
    for start in range(0, min(images, len(test)), 25):
        batch = gather([test[i] for i in range(start, min(start + 25, len(test)))])
        if not len(batch):
            continue
        rows = torch.tensor([where[key] for key in batch.keys])
        keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
        keep[:, model.pyramid.glance] = True
        prices = torch.full((len(batch),), price)
        with torch.no_grad():
            decision = decision_of(model, gate, batch, model.encode(batch, keep), prices, unit)
            from_table = gate.policy(environment.observe(rows, prices)).mode()
        answers = model.answer(batch, decision)
        wanted += int(batch.of_images(keep).sum()) + int(batch.of_images(decision > 0).sum())
        differ += int((decision != from_table).any(-1).sum())
        right += [
            score(a, q.answers, q.metric, q.text) for a, q in zip(answers, batch.questions, strict=True)
        ]
        expected += environment.score(rows, from_table).tolist()
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
    """One question of each sample, types in turn, answered as a server would."""
    result = []
    for i, sample in enumerate(samples):
        types = [q.type for q in sample.questions]
        kinds = sorted(set(types))
        row = types.index(kinds[i % len(kinds)])
        result.append(answered(model, gate, sample, row, unit, price, gate_flops))
    return result


def answered(
    model: GatedModel, gate: Gate, sample: Sample, row: int, unit: float, price: float, gate_flops: float
) -> Shown:
    """A sample's question, answered as a server would."""
    batch = Batch.collate([sample], model.pyramid.size).rows([row])
    keep = torch.zeros(1, model.pyramid.tiles, dtype=torch.bool)
    keep[:, model.pyramid.glance] = True
    with torch.no_grad():
        features = model.encode(batch, keep)
        decision = decision_of(model, gate, batch, features, torch.tensor([price]), unit)
    cost = model.cost(model.realise(decision, batch.size), batch.size, model.prompt_tokens(batch))
    question, answer = batch.questions[0], model.answer(batch, decision)[0]
    return Shown(
        image=sample.image,
        question=question.text,
        answer=answer,
        truth=question.answers[0],
        right=score(answer, question.answers, question.metric, question.text) > 0,
        kept=decision[0] > 0,
        tokens=int(cost.tokens),
        relative_cost=(float(cost.flops) + gate_flops) / unit,
        type=question.type,
    )


def gate_flops(model: GatedModel, gate: Gate, batch: Batch, unit: float) -> float:
    """Of one decision, in the cost model's unit: the gate, what encodes the query and the glance for it
    alone, and the model's own first answer if the gate reads how sure of it that is."""
    keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
    keep[:, model.pyramid.glance] = True
    with torch.no_grad():
        features, price = model.encode(batch, keep), torch.zeros(len(batch))
        seen = observe(model, gate.layout, batch, features, price, unit, gate.config.confidence)
        words = model.text.encode(batch.texts)[1].sum(-1)
    query = float(model.text.flops(words).mean()) if gate.reads_query else 0.0
    glance = float(model.glance_flops(batch.size[batch.image_of]).mean()) if gate.reads_glance else 0.0
    own = (gate.flops(seen) + query + glance) * model.convention.per_mac / 2
    if gate.config.confidence and isinstance(model, NativeModel):
        own += float(model.confidence_flops(batch.texts, batch.size[batch.image_of]).mean())
    return own
