"""Stage rollouts: the score and cost of every action on the questions of the splits for gates."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyrskip.config import Config, to_plain
from pyrskip.data.shards import read_index
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.needs import doubt, lists_levels, needs_of
from pyrskip.files import file_digest, write_json
from pyrskip.gates.gate import GATES
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.journal import Journal, by_decision, remove
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.pruners import PrunerConfig
from pyrskip.pruners.visionselector import SelectorConfig
from pyrskip.report.rollouts import print_needs
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import OUTSIDE, TABLE, RolloutTable, check_origin, stored_signals
from pyrskip.stages.cache import inputs_of, pyramid_of
from pyrskip.stages.data import DATA, report_faults, samples_of
from pyrskip.stages.flex import FLEX
from pyrskip.stages.model import model_of
from pyrskip.stages.pruner import PRUNER, SCORER
from pyrskip.stages.run import Run, Stage, digest
from pyrskip.tracking.guard import first_rank
from pyrskip.training.trainer import build_trainer

ROLLED = ("gate", "val", "test")
"""Splits that are rolled out."""
SERVER = "server.json"
"""What requests took, in a split's directory."""


def roll_out_splits(run: Run) -> None:
    model = model_of(run)
    roll_out_into(run, model, ROLLED, run.root / ROLLOUTS.name, run.config.pruner)
    if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel):
        _check_count(run, model.box)
    if first_rank():
        _report_needs(run)


def roll_out_into(
    run: Run, model: NativeModel | ServedModel, splits: Sequence[str], place: Path, pruner: PrunerConfig
) -> None:
    """Write `place`/<split> for each of the splits that are not there, under the pruner that the model
    has."""
    config, of = run.config, run.config.loader
    actions = ActionSet.of(model.pyramid, config.budget, config.actions)
    remote = model.box if isinstance(model, ServedModel) and isinstance(model.box, RemoteModel) else None
    for split, origin in origins_of(run, splits, pruner).items():
        directory = place / split
        if (directory / "table.json").exists():
            check_origin(RolloutTable.load(directory), origin, directory)
            if remote is not None:
                _close(directory, actions, remote)
            continue
        # scores are those of inference, which knows of no autocast
        trainer = build_trainer(replace(config.trainer, precision="32-true"), directory, title=place.name)
        drawn = 0 if split == "test" else config.actions.drawn  # nothing learns from the test split
        module = RolloutModule(model, actions, config.budget, split, origin, drawn, config.actions.seed)
        data = inputs_of(run, split, model.vision, glances=True)
        if remote is not None:
            remote.client.journal = Journal(directory)
        roll_out(trainer, module, data, of.rollout_images, of.chunk_images, directory)
        if remote is not None and remote.client.journal is not None:
            remote.client.journal.close()
            _close(directory, actions, remote)
        report_faults(run, split)


def _close(directory: Path, actions: ActionSet, model: RemoteModel) -> None:
    """Leave of a whole table's requests what they took, by decision, in `SERVER`."""
    if found := by_decision(directory) if first_rank() else {}:
        selections = [*actions.selection, model.reference, torch.zeros_like(model.reference)]
        names = {
            tuple(selection.nonzero()[:, 0].tolist()): name
            for selection, name in zip(selections, (*actions.names, *OUTSIDE), strict=True)
        }
        # of an image that leaves tiles empty, what is kept is no whole selection
        named = {names.get(kept, f"tiles {list(kept)}"): of for kept, of in found.items()}
        write_json(directory / SERVER, named)
    if first_rank():
        remove(directory)


def _check_count(run: Run, model: RemoteModel) -> None:
    """Say where the server's count of prompt tokens is another than costs were computed from."""
    if model.unlike:
        run.say(
            f"the server counted {model.counted} prompt tokens, costs are computed from {model.taken}: "
            f"{model.unlike} of {model.compared} requests differ"
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
    return tables_in(run, splits, run.directory(ROLLOUTS), run.config.pruner)


def tables_in(run: Run, splits: Sequence[str], place: Path, pruner: PrunerConfig) -> dict[str, RolloutTable]:
    """As `tables_of`, of what `roll_out_into` wrote."""
    tables = {split: RolloutTable.load(place / split) for split in splits}
    for split, origin in origins_of(run, splits, pruner).items():
        check_origin(tables[split], origin, place / split)
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


def origins_of(run: Run, splits: Sequence[str], pruner: PrunerConfig) -> dict[str, dict[str, str]]:
    """What each split's rollouts depend on, in words that a refusal can name."""
    config = run.config
    index = read_index(run.directory(DATA))
    pyramid = pyramid_of(config)
    actions = ActionSet.of(pyramid, config.budget, config.actions)
    if config.model.served:
        model, longest = config.model.own.identity(), config.model.own.max_answer
        vision = f"{config.vision.backbone} map {config.vision.out_index} {config.vision.weights}"
    else:
        model = f"native {file_digest(run.directory(FLEX) / 'model.safetensors')}"
        vision, longest = "the model's own", config.language.max_answer
    common = {
        "model": model,
        "layout": f"{pyramid.size} px, {pyramid.levels} levels, grid {list(pyramid.grid)}, "
        f"stride {pyramid.stride}" + (f", halo {pyramid.halo}" if pyramid.halo else ""),
        "action set": f"{len(actions)} actions {digest({'names': actions.names, 'ladder': actions.ladder})}",
        "budget": json.dumps(to_plain(config.budget)),
        "cost": json.dumps(to_plain(config.cost)),
        "pruner": str(pruner) + _learned(run, pruner),
        "metric": "each question's own",
        "decoding": f"greedy, at most {longest} tokens",
        "sight of the gate": f"{vision}, {config.text.name}",
    }
    shards = {split: digest({"shards": [shard.sha256 for shard in index.splits[split]]}) for split in splits}
    if config.actions.drawn:
        common["selections of questions' own"] = f"{config.actions.drawn}, by seed {config.actions.seed}"
    return {split: common | {"split": split, "data": f"{index.source} {shards[split]}"} for split in splits}


def _learned(run: Run, pruner: PrunerConfig) -> str:
    """What a pruner has learned, where it does."""
    if not isinstance(pruner, SelectorConfig):
        return ""
    return f" {file_digest(run.directory(PRUNER) / SCORER)}"


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
    after=PRUNER,
    keys=("model", "pyramid", "vision", "text", "actions", "pruner", "budget", "cost"),
    once=True,
    reads=ROLLED,
    lacks=_missing_signals,
)
