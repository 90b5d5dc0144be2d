"""Decisions that no table lists, such as a region gate's: the model is asked what comes of them.

Axes: N questions, D decisions of a question, K of them that differ, T tiles, P prices. What they come to is
kept with a table as selections of each question's own, so that all that reads tables reads it too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.evaluation.inputs import modes_of
from pyrskip.evaluation.regions import rules
from pyrskip.gated import beneath, encode_glance, tiles_of
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import GatedModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.progress import each
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.scoring import score_native, score_served
from pyrskip.rollouts.table import COSTS, RolloutTable
from pyrskip.sample import Batch, Question

Key = tuple[str, int, str]
"""Method, seed (0 where it has none) and split."""
IMAGES = 25
"""Images that the model is asked about at once."""


def answer_unlisted(
    model: GatedModel,
    tables: Mapping[str, RolloutTable],
    gates: Mapping[str, Sequence[Gate]],
    seeds: Sequence[int],
    prices: Sequence[float],
    data: Path,
    budget: BudgetRule,
) -> tuple[dict[str, RolloutTable], dict[Key, Tensor]]:
    """Tables with the answers to what the gates decide that they do not list; and the columns [P, N] of each
    gate, and beside the gate's own: `random`, its decisions dealt out to other questions; `random:tiles`, as
    many tiles of each level, anywhere; `gate:shuffled_query`, what it decides for another sample's question;
    what rules keep that nobody learned (`pyrskip.evaluation.regions`); `oracle:boxes`, where the data set
    knows what holds the answer. Tables as they are, and nothing, where all is listed."""
    extended, columns = dict(tables), dict[Key, Tensor]()
    unit = tables["gate"].mean_full_flops
    for split in ("val", "test"):
        table = tables[split]
        decided = dict(_decided(table, model.pyramid, gates, seeds, prices, budget, unit))
        if not decided:
            continue
        questions = ShardDataset(data, split, model.pyramid.size)
        decided |= {(name, 0): kept for name, kept in rules(tables, split, model.pyramid)}
        boxes = _boxes(table, questions, model.pyramid)
        if boxes is not None:
            decided["oracle:boxes", 0] = boxes[None]
        drawn, place = _distinct(torch.cat(list(decided.values())).transpose(0, 1))
        extended[split] = _answered(model, table, drawn, questions, budget)
        parts = (table.first_drawn + place.T).split([len(of) for of in decided.values()])
        columns |= {(*key, split): part for key, part in zip(decided, parts, strict=True)}
    return extended, columns


@torch.no_grad()
def look_at(model: GatedModel, table: RolloutTable, data: Path) -> RolloutTable:
    """The table with what every tile above others shows of them, for gates that look at what they keep."""
    pyramid = model.pyramid
    questions = ShardDataset(data, table.split, pyramid.size)
    where = {key: row for row, key in enumerate(table.image_keys)}
    shown = torch.zeros(len(where), pyramid.tiles, model.vision.channels)
    above = range(1, pyramid.levels)
    starts = range(0, len(questions), IMAGES)
    for start in each(starts, f"frontier, looking at {table.split}", "batch"):
        samples = [questions[i] for i in range(start, min(start + IMAGES, len(questions)))]
        batch = collate(samples, pyramid.size)
        maps = model.encode(batch, (pyramid.tile_level > 0).expand(len(batch), -1)).maps
        found = [beneath(pyramid, level, maps[tiles_of(pyramid, level)], batch.size) for level in above]
        for image, key in enumerate(batch.image_keys):
            if key in where:
                shown[where[key], :-1] = torch.cat([of[image] for of in found]).cpu()
    return replace(table, shown=shown)


def _decided(
    table: RolloutTable,
    pyramid: Pyramid,
    gates: Mapping[str, Sequence[Gate]],
    seeds: Sequence[int],
    prices: Sequence[float],
    budget: BudgetRule,
    unit: float,
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Method and seed -> selections [P, N, T] bool, of gates whose decisions are not listed."""
    for method, of in gates.items():
        for seed, gate in zip(seeds, of, strict=True):
            own = _selections(gate, table, pyramid, budget, unit, prices)
            if own is None:
                continue
            yield (method, seed), own
            if method == "gate":
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(len(table), generator=generator)
                signals = {name: value[order] for name, value in table.signals["question"].items()}
                others = replace(
                    table, query_of=table.query_of[order], signals={**table.signals, "question": signals}
                )
                shuffled = _selections(gate, others, pyramid, budget, unit, prices)
                assert shuffled is not None
                real = (pyramid.capacity(table.size) > 0)[table.image_of]
                yield ("random", seed), own[:, order] & real
                yield ("random:tiles", seed), _anywhere(own, real, pyramid.tile_level, generator)
                yield ("gate:shuffled_query", seed), shuffled


def _selections(
    gate: Gate,
    table: RolloutTable,
    pyramid: Pyramid,
    budget: BudgetRule,
    unit: float,
    prices: Sequence[float],
) -> Tensor | None:
    """What a gate keeps at its prices, [P, N, T] bool; None where it is listed."""
    modes = modes_of(gate, TableEnvironment(table, pyramid, budget, unit), gate.prices(prices))
    if modes[0][0].action is not None:
        return None
    return torch.stack([torch.cat([mode.selection for mode in of]) for of in modes])


def _anywhere(own: Tensor, real: Tensor, tile_level: Tensor, generator: torch.Generator) -> Tensor:
    """As many tiles of each level, at random places. own [P, N, T] bool, real [N, T] bool -> [P, N, T]."""
    chance = torch.rand(own.shape, generator=generator).masked_fill(~real, 2.0)
    # a tile's rank among those of its level: places within the level, in random order
    rank = (chance + 10.0 * tile_level).argsort(-1).argsort(-1)
    before = torch.stack([(tile_level < level).sum() for level in tile_level])
    level = torch.nn.functional.one_hot(tile_level).to(torch.float32)
    count = (own.float() @ level)[..., tile_level].long()
    return rank - before < count


def _boxes(table: RolloutTable, questions: ShardDataset, pyramid: Pyramid) -> Tensor | None:
    """The tiles of the coarsest level that shows the answer which meet what holds it, and the glance, [N, T]
    bool; None where a question's place is not known."""
    where = {key: row for row, key in enumerate(questions.image_keys)}
    listed = list(questions.questions())
    kept = torch.zeros(len(table), pyramid.tiles, dtype=torch.bool)
    kept[:, pyramid.glance] = True
    size = table.size[table.image_of]
    for row, key in enumerate(table.keys):
        image, _, number = key.rpartition("/")
        question = _question(listed[where[image]], int(number))
        if question is None or question.level is None or not question.boxes:
            return None
        level = min(question.level, pyramid.levels - 1)
        share = size[row].flip(-1).repeat(2) / pyramid.size  # of the canvas
        for box in torch.tensor(question.boxes) * share:
            meets = (pyramid.tile_box[:, :2] < box[2:]) & (pyramid.tile_box[:, 2:] > box[:2])
            kept[row] |= meets.all(-1) & (pyramid.tile_level == level)
    return kept


def _question(questions: Sequence[Question] | None, number: int) -> Question | None:
    return None if questions is None else questions[number]


def _distinct(selection: Tensor) -> tuple[Tensor, Tensor]:
    """selection [N, D, T] bool -> those of each question that differ [N, K, T], its first again where it has
    less, and which of them each is [N, D]."""
    found = [torch.unique(of, dim=0, return_inverse=True) for of in selection]
    most = max(len(own) for own, _ in found)
    drawn = torch.stack([own[torch.arange(most).clamp(max=len(own) - 1)] for own, _ in found])
    return drawn, torch.stack([place for _, place in found])


@torch.no_grad()
def _answered(
    model: GatedModel, table: RolloutTable, drawn: Tensor, questions: ShardDataset, budget: BudgetRule
) -> RolloutTable:
    """The table with selections drawn [N, K, T] of each question's own in place of those that it had."""
    count, own = table.first_drawn, drawn.shape[1]
    where = {key: row for row, key in enumerate(table.keys)}
    columns = {
        name: torch.zeros(len(table), own, dtype=torch.float64) for name in (*COSTS, "score", "chance")
    }
    probable = table.probability is not None
    starts = range(0, len(questions), IMAGES)
    for start in each(starts, f"frontier, asking the model of {table.split}", "batch"):
        samples = [questions[i] for i in range(start, min(start + IMAGES, len(questions)))]
        batch = collate(samples, model.pyramid.size)
        batch = batch.rows([row for row, key in enumerate(batch.keys) if key in where])
        if not len(batch):
            continue
        rows = torch.tensor([where[key] for key in batch.keys])
        capacity, size = (of[batch.image_of] for of in (model.pyramid.capacity(batch.size), batch.size))
        asked = budget.tokens(drawn[rows], capacity[:, None])
        score, chance = _scored(model, batch, asked)
        cost = model.cost(
            model.realise(asked, size[:, None].expand(-1, own, -1)), size, model.prompt_tokens(batch)
        )
        probable = probable and chance is not None
        found = {name: getattr(cost, name) for name in COSTS} | {"score": score, "chance": chance}
        for name, value in found.items():
            if value is not None:
                columns[name][rows] = value.double()

    def joined(had: Tensor, name: str) -> Tensor:
        return torch.cat([had[:, :count], columns[name].to(had.dtype)], dim=1)

    return replace(
        table,
        score=joined(table.score, "score"),
        probability=joined(table.probability, "chance")
        if probable and table.probability is not None
        else None,
        cost=Cost(*(joined(getattr(table.cost, name), name) for name in COSTS)),
        drawn=drawn,
    )


def _scored(model: GatedModel, batch: Batch, asked: Tensor) -> tuple[Tensor, Tensor | None]:
    """Score and, where the model tells, probability of decisions asked [B, K, T]."""
    if isinstance(model, ServedModel):
        score, chance, _ = score_served(model, batch, asked)
        return score, chance
    assert isinstance(model, NativeModel)
    features = model.look(batch, encode_glance(model, batch), asked.amax(1))
    return score_native(model, batch, features, asked)
