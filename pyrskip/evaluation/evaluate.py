"""Stage frontier: play every method on the rollout tables, check the gate on real inference, write what came
out."""

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
from pyrskip.evaluation.frontier import Frontier, frontier
from pyrskip.evaluation.gallery import PLACE, pick, write_gallery
from pyrskip.evaluation.plays import Inputs, decide
from pyrskip.evaluation.plots import plot_frontier
from pyrskip.evaluation.report import Shown, plot_selections, print_summary, print_table
from pyrskip.evaluation.scores import FILE as SCORES
from pyrskip.evaluation.scores import save_scores
from pyrskip.evaluation.summary import summary
from pyrskip.evaluation.timing import measure
from pyrskip.gates import load_gate
from pyrskip.gates.gate import Gate
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import GatedModel
from pyrskip.rollouts.environments import TableEnvironment, observe
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Question, Sample


@dataclass(frozen=True)
class EvaluationConfig:
    """prices: the dial's positions on the frontier. resamples: of the bootstrap. retentions: targets of the
    summary.

    timing_repeats: rounds that a measured time is the median of; 0 measures none, nor is a served model
    timed. images: shown in selections.png; the report shows four times as many. cross: another run's
    directory, of another flex seed on the same data, for oracle:cross.
    """

    prices: tuple[float, ...] = (0.001, 0.0025, 0.006, 0.013, 0.03, 0.07, 0.15, 0.4)
    resamples: int = 1000
    retentions: tuple[float, ...] = (0.98, 0.99, 0.995)
    timing_repeats: int = 15
    images: int = 12
    cross: str | None = None

    def __post_init__(self) -> None:
        if not self.prices or min(self.prices) < 0 or len(set(self.prices)) < len(self.prices):
            raise UserError(
                f"evaluation.prices={list(self.prices)}: one or more different prices of at least 0 are "
                "needed"
            )
        if self.resamples < 2 or self.timing_repeats < 0 or self.images < 1:
            raise UserError(
                f"evaluation.resamples={self.resamples}, timing_repeats={self.timing_repeats}, "
                f"images={self.images}: "
                "allowed: at least 2, 0 and 1"
            )


def evaluate(
    config: EvaluationConfig,
    model: GatedModel,
    tables: Mapping[str, RolloutTable],
    gates: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    data: Path,
    out: Path,
    crossed: Mapping[str, RolloutTable] | None = None,
    broken: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Frontier:
    """Write `out`/frontier.json, summary.json, frontier.png, selections.png and frontier/gallery/, and print
    the table.

    gates: method -> one directory a seed, of `seeds`. data: the data stage's directory. crossed: another flex
    seed's tables. broken: split -> what of it could not be read, for the summary.
    """
    trained = {
        method: [_load_gate(path, tables["gate"]) for path in paths] for method, paths in gates.items()
    }
    first = trained["gate"][0]
    test = ShardDataset(data, "test", model.pyramid.size)
    samples = [s for s in (test[i] for i in range(min(len(test), max(32, config.images)))) if s is not None]
    batch = Batch.collate(samples, model.pyramid.size)
    unit, budget = tables["gate"].mean_full_flops, first.layout.budget
    one = {method: of[0] for method, of in trained.items()}
    timing = None
    if config.timing_repeats and isinstance(model, NativeModel):
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
        crossed=crossed,
    )
    result = frontier(inputs)
    told = summary(result, config.retentions, lookup=lookup_accuracy(data, model.pyramid.size))
    price = first.prices([shown_price(told, config)])[0]
    told["real_inference"] = check_inference(model, first, tables["test"], test, unit, price)
    told["broken"] = dict(broken or {})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "frontier.json", [asdict(row) for row in result.rows])
    write_json(out / "summary.json", told)
    save_scores(result, out / SCORES)
    plot_frontier(result.rows, out / "frontier.png")
    samples_shown = shown(model, first, samples[: config.images], unit, price, inputs.gate_flops["gate"])
    plot_selections(samples_shown, model.pyramid, out / "selections.png")
    rest = (unit, price, inputs.gate_flops["gate"], 4 * config.images)
    show_gallery(model, first, tables["test"], test, *rest, out / PLACE)
    if not quiet:
        print_table(result.rows)
        print_summary(told)
    return result


def _load_gate(path: Path, table: RolloutTable) -> Gate:
    """Raises UserError for a gate that decides between other actions than were rolled out."""
    gate = load_gate(path)
    actions = gate.layout.actions
    if actions.names != table.actions.names or not actions.selection.equal(table.actions.selection):
        raise UserError(
            f"{path} holds a gate for another action set than the rollouts'; run the gate stage again"
        )
    return gate


def gate_flops(model: GatedModel, gate: Gate, batch: Batch, unit: float) -> float:
    """Of one decision, in the cost model's unit: the gate, what encodes the query and the glance for it
    alone, and the model's own first answer if the gate is told how sure of it that is."""
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


def tile_flops(model: GatedModel, size: Tensor) -> Tensor | None:
    """Of encoding and projecting every tile whole, [M, T], in the cost model's unit; None where nothing looks
    at every tile."""
    if not isinstance(model, NativeModel):
        return None
    project = model.projector.flops_per_token() * model.pyramid.capacity(size)
    return (model.encode_flops(size) + project) * model.convention.per_mac / 2


def lookup_accuracy(data: Path, side: int) -> float:
    """Test accuracy of the majority answer of each question text among all training questions: no image, no
    model."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for split in ("train", "gate", "val"):
        for question in _questions(ShardDataset(data, split, side)):
            seen[question.text][question.answers[0]] += 1
    overall = sum(seen.values(), Counter()).most_common(1)[0][0]
    guesses = {text: answers.most_common(1)[0][0] for text, answers in seen.items()}
    test = list(_questions(ShardDataset(data, "test", side)))
    return sum(score(guesses.get(q.text, overall), q.answers, q.metric, q.text) for q in test) / len(test)


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
    right, expected, decided, encoded, asked_for = [], [], 0, model.encoded, 0
    for start in range(0, min(images, len(test)), 25):
        batch = gather([test[i] for i in range(start, min(start + 25, len(test)))])
        batch = batch.rows([row for row, key in enumerate(batch.keys) if key in where])
        if not len(batch):
            continue
        rows = torch.tensor([where[key] for key in batch.keys])
        keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
        keep[:, model.pyramid.glance] = True
        prices = torch.full((len(batch),), price)
        with torch.no_grad():
            seen = observe(
                model, gate.layout, batch, model.encode(batch, keep), prices, unit, gate.config.confidence
            )
            asked = gate.policy(seen).mode()
            played = gate.policy(environment.observe(rows, prices)).mode()
        answers = model.answer(batch, asked)
        asked_for += int(batch.of_images(keep).sum()) + int(batch.of_images(asked > 0).sum())
        decided += int((asked != played).any(-1).sum())
        right += [
            score(a, q.answers, q.metric, q.text) for a, q in zip(answers, batch.questions, strict=True)
        ]
        expected += environment.score(rows, played).tolist()
    return {
        "price": price,
        "questions": len(right),
        "accuracy": sum(right) / len(right),
        "accuracy_from_table": sum(expected) / len(expected),
        "decisions_that_differ": decided,
        "scores_that_differ": sum(a != b for a, b in zip(right, expected, strict=True)),
        "tiles_encoded": model.encoded - encoded,
        "tiles_asked_for": asked_for,
    }


def shown_price(told: Mapping[str, Any], config: EvaluationConfig) -> float:
    """The first seed's price at the highest target that it meets, else the middle one."""
    for target in sorted(config.retentions, reverse=True):
        price = told["targets"][str(target)]["gate"]["seeds"][0]["price"]
        if price is not None:
            return float(price)
    return sorted(config.prices)[len(config.prices) // 2]


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
        seen = observe(
            model, gate.layout, batch, features, torch.tensor([price]), unit, gate.config.confidence
        )
        asked = gate.policy(seen).mode()
    cost = model.cost(model.realise(asked, batch.size), batch.size, model.prompt_tokens(batch))
    question, answer = batch.questions[0], model.answer(batch, asked)[0]
    return Shown(
        image=sample.image,
        question=question.text,
        answer=answer,
        truth=question.answers[0],
        right=score(answer, question.answers, question.metric, question.text) > 0,
        kept=asked[0] > 0,
        tokens=int(cost.tokens),
        relative_cost=(float(cost.flops) + gate_flops) / unit,
        type=question.type,
    )


def show_gallery(
    model: GatedModel,
    gate: Gate,
    table: RolloutTable,
    test: ShardDataset,
    unit: float,
    price: float,
    gate_flops: float,
    count: int,
    directory: Path,
) -> None:
    """Answer `count` test questions for people to look at, and write them to `directory`."""
    action = decide(gate, table, model.pyramid, gate.layout.budget, unit, [price])[0]
    where = {key: i for i, key in enumerate(test.image_keys)}

    def answers() -> Iterator[Shown]:
        for row in pick(action, table, count):
            image, _, number = table.keys[row].rpartition("/")
            sample = test[where[image]]
            if sample is not None:
                yield answered(model, gate, sample, int(number), unit, price, gate_flops)

    try:
        write_gallery(answers(), action, table, model.pyramid, price, directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error


def write_json(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(content, indent=1))
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error


def _questions(data: ShardDataset) -> Iterator[Question]:
    return (question for questions in data.questions() for question in questions or ())
