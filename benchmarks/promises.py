"""Are promises kept? A finished run's validation and test images, dealt out anew again and again.

python benchmarks/promises.py run=runs/easy_vqa [splits=20] [images=400] [asked=0.98] [confidence=0.95]
    [learn=<images>]

Each time so many images are validation's, and the others test's; prices, and where the gate is played, are
chosen on the first and held against the second. Validation images that trainings looked at are left out. Of
the gates of all seeds it says: how often what was asked could be guaranteed, and how often the price then
keeps it on test, beside the cheapest price that keeps it on as many images; and how often a gate, and what is
played in its place (gate:safe), is significantly below the hull of fixed selections on test: one-sided, 5 %,
at each price for itself. Reads the gates and rollouts of a run, no model; takes a minute or two. learn: gates
are trained instead, as benchmarks/few_images.py does, on so many of the run's images for gates.

Axes: N questions, P prices.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from benchmarks import few_images
from pyrskip.config import read, read_saved
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.frontier import Row
from pyrskip.evaluation.guarantee import Floats, by_image, guarantee
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.runs import load_runs
from pyrskip.evaluation.safe import LEVEL, above_hull, safe
from pyrskip.gates import load_gate
from pyrskip.launch import quiet
from pyrskip.rollouts.held_out import held_out
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.cache import pyramid_of
from pyrskip.stages.gate import gate_directory

RESAMPLES = 1000


def inputs_of(run: Path, learn: int | None = None) -> Inputs:
    """Of the run's own gates, or of those that learn from so many images; 'test' holds its test questions and
    those that no training looked at."""
    config, _ = read(OmegaConf.create(read_saved(str(run), "run")))
    tables = {split: RolloutTable.load(run / "rollouts" / split) for split in ("gate", "val", "test")}
    val = tables["val"]
    hidden = torch.isin(val.image_of, torch.tensor(held_out(val))).nonzero().squeeze(1)
    tables["test"] = RolloutTable.concatenate([val.take(hidden), tables["test"]])
    seeds = range(config.seed, config.seed + config.seeds)
    if learn is None:
        gates = [load_gate(gate_directory(run, "gate", seed)) for seed in seeds]
    else:
        data, optimizer = few_images.of_run(run, learn, 0), config.rule.optimizer
        recipe = few_images.Recipe(
            "probability", optimizer.steps, optimizer.lr, optimizer.weight_decay, config.gate.dropout
        )
        gates = [few_images.train(data, recipe, seed) for seed in seeds]
    return Inputs(
        tables=tables,
        pyramid=pyramid_of(config),
        budget=config.budget,
        gates={"gate": gates},
        seeds=seeds,
        prices=config.evaluation.prices,
        gate_flops={"gate": 0.0},
        tile_flops=dict.fromkeys(tables),
    )


def own_flops(run: Path, inputs: Inputs) -> float:
    """FLOPs of a decision, which the run's frontier counts of its own gates."""
    rows: list[Row] = load_runs(run)[0].rows
    row = next(r for r in rows if (r.method, r.split, r.seed) == ("gate", "val", inputs.seeds[0]))
    price = list(inputs.prices_of("gate", inputs.seeds[0])).index(row.price or 0.0)
    action = inputs.decided("gate", inputs.seeds[0], "val")[price]
    return row.flops - float(inputs.tables["val"].cost.flops.gather(1, action[:, None]).mean())


def deal(inputs: Inputs, images: int, split: int) -> tuple[Inputs, dict[str, Tensor]]:
    """Inputs whose validation is so many of the test images, and the rows of each split."""
    pooled = inputs.tables["test"]
    every = pooled.image_of.unique()
    order = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(split))]
    chosen = torch.isin(pooled.image_of, order[:images])
    rows = {"val": chosen.nonzero().squeeze(1), "test": (~chosen).nonzero().squeeze(1)}
    dealt = replace(inputs, tables={**inputs.tables, **{name: pooled.take(of) for name, of in rows.items()}})
    for seed in inputs.seeds:
        decided = inputs.decided("gate", seed, "test")
        dealt._decided.update({("gate", seed, name): decided[:, of] for name, of in rows.items()})
    return dealt, rows


def scores(inputs: Inputs, seed: int, split: str, images: list[int]) -> tuple[Floats, Floats]:
    """Mean score on each image of the gate's prices, the lowest first, and of full."""
    table = inputs.tables[split]
    own = table.score.gather(1, inputs.decided("gate", seed, split).T).T
    *found, full = by_image([*own, table.score[:, table.actions.full]], table.image_of, images)
    order = sorted(range(len(found)), key=lambda i: inputs.prices_of("gate", seed)[i])
    return by_image(own[order], table.image_of, images), full


def retention(inputs: Inputs, seed: int, asked: float, confidence: float, count: Counter[str]) -> None:
    score, full = scores(inputs, seed, "val", held_out(inputs.tables["val"]))
    test, test_full = scores(inputs, seed, "test", inputs.tables["test"].image_of.unique().tolist())
    kept = test.sum(-1) / test_full.sum() >= asked
    # the dearer the price, the cheaper its decisions
    chosen, found = guarantee(score, full, range(len(score), 0, -1), asked, confidence)
    count["guaranteed"] += found.guaranteed
    count["guaranteed and kept"] += found.guaranteed and bool(kept[chosen])
    count["price taken and kept"] += bool(kept[chosen])
    seems = [i for i, of in enumerate(score) if of.sum() / full.sum() >= asked]
    count["point estimate and kept"] += bool(kept[max(seems, default=0)])
    count["asked"] += 1


def below(inputs: Inputs, seed: int, count: Counter[str]) -> list[float]:
    """Counts what is significantly below the hull on test; returns gate:safe's heights, in points."""
    table, of, prices = inputs.tables["test"], safe(inputs, seed), inputs.prices_of("gate", seed)
    action = inputs.decided("gate", seed, "test")
    played = [of.at(price) for price in prices]
    own = torch.full((len(prices),), inputs.gate_flops["gate"])
    fixed = torch.tensor([name is not None for name in played])
    column = torch.tensor([0 if name is None else table.column(name) for name in played])
    gate = above_hull(inputs, table, action, own)
    never_worse = above_hull(
        inputs, table, action.where(~fixed[:, None], column[:, None]), own.masked_fill(fixed, 0.0)
    )
    chances = Bootstrap(table.image_of, RESAMPLES).chances_of_none(-torch.cat([gate, never_worse]))
    count["prices"] += len(prices)
    count["played"] += int((~fixed).sum())
    count["gate below"] += sum(p < LEVEL for p in chances[: len(prices)])
    count["safe below"] += sum(p < LEVEL for p in chances[len(prices) :])
    return (100 * never_worse.mean(1)).tolist()


def main() -> None:
    quiet()
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    run, splits = Path(given["run"]), int(given.get("splits", 20))
    images, confidence = int(given.get("images", 400)), float(given.get("confidence", 0.95))
    asked = [float(of) for of in given.get("asked", "0.98").split(",")]
    learn = int(given["learn"]) if "learn" in given else None
    pooled = inputs_of(run, learn)
    pooled.gate_flops["gate"] = own_flops(run, inputs_of(run))  # type: ignore[index]
    console, heights = Console(), list[float]()
    counts: dict[float, Counter[str]] = {share: Counter() for share in asked}
    worse: Counter[str] = Counter()
    for split in range(splits):
        inputs, _ = deal(pooled, images, split)
        for seed in inputs.seeds:
            for share, count in counts.items():
                retention(inputs, seed, share, confidence, count)
            heights += below(inputs, seed, worse)
    for share, count in counts.items():
        console.print(
            f"{share:.1%} of full asked, {images} validation images, half of them held out:", dict(count)
        )
    console.print("below the hull on test:", dict(worse))
    console.print(f"gate:safe is {min(heights):.2f} to {max(heights):.2f} points above the hull")


if __name__ == "__main__":
    main()
