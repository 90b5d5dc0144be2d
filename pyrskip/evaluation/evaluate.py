"""Measure a frontier: every method on the rollout tables, the gate on real inference; numbers alone."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.evaluation.frontier import Frontier, frontier
from pyrskip.evaluation.inference import Shown, answered, check_inference, shown
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.pick import pick
from pyrskip.evaluation.scores import FILE as SCORES
from pyrskip.evaluation.scores import save_scores
from pyrskip.evaluation.summary import default_price, summary
from pyrskip.evaluation.timing import device_name, measure
from pyrskip.evaluation.unlisted import answer_unlisted, look_at
from pyrskip.files import write_json
from pyrskip.gated import Gated
from pyrskip.gates import load_gate
from pyrskip.gates.gate import Gate
from pyrskip.identity import HOW
from pyrskip.metrics import score
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import GatedModel
from pyrskip.progress import each, progress
from pyrskip.pruners import Pruner, PrunerConfig
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Question, Sample


@dataclass(frozen=True)
class EvaluationConfig:
    """prices: the dial's positions on the frontier. resamples: of the bootstrap. retentions: shares of full's
    score that the summary finds prices for, which keep them on new images with this confidence.

    timing_seconds: how long times are measured; 0 measures none, nor is a served model timed. images: shown
    in selections.png; the report shows four times as many. cross: another run's directory, of another flex
    seed on the same data, for oracle:cross.
    """

    prices: tuple[float, ...] = (0.001, 0.0025, 0.006, 0.013, 0.03, 0.07, 0.15, 0.4)
    resamples: int = 1000
    retentions: tuple[float, ...] = (0.98, 0.99, 0.995)
    confidence: float = 0.95
    timing_seconds: float = field(default=60.0, metadata=HOW)
    images: int = field(default=12, metadata=HOW)
    cross: str | None = None

    def __post_init__(self) -> None:
        if not self.prices or min(self.prices) < 0 or len(set(self.prices)) < len(self.prices):
            raise UserError(
                f"evaluation.prices={list(self.prices)}: one or more different prices of at least 0 are "
                "needed"
            )
        if not self.retentions or not all(0 < target <= 1.5 for target in self.retentions):
            raise UserError(
                f"evaluation.retentions={list(self.retentions)}: allowed: one or more numbers in (0, 1.5]"
            )
        if not 0 < self.confidence < 1:
            raise UserError(f"evaluation.confidence={self.confidence}: allowed: above 0 and below 1")
        if self.resamples < 2 or not 0 <= self.timing_seconds < float("inf") or self.images < 1:
            raise UserError(
                f"evaluation.resamples={self.resamples}, timing_seconds={self.timing_seconds}, "
                f"images={self.images}: allowed: at least 2, 0 and 1"
            )


@dataclass(frozen=True)
class Evaluation:
    """What a frontier came to. summary: as summary.json. price: of what follows: of the first seed's gate,
    the questions of selections.png and of the gallery, answered by the model, and its decisions on test,
    columns of the table action [N]."""

    frontier: Frontier
    summary: dict[str, Any]
    price: float
    action: Tensor
    samples: Sequence[Shown]
    gallery: Sequence[Shown]


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
    kept: Mapping[str, Any] | None = None,
    peers: Mapping[PrunerConfig, Mapping[str, RolloutTable]] | None = None,
    pruners: Mapping[str, Pruner | None] | None = None,
) -> Evaluation:
    """Measure every method, and write `out`/frontier.json, summary.json and the scores.

    gates: method -> one directory a seed, of `seeds`. data: the data stage's directory. crossed: another flex
    seed's tables. peers: 'val' and 'test' behind pruners, which pruners has by their names, to be timed. For
    the summary, broken: split -> what of it could not be read; kept: method -> of each seed, which step's
    weights.
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
    gated = {method: Gated(model, gate, unit) for method, gate in one.items()}
    timing = None
    if config.timing_seconds and isinstance(model, NativeModel):
        actions = first.layout.actions
        flops = tables["test"].cost.flops[:, : len(actions)].mean(0)
        with progress("frontier, times of decisions", 1, "measurement"):
            timing = measure(model, one, batch, actions, budget, unit, flops, config.timing_seconds, pruners)
    if any(gate.config.looks for of in trained.values() for gate in of):
        tables = {**tables, **{of: look_at(model, tables[of], data) for of in ("val", "test")}}
    tables, unlisted = answer_unlisted(model, tables, trained, seeds, config.prices, data, budget)
    inputs = Inputs(
        tables=tables,
        pyramid=model.pyramid,
        budget=budget,
        gates=trained,
        seeds=seeds,
        prices=config.prices,
        gate_flops={method: of.gate_flops(batch) for method, of in gated.items()},
        tile_flops={split: tile_flops(model, table.size) for split, table in tables.items()},
        encode_flops={split: encode_flops(model, table.size) for split, table in tables.items()},
        asked_flops=gated["gate"].gate_flops(batch, {"first_token"}),
        timing=timing,
        resamples=config.resamples,
        crossed=crossed,
        peers=peers or {},
        unlisted=unlisted,
    )
    result = frontier(inputs)
    lookup = lookup_accuracy(data, model.pyramid.size)
    figures = summary(result, config.retentions, lookup, config.confidence)
    price = default_price(figures, seeds[0])
    figures["real_inference"] = check_inference(model, first, tables["test"], test, unit, price)
    figures |= {"broken": dict(broken or {}), "kept": dict(kept or {})}
    if timing is not None and isinstance(model, NativeModel):
        figures["device"] = device_name(model.device)
    write_json(out / "frontier.json", [asdict(row) for row in result.rows])
    write_json(out / "summary.json", figures)
    save_scores(result, out / SCORES)
    action = inputs.decided("gate", seeds[0], "test")[inputs.prices_of("gate", seeds[0]).index(price)]
    rest = (unit, price, inputs.gate_flops["gate"])
    picked = list(_picked(test, tables["test"], action, 4 * config.images))
    return Evaluation(
        frontier=result,
        summary=figures,
        price=price,
        action=action,
        samples=shown(model, first, samples[: config.images], *rest),
        gallery=[
            answered(model, first, sample, question, *rest)
            for sample, question in each(picked, "frontier, samples of the report", "question")
        ],
    )


def _load_gate(path: Path, table: RolloutTable) -> Gate:
    """Raises UserError for a gate that decides between other actions than were rolled out."""
    gate = load_gate(path)
    actions = gate.layout.actions
    if actions.names != table.actions.names or not actions.selection.equal(table.actions.selection):
        raise UserError(
            f"{path} holds a gate for another action set than the rollouts'; run the gate stage again"
        )
    return gate


def tile_flops(model: GatedModel, size: Tensor) -> Tensor | None:
    """FLOPs of encoding and projecting every tile whole, [M, T], in the cost model's unit; None where nothing
    looks at every tile."""
    encode = encode_flops(model, size)
    if encode is None or not isinstance(model, NativeModel):
        return None
    project = model.projector.flops_per_token() * model.pyramid.capacity(size)
    return encode + project * model.convention.per_mac / 2


def encode_flops(model: GatedModel, size: Tensor) -> Tensor | None:
    """FLOPs of encoding every tile, as `tile_flops`."""
    if not isinstance(model, NativeModel):
        return None
    return model.encode_flops(size) * model.convention.per_mac / 2


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


def _picked(
    test: ShardDataset, table: RolloutTable, action: Tensor, count: int
) -> Iterator[tuple[Sample, int]]:
    """Up to `count` questions of the test split to look at: a sample, and the number of its question."""
    where = {key: i for i, key in enumerate(test.image_keys)}
    for row in pick(action, table, count):
        image, _, number = table.keys[row].rpartition("/")
        sample = test[where[image]]
        if sample is not None:
            yield sample, int(number)


def _questions(data: ShardDataset) -> Iterator[Question]:
    return (question for questions in data.questions() for question in questions or ())
