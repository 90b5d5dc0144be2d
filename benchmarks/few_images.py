"""How many images a gate needs: points above the hull of fixed selections against images to learn from.

python benchmarks/few_images.py [key=value ...]

world=glance,both   of benchmarks/worlds.py, taught by scores; run=<directory> of a finished run instead,
whose rollouts are cut down; images=300,1000,3000 for gates, and 0.4 of them to validate on; splits=3 draws of
images; members=4 gates a draw, alone and as one (gate.members); cost=0.3; dropout=0, lr=0.003,
weight_decay=0.01, steps=800, as of gate and rule; out=<directory> for few_images.csv and few_images.png: what
is in there is not trained again. A gate takes some ten seconds of one core. A run's gates pay for themselves,
the worlds' are free.

The hull is of the test images themselves, which flatters it. Regret is that of benchmarks/worlds.py: a share
of the gap between the best constant decision and the best of each question.
"""

import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import worlds
from pyrskip.budget import BudgetRule
from pyrskip.config import read, read_saved
from pyrskip.data.datamodule import StepData
from pyrskip.evaluation.hull import upper_hull, value_at
from pyrskip.evaluation.inputs import decide
from pyrskip.gates import build_gate
from pyrskip.gates.ensemble import Ensemble
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.launch import quiet
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.held_out import looked_at
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.cache import pyramid_of
from pyrskip.training.best import KEPT, Best
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.rules import RULES, rule_config
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit

VALIDATION = 0.4
PRICES = tuple(0.001 * 1.5**i for i in range(18))
COLUMNS = ("source", "images", "split", "gates", "points", "regret")


@dataclass(frozen=True)
class Recipe:
    """Of a gate's training; target: what it is taught."""

    target: str
    steps: int
    lr: float
    weight_decay: float
    dropout: float


@dataclass(frozen=True)
class Data:
    """Rollouts to learn from, to validate on and to test on. truth: the test's scores [N, S]; paid: whether a
    gate's own FLOPs count."""

    pyramid: Pyramid
    tables: dict[str, RolloutTable]
    truth: Tensor
    paid: bool

    def environment(self, split: str) -> TableEnvironment:
        unit = self.tables["gate"].mean_full_flops
        return TableEnvironment(self.tables[split], self.pyramid, BudgetRule(), unit)


def of_world(name: str, images: int, split: int) -> Data:
    worlds.IMAGES.update(gate=images, val=round(VALIDATION * images))
    world = worlds.WORLDS[name]
    tables = {
        part: worlds.table_of(world, part, 3 * split + i) for i, part in enumerate(("gate", "val", "test"))
    }
    truth = tables["test"].probability
    assert truth is not None
    return Data(world.pyramid, tables, truth, paid=False)


def of_run(run: Path, images: int, split: int) -> Data:
    config, _ = read(OmegaConf.create(read_saved(str(run), "run")))
    tables = {part: RolloutTable.load(run / "rollouts" / part) for part in ("gate", "val", "test")}
    tables["val"] = looked_at(tables["val"])
    for part, count in (("gate", images), ("val", round(VALIDATION * images))):
        every = tables[part].image_of.unique()
        order = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(split))]
        chosen = torch.isin(tables[part].image_of, order[:count])
        tables[part] = tables[part].take(chosen.nonzero().squeeze(1))
    return Data(pyramid_of(config), tables, tables["test"].score, paid=True)


def train(data: Data, recipe: Recipe, seed: int) -> Gate:
    environment = data.environment("gate")
    torch.manual_seed(seed)
    gate = build_gate(GateConfig(dropout=recipe.dropout), environment.layout)
    optimizer = OptimizerConfig(
        steps=recipe.steps, lr=recipe.lr, weight_decay=recipe.weight_decay, warmup=20, beta2=0.98
    )
    config = rule_config("supervised")(target=recipe.target, optimizer=optimizer)  # type: ignore[call-arg]
    module = RULES["supervised"](config, gate, environment, RewardConfig(), seed)
    rows: Any = range(len(environment.table))
    with tempfile.TemporaryDirectory() as directory:
        best = Best(data.environment("val"), config.validations, config.patience, Path(directory) / KEPT)
        settings = TrainerConfig(quiet=True, checkpoint_every=recipe.steps)
        trainer = build_trainer(settings, Path(directory), callbacks=[best])
        fit(trainer, module, StepData(rows, torch.tensor, config.batch, recipe.steps, seed), Path(directory))
    return gate.cpu().eval()


def points(gate: Gate, data: Data, cost: float) -> float:
    """Of accuracy above the hull at a cost, along the gate's prices."""
    table, unit = data.tables["test"], data.tables["gate"].mean_full_flops
    listed = len(table.actions)
    seen = data.environment("test").observe(torch.arange(1), torch.zeros(1))
    own = gate.flops(seen) / unit if data.paid else 0.0
    flops, truth = table.cost.flops[:, :listed] / unit, data.truth[:, :listed].double()
    fixed = list(zip(flops.mean(0).tolist(), truth.mean(0).tolist(), strict=True))
    hull = [fixed[i] for i in upper_hull(*zip(*fixed, strict=True))]
    curve = [
        (float(flops.gather(1, action[:, None]).mean()) + own, float(truth.gather(1, action[:, None]).mean()))
        for action in decide(gate, table, data.pyramid, gate.layout.budget, unit, PRICES)
    ]
    reached, under = value_at(sorted(set(curve)), cost), value_at(hull, cost)
    assert reached is not None, "no price costs as little"
    assert under is not None, "no fixed selection costs as little"
    return 100 * (reached - under)


def measured(data: Data, recipe: Recipe, members: int, cost: float) -> dict[int, tuple[float, float]]:
    """How many gates decide -> points above the hull and regret; of one the mean."""
    gates = [train(data, recipe, seed) for seed in range(members)]
    test = data.environment("test")
    alone = [(points(gate, data, cost), worlds.regret(gate, test)) for gate in gates]
    config = GateConfig(dropout=recipe.dropout, members=members)
    together = Ensemble.of(config, gates)
    of_all = points(together, data, cost), worlds.regret(together, test)
    return {1: (mean(p for p, _ in alone), mean(r for _, r in alone)), members: of_all}


def draw(found: dict[tuple[str, ...], tuple[float, float]], cost: str, path: Path) -> None:
    """A panel a source: points above the hull over images, alone and together."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sources = sorted({key[0] for key in found})
    figure, panels = plt.subplots(1, len(sources), figsize=(3.6 * len(sources) + 0.6, 3.4), squeeze=False)
    for source, panel in zip(sources, panels[0], strict=True):
        for gates, colour, marker in zip(_gates(found), ("#8C8C8C", "#0072B2"), "so", strict=False):
            images = sorted({int(key[1]) for key in found if key[0] == source})
            of = [_spread(found, source, str(n), gates)[0] for n in images]
            label = "one gate" if gates == "1" else f"{gates} gates as one"
            panel.errorbar(
                images,
                [m for m, _ in of],
                [d for _, d in of],
                c=colour,
                marker=marker,
                capsize=3,
                label=label,
            )
        panel.axhline(0, color="0.6", linewidth=1)
        panel.set_xscale("log")
        panel.set_xticks(images, [f"{n:,}" for n in images])
        panel.minorticks_off()
        panel.set_title(source, fontsize=10)
        panel.set_xlabel("images to learn from")
        panel.grid(axis="y", color="0.92")
    panels[0][0].set_ylabel(f"points above the hull at cost {cost}")
    panels[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _gates(found: dict[tuple[str, ...], tuple[float, float]]) -> list[str]:
    return sorted({key[3] for key in found}, key=int)


def _spread(
    found: dict[tuple[str, ...], tuple[float, float]], source: str, images: str, gates: str
) -> list[tuple[float, float]]:
    """Mean and deviation over splits, of points and of regret."""
    of = [value for key, value in found.items() if (key[0], key[1], key[3]) == (source, images, gates)]
    return [(mean(each), stdev(each) if len(each) > 1 else 0.0) for each in zip(*of, strict=True)]


def main() -> None:
    quiet()
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    run, members, cost = given.get("run"), int(given.get("members", 4)), given.get("cost", "0.3")
    recipe = Recipe(
        "probability" if run else "score",
        int(given.get("steps", 800)),
        *(
            float(given.get(key, value))
            for key, value in (("lr", 0.003), ("weight_decay", 0.01), ("dropout", 0))
        ),
    )
    path = Path(given["out"]) / "few_images.csv" if "out" in given else None
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    if path is not None and path.exists():
        with path.open(newline="") as file:
            found = {tuple(row[:4]): (float(row[4]), float(row[5])) for row in list(csv.reader(file))[1:]}
    sources = [Path(run).name] if run else given.get("world", "glance,both").split(",")
    for source in sources:
        for images in given.get("images", "300,1000,3000").split(","):
            for split in range(int(given.get("splits", 3))):
                if (source, images, str(split), "1") in found:
                    continue
                data = of_run(Path(run), int(images), split) if run else of_world(source, int(images), split)
                for gates, value in measured(data, recipe, members, float(cost)).items():
                    found[source, images, str(split), str(gates)] = value
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("w", newline="") as file:
                        csv.writer(file).writerows(
                            [COLUMNS, *((*key, *value) for key, value in found.items())]
                        )
    for source, few in dict.fromkeys((key[0], key[1]) for key in found):
        for number in _gates(found):
            (height, d), (share, of_share) = _spread(found, source, few, number)
            print(
                f"{source}, {few} images, {number} gates: {height:.2f} ± {d:.2f} points above the hull at "
                f"cost {cost}, regret {100 * share:.1f} ± {100 * of_share:.1f} %"
            )
    if path is not None:
        draw(found, cost, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
