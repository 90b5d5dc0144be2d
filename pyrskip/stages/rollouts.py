"""Stage rollouts: the score and cost of every action on the questions of the splits for gates."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyrskip.config import Config, to_plain
from pyrskip.data.shards import read_index
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.needs import doubt, lists_levels, needs_of
from pyrskip.files import write_json
from pyrskip.gates.gate import GATES
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.served import ServedModel, file_digest, identity
from pyrskip.report.rollouts import print_needs
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import TABLE, RolloutTable, check_origin, stored_signals
from pyrskip.stages.cache import inputs_of, pyramid_of
from pyrskip.stages.data import DATA, report_faults, samples_of
from pyrskip.stages.flex import FLEX, model_of
from pyrskip.stages.run import Run, Stage, digest
from pyrskip.tracking.guard import first_rank
from pyrskip.training.trainer import build_trainer

ROLLED = ("gate", "val", "test")
"""Splits that are rolled out."""
# a server's count of prompt tokens may be so far from the cost's before that is reported
COUNT_TOLERANCE = 0.2


def roll_out_splits(run: Run) -> None:
    config, of = run.config, run.config.loader
    model = model_of(run)
    actions = ActionSet.of(model.pyramid, config.budget, config.actions)
    for split, origin in origins_of(run, ROLLED).items():
        directory = run.root / ROLLOUTS.name / split
        if (directory / "table.json").exists():
            check_origin(RolloutTable.load(directory), origin, directory)
            continue
        # scores are those of inference, which knows of no autocast
        trainer = build_trainer(replace(config.trainer, precision="32-true"), directory)
        drawn = 0 if split == "test" else config.actions.drawn  # nothing learns from the test split
        module = RolloutModule(model, actions, config.budget, split, origin, drawn, config.actions.seed)
        data, quiet = inputs_of(run, split, model.vision), config.trainer.quiet
        roll_out(trainer, module, data, of.rollout_images, of.chunk_images, directory, quiet)
        report_faults(run, split)
    if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel):
        _check_count(run, model.box)
    if first_rank():
        _report_needs(run)


def _check_count(run: Run, model: RemoteModel) -> None:
    """Say where the server's count of prompt tokens is another than costs were computed from."""
    if model.counted and abs(model.taken / model.counted - 1) > COUNT_TOLERANCE:
        run.say(
            f"the server counted {model.counted} prompt tokens, model.remote's sizes say {model.taken}: "
            "costs are off"
        )


def _report_needs(run: Run) -> None:
    """What each type of test question loses without a level, and whether the full pyramid is of any use."""
    table = tables_of(run, ("test",))["test"]
    if lists_levels(table.actions):
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question in (q for questions in samples_of(run, "test").questions() for q in questions or ()):
            answers[question.type].update(question.answers)
        needs = needs_of(table, answers)
        write_json(run.root / ROLLOUTS.name / "needs.json", [vars(need) for need in needs])
        if not run.config.trainer.quiet:
            print_needs(needs)
    full, floor = (
        float(table.score[:, i].mean()) for i in (table.actions.full, table.column("question_only"))
    )
    if found := doubt(full, {"question_only": floor}):
        run.say(found)


def tables_of(run: Run, splits: Sequence[str]) -> dict[str, RolloutTable]:
    """The run's rollouts. Raises UserError where they are not what this run would roll out."""
    directory = run.directory(ROLLOUTS)
    tables = {split: RolloutTable.load(directory / split) for split in splits}
    for split, origin in origins_of(run, splits).items():
        check_origin(tables[split], origin, directory / split)
    return tables


def rollouts_of(config: Config, nodes: dict[str, Any]) -> dict[str, RolloutTable]:
    """A finished run's rollouts by split, on the first rank; nothing on others."""
    return tables_of(Run(config, nodes), ROLLED) if first_rank() else {}


def other_tables(tables: Mapping[str, RolloutTable], place: str, key: str) -> dict[str, RolloutTable]:
    """The rollouts of the run in `place`, which `key` names: alike in everything but the model's weights."""
    directory = Path(place) / ROLLOUTS.name
    others = {split: RolloutTable.load(directory / split) for split in tables}
    for split, table in others.items():
        own = tables[split].origin
        if table.origin.get("model") == own["model"]:
            raise UserError(
                f"{key}={place} holds rollouts of this run's own model; allowed: a run with another "
                "flex.seed on the same data"
            )
        check_origin(table, {**own, "model": table.origin.get("model", "none")}, directory / split)
    return others


def origins_of(run: Run, splits: Sequence[str]) -> dict[str, dict[str, str]]:
    """What each split's rollouts depend on, in words that a refusal can name."""
    config = run.config
    index = read_index(run.directory(DATA))
    pyramid = pyramid_of(config)
    actions = ActionSet.of(pyramid, config.budget, config.actions)
    if config.model.served:
        model, longest = identity(config.model), config.model.max_answer
        vision = f"{config.vision.backbone} map {config.vision.out_index} {config.vision.weights}"
    else:
        model = f"native {file_digest(run.directory(FLEX) / 'model.safetensors')}"
        vision, longest = "the model's own", config.language.max_answer
    common = {
        "model": model,
        "layout": f"{pyramid.size} px, {pyramid.levels} levels, grid {list(pyramid.grid)}, "
        f"stride {pyramid.stride}",
        "action set": f"{len(actions)} actions {digest({'names': actions.names, 'ladder': actions.ladder})}",
        "budget": json.dumps(to_plain(config.budget)),
        "cost": json.dumps(to_plain(config.cost)),
        "pruner": f"{config.pruner.name} {config.pruner.ratio:g}",
        "metric": "each question's own",
        "decoding": f"greedy, at most {longest} tokens",
        "sight of the gate": f"{vision}, {config.text.name}",
    }
    shards = {split: digest({"shards": [shard.sha256 for shard in index.splits[split]]}) for split in splits}
    if config.actions.drawn:
        common["selections of questions' own"] = f"{config.actions.drawn}, by seed {config.actions.seed}"
    return {split: common | {"split": split, "data": f"{index.source} {shards[split]}"} for split in splits}


def _missing_signals(config: Config, directory: Path) -> str:
    """Signals that the run's gates read and the rollouts do not hold; what is no table is left to who reads
    it."""
    if not (directory / ROLLED[0] / TABLE).is_file():
        return ""
    names = {config.gate.name, *config.ablations}
    read = {*config.gate.signals, *(need for name in names for need in GATES[name].needs)}
    missing = read - stored_signals(directory / ROLLED[0])
    return f"the signals {', '.join(sorted(missing))}, which gates read" if missing else ""


ROLLOUTS = Stage(
    "rollouts",
    roll_out_splits,
    after=FLEX,
    keys=("model", "pyramid", "vision", "text", "actions", "pruner", "budget", "cost"),
    once=True,
    reads=ROLLED,
    lacks=_missing_signals,
)
