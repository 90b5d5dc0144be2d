"""Stage compare: every rule with every policy that it can train, on rollouts of one or more flex seeds."""

from dataclasses import replace
from pathlib import Path

from pyrskip.compare import Task, compare
from pyrskip.config import Config, read_saved
from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.models.served import ServedModel
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.flex import model_of
from pyrskip.stages.rollouts import ROLLED, ROLLOUTS, other_tables, tables_of
from pyrskip.stages.run import Run, Stage


def compare_rules(run: Run) -> None:
    model, config = model_of(run), run.config
    tables = tables_of(run, ROLLED)
    table, others = tables["test"], other_seeds(config)
    for place in others.values():
        other_tables(tables, str(place), "compare.others")
    places = {config.flex.seed: run.directory(ROLLOUTS)} | {
        seed: place / ROLLOUTS.name for seed, place in others.items()
    }
    words = table.query_mask.sum(-1)[table.query_of]
    share = model.convention.per_mac / 2
    task = Task(
        config=config.compare,
        gate=config.gate,
        reward=config.reward,
        pyramid=model.pyramid,
        budget=config.budget,
        rollouts=places[config.flex.seed],
        flex_seed=config.flex.seed,
        out=run.root / COMPARE.name,
        query_flops=float(model.text.flops(words).mean()) * share,
        glance_flops=float(model.glance_flops(table.size)[table.image_of].mean()) * share,
        confidence_flops=_confidence_flops(model, table) if config.gate.confidence else 0.0,
        flops_share=share,
    )
    compare([replace(task, flex_seed=seed, rollouts=place) for seed, place in places.items()], config.seed)


def other_seeds(config: Config) -> dict[int, Path]:
    """Flex seed -> directory of each of compare.others. Raises UserError where two runs are of one seed."""
    places: dict[int, Path] = {}
    for place in config.compare.others:
        seed = int(read_saved(place, "compare.others")["flex"]["seed"])
        if seed == config.flex.seed or seed in places:
            raise UserError(
                f"compare.others={place}: another run of flex.seed={seed}; allowed: one run of each flex seed"
            )
        places[seed] = Path(place)
    return places


def _confidence_flops(model: NativeModel | ServedModel, table: RolloutTable) -> float:
    """Of asking how sure the model is after the glance, a question of the table."""
    assert isinstance(model, NativeModel)
    texts = [table.texts[i] for i in table.query_of.tolist()]
    return float(model.confidence_flops(texts, table.size[table.image_of]).mean())


COMPARE = Stage(
    "compare",
    compare_rules,
    after=ROLLOUTS,
    keys=("compare", "gate", "reward", "seed"),
    alone=True,
    borrowed=False,
)
