"""Stage frontier: play every method on the rollout tables, check the gate on real inference, write what came out."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrskip.data.reader import ShardDataset, collate
from pyrskip.errors import UserError
from pyrskip.evaluation.frontier import Frontier, Inputs, frontier
from pyrskip.evaluation.report import Shown, plot_frontier, plot_selections, print_summary, print_table
from pyrskip.evaluation.summary import summary
from pyrskip.evaluation.timing import measure
from pyrskip.gates import load_gate
from pyrskip.gates.gate import Gate
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.environments import TableEnvironment, observe
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Question, Sample


@dataclass(frozen=True)
class EvaluationConfig:
    """prices: the dial's positions on the frontier. resamples: of the bootstrap. retentions: targets of the summary.

    timing_repeats: rounds that a measured time is the median of; 0 measures none. images: shown in selections.png.
    """

    prices: tuple[float, ...] = (0.001, 0.0025, 0.006, 0.013, 0.03, 0.07, 0.15, 0.4)
    resamples: int = 1000
    retentions: tuple[float, ...] = (0.98, 0.99, 0.995)
    timing_repeats: int = 15
    images: int = 12

    def __post_init__(self) -> None:
        if not self.prices or min(self.prices) < 0 or len(set(self.prices)) < len(self.prices):
            raise UserError(f"evaluation.prices={list(self.prices)}: one or more different prices of at least 0 are needed")
        if self.resamples < 2 or self.timing_repeats < 0 or self.images < 1:
            raise UserError(
                f"evaluation.resamples={self.resamples}, timing_repeats={self.timing_repeats}, images={self.images}: "
                "allowed: at least 2, 0 and 1"
            )


def evaluate(
    config: EvaluationConfig,
    model: NativeModel,
    tables: Mapping[str, RolloutTable],
    gates: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    data: Path,
    out: Path,
    broken: Mapping[str, Any],
) -> Frontier:
    """Write `out`/frontier.json, summary.json, frontier.png and selections.png, and print the table.

    gates: method -> one directory a seed, of `seeds`. data: the data stage's directory. broken: split -> what of it could
    not be read, for the summary.
    """
    trained = {method: [load_gate(path) for path in paths] for method, paths in gates.items()}
    first = trained["gate"][0]
    test = ShardDataset(data, "test", model.pyramid.size)
    samples = [s for s in (test[i] for i in range(min(len(test), max(32, config.images)))) if s is not None]
    batch = Batch.collate(samples, model.pyramid.size)
    unit, budget = tables["gate"].mean_full_flops, first.layout.budget
    one = {method: of[0] for method, of in trained.items()}
    timing = None
    if config.timing_repeats:
        timing = measure(model, one, batch, first.layout.actions, budget, unit, config.timing_repeats)
    inputs = Inputs(
        tables=tables,
        pyramid=model.pyramid,
        budget=budget,
        gates=trained,
        seeds=seeds,
        prices=config.prices,
        gate_flops={method: gate_flops(model, gate, batch, unit) for method, gate in one.items()},
        tile_flops={split: tile_flops(model, table.size) for split, table in tables.items()},
        timing=timing,
        resamples=config.resamples,
    )
    result = frontier(inputs)
    told = summary(result, config.retentions, lookup=lookup_accuracy(data, model.pyramid.size))
    price = first.prices([shown_price(told, config)])[0]
    told["real_inference"] = check_inference(model, first, tables["test"], test, unit, price)
    told["broken"] = dict(broken)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "frontier.json", [asdict(row) for row in result.rows])
    write_json(out / "summary.json", told)
    plot_frontier(result.rows, out / "frontier.png")
    samples_shown = shown(model, first, samples[: config.images], unit, price, inputs.gate_flops["gate"])
    plot_selections(samples_shown, model.pyramid, out / "selections.png")
    print_table(result.rows)
    print_summary(told)
    return result


def gate_flops(model: NativeModel, gate: Gate, batch: Batch, unit: float) -> float:
    """Of one decision on an encoded glance, and of the query encoder if it reads one, in the cost model's unit."""
    keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
    keep[:, model.pyramid.glance] = True
    with torch.no_grad():
        seen = observe(model, gate.layout, batch, model.encode(batch, keep), torch.zeros(len(batch)), unit)
        words = model.text.encode(batch.texts)[1].sum(-1)
    query = float(model.text.flops(words).mean()) if gate.reads_query else 0.0
    return (gate.flops(seen) + query) * model.convention.per_mac / 2


def tile_flops(model: NativeModel, size: Tensor) -> Tensor:
    """Of encoding and projecting every tile whole, [M, T], in the cost model's unit."""
    project = model.projector.flops_per_token() * model.pyramid.capacity(size)
    return (model.encode_flops(size) + project) * model.convention.per_mac / 2


def lookup_accuracy(data: Path, side: int) -> float:
    """Test accuracy of the majority answer of each question text among all training questions: no image, no model."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for split in ("train", "gate", "val"):
        for question in _questions(ShardDataset(data, split, side)):
            seen[question.text][question.answers[0]] += 1
    overall = sum(seen.values(), Counter()).most_common(1)[0][0]
    guesses = {text: answers.most_common(1)[0][0] for text, answers in seen.items()}
    test = list(_questions(ShardDataset(data, "test", side)))
    return sum(score(guesses.get(q.text, overall), q.answers, q.metric, q.text) for q in test) / len(test)


def check_inference(
    model: NativeModel, gate: Gate, table: RolloutTable, test: ShardDataset, unit: float, price: float, images: int = 250
) -> dict[str, Any]:
    """Answer test questions as a server would, only kept tiles encoded, and hold it against the rollout table.

    Returns the accuracy of both on the same questions and how many decisions and scores differ.
    """
    environment = TableEnvironment(table, model.pyramid, gate.layout.budget, unit)
    where = {key: row for row, key in enumerate(table.keys)}
    gather = partial(collate, side=model.pyramid.size)
    right, expected, decided, encoded, asked_for = [], [], 0, model.vision.encoded, 0
    for start in range(0, min(images, len(test)), 25):
        batch = gather([test[i] for i in range(start, min(start + 25, len(test)))])
        if not len(batch):
            continue
        rows = torch.tensor([where[key] for key in batch.keys])
        keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
        keep[:, model.pyramid.glance] = True
        prices = torch.full((len(batch),), price)
        with torch.no_grad():
            seen = observe(model, gate.layout, batch, model.encode(batch, keep), prices, unit)
            asked = gate.policy(seen).mode()
            played = gate.policy(environment.observe(rows, prices)).mode()
        answers = model.answer(batch, asked)
        asked_for += _tiles(batch, keep.long()) + _tiles(batch, asked)
        decided += int((asked != played).any(-1).sum())
        right += [score(a, q.answers, q.metric, q.text) for a, q in zip(answers, batch.questions, strict=True)]
        expected += environment.score(rows, played).tolist()
    return {
        "price": price,
        "questions": len(right),
        "accuracy": sum(right) / len(right),
        "accuracy_from_table": sum(expected) / len(expected),
        "decisions_that_differ": decided,
        "scores_that_differ": sum(a != b for a, b in zip(right, expected, strict=True)),
        "tiles_encoded": model.vision.encoded - encoded,
        "tiles_asked_for": asked_for,
    }


def _tiles(batch: Batch, asked: Tensor) -> int:
    """How many tiles of how many images any question asks for."""
    wanted = torch.zeros(len(batch.image), asked.shape[1], dtype=torch.int64).index_add(0, batch.image_of, (asked > 0).long())
    return int((wanted > 0).sum())


def shown_price(told: Mapping[str, Any], config: EvaluationConfig) -> float:
    """The first seed's price at the highest target that it meets, else the middle one."""
    for target in sorted(config.retentions, reverse=True):
        price = told["targets"][str(target)]["gate"]["seeds"][0]["price"]
        if price is not None:
            return float(price)
    return sorted(config.prices)[len(config.prices) // 2]


def shown(
    model: NativeModel, gate: Gate, samples: Sequence[Sample], unit: float, price: float, gate_flops: float
) -> list[Shown]:
    """One question of each sample, types in turn, answered as a server would."""
    result = []
    for i, sample in enumerate(samples):
        batch = Batch.collate([sample], model.pyramid.size)
        types = sorted(set(batch.types))
        row = batch.types.index(types[i % len(types)])
        batch = batch.rows([row])
        keep = torch.zeros(1, model.pyramid.tiles, dtype=torch.bool)
        keep[:, model.pyramid.glance] = True
        with torch.no_grad():
            seen = observe(model, gate.layout, batch, model.encode(batch, keep), torch.tensor([price]), unit)
            asked = gate.policy(seen).mode()
        flops = model.cost(model.realise(asked, batch.size), batch.size, model.prompt_tokens(batch)).flops
        question = batch.questions[0]
        result.append(
            Shown(
                image=sample.image,
                question=question.text,
                answer=model.answer(batch, asked)[0],
                truth=question.answers[0],
                kept=asked[0] > 0,
                relative_cost=(float(flops) + gate_flops) / unit,
                type=question.type,
            )
        )
    return result


def write_json(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(content, indent=1))
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def _questions(data: ShardDataset) -> Iterator[Question]:
    return (question for questions in data.questions() for question in questions or ())
