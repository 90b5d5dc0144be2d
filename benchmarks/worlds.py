"""Three worlds whose best decisions are known: how near every rule and policy comes to them.

python benchmarks/worlds.py [key=value ...]

world=question,glance,both   which; steps=3000; seeds=3; target=probability,score; pair=exact-categorical,...
(all by default); images=5000 to learn from; validations=, patience= as in rule (0: the last weights);
out=<directory> for worlds.csv and worlds.png: a gate whose regret is there is not trained again. A row is the
regret on unseen images as a share of the gap between the best constant decision and the best of each
question, of those that the policy can take, the mean over prices: 0% is the optimum, 100% no better than one
decision for all. Costs a minute or so a gate, on one core.

Axes: N questions, M images, T tiles, S actions.
"""

import csv
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.data.datamodule import StepData
from pyrskip.decision import ActionConfig, ActionSet, blind, reference
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.launch import quiet
from pyrskip.policies.quadtree import QuadtreePolicy
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.training.best import KEPT, Best
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit

IMAGES = {"gate": 5000, "val": 2000, "test": 2000}
QUESTIONS = 3
"""On each image."""
CHANNELS = 8
NOISE = 0.5
SURE, UNSURE = 0.95, 0.5
"""Probability of a right answer where what a question needs is kept, and where it is not."""
PRICES = (0.1, 0.2, 0.35)
COLUMNS = ("world", "pair", "target", "images", "steps", "options", "seed", "regret", "taken")


@dataclass(frozen=True)
class World:
    """needs: (kind of question [N], what the image's glance shows [N, 2] in 0..3) -> the tile that a question
    needs beside the glance [N], -1 for none."""

    pyramid: Pyramid
    unit: str
    needs: Callable[[Tensor, Tensor], Tensor]


def by_question(kind: Tensor, shown: Tensor) -> Tensor:
    return torch.tensor([-1, 1, 0])[kind]


def by_glance(kind: Tensor, shown: Tensor) -> Tensor:
    return torch.tensor([-1, 1, 0, 0])[shown[:, 0]]


def by_both(kind: Tensor, shown: Tensor) -> Tensor:
    """Two kinds ask about a thing each, which lies in the quadrant where the glance shows it; the third about
    the whole."""
    return torch.where(kind < 2, shown.gather(1, kind.clamp(max=1)[:, None]).squeeze(1), -1)


WORLDS = {
    "question": World(Pyramid(64, 3, 8), "level", by_question),
    "glance": World(Pyramid(64, 3, 8), "level", by_glance),
    "both": World(Pyramid(64, 4, 8, (2, 1, 1, 1)), "tile", by_both),
}


def table_of(world: World, split: str, seed: int) -> RolloutTable:
    """Each question drawn right or wrong once an action; `probability` is the truth."""
    generator = torch.Generator().manual_seed(seed)
    pyramid, tiles = world.pyramid, world.pyramid.tiles
    actions = ActionSet.of(pyramid, BudgetRule(), ActionConfig(world.unit))
    selection = torch.cat([actions.selection, reference(pyramid)[None], blind(pyramid)[None]])
    images = IMAGES[split]
    image_of = torch.arange(images).repeat_interleave(QUESTIONS)
    kind = torch.arange(3).repeat(images)
    shown = torch.randint(0, 4, (images, 2), generator=generator)
    needed = world.needs(kind, shown[image_of])
    kept = torch.cat([torch.ones(len(selection), 1, dtype=torch.bool), selection], dim=1).T[needed + 1]
    chance = torch.where(kept, SURE, UNSURE)
    capacity = pyramid.capacity(torch.full((1, 2), pyramid.size))[0]
    tokens = (selection.double() @ capacity.double()).expand(len(kind), -1)
    # a thing is a channel of its own, bright in the quadrant where it lies; all else is noise
    glance = NOISE * torch.randn(images, CHANNELS, 4, generator=generator)
    for thing in range(2):
        glance[torch.arange(images), thing, shown[:, thing]] += 4.0
    words = torch.randn(3, 4, CHANNELS, generator=torch.Generator().manual_seed(99))
    query = words[kind] + 0.3 * torch.randn(len(kind), 4, CHANNELS, generator=generator)
    return RolloutTable(
        actions=actions,
        score=(torch.rand(chance.shape, generator=generator) < chance).float(),
        probability=chance,
        cost=Cost(tokens, 1000 * tokens, 64 * tokens),
        similarity=torch.zeros(len(kind), tiles),
        image_of=image_of,
        query_of=torch.arange(len(kind)),
        signals={
            "question": {},
            "text": {"query": query, "query_mask": torch.ones(len(kind), 4, dtype=torch.bool)},
            "image": {
                "glance": glance.unflatten(2, (2, 2)),
                "glance_mask": torch.ones(images, 2, 2, dtype=torch.bool),
            },
        },
        size=torch.full((images, 2), pyramid.size),
        types=tuple(f"kind {k}" for k in kind.tolist()),
        keys=tuple(f"{split}-{i}" for i in range(len(kind))),
        texts=tuple(f"kind {k}, {i}" for i, k in enumerate(kind.tolist())),
        image_keys=tuple(f"{split}-{i}" for i in range(images)),
        split=split,
    )


def environment_of(world: World, table: RolloutTable) -> TableEnvironment:
    return TableEnvironment(table, world.pyramid, BudgetRule(), table.mean_full_flops)


def possible(gate: Gate, environment: TableEnvironment) -> Tensor:
    """Which listed actions [S] a gate can take, whatever it learns: of all policies `quadtree` alone cannot
    take each, as it keeps no tile without the coarser one over it."""
    policy = gate.policy(environment.observe(torch.tensor([0]), torch.tensor(PRICES[:1])))
    if not isinstance(policy, QuadtreePolicy):
        return torch.ones(len(environment.table.actions), dtype=torch.bool)
    return policy.log_probs(environment.table.actions.selection[None])[0].isfinite()


@torch.no_grad()
def regret(gate: Gate, environment: TableEnvironment) -> float:
    """Share of the gap between the best constant decision (1) and the best of each question (0), of those
    that the gate can take, mean over prices."""
    rows, among, shares = torch.arange(len(environment.table)), possible(gate, environment), []
    for price in PRICES:
        seen = environment.observe(rows, torch.full((len(rows),), price))
        worth = environment.probabilities(rows) - price * environment.relative
        action = environment.action(gate.eval().policy(seen).mode())
        best, constant = worth[:, among].amax(1).mean(), worth[:, among].mean(0).amax()
        shares.append(float((best - worth.gather(1, action[:, None]).mean()) / (best - constant)))
    return mean(shares)


def train(
    world: World, pair: tuple[str, str], target: str, steps: int, seed: int, **options: int
) -> tuple[float, int]:
    """The regret of a gate of the package's own width, trained by its own loop, and the steps that it took.
    options: of the rule."""
    rule, policy = pair
    environment = environment_of(world, table_of(world, "gate", 1 + seed))
    torch.manual_seed(seed)
    gate = build_gate(GateConfig(policy=policy), environment.layout)
    optimizer = OptimizerConfig(steps=steps, lr=0.003, weight_decay=0.01, warmup=20, beta2=0.98)
    config = rule_config(rule)(target=target, optimizer=optimizer, **options)  # type: ignore[arg-type]
    module = RULES[rule](config, gate, environment, RewardConfig(), seed)
    rows: Any = range(len(environment.table))
    with tempfile.TemporaryDirectory() as directory:
        val = environment_of(world, table_of(world, "val", 101 + seed))
        best = Best(val, config.validations, config.patience, Path(directory) / KEPT)
        settings = TrainerConfig(quiet=True, checkpoint_every=steps)
        trainer = build_trainer(settings, Path(directory), callbacks=[best])
        fit(trainer, module, StepData(rows, torch.tensor, config.batch, steps, seed), Path(directory))
    test = environment_of(world, table_of(world, "test", 0))
    return regret(gate.cpu(), test), trainer.global_step


class Journal:
    """Regret and steps of every gate that has been trained, by its key, in a file where one is given."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.found = path, dict[tuple[str, ...], tuple[float, int]]()
        if path is not None and path.exists():
            with path.open(newline="") as file:
                rows = list(csv.reader(file))[1:]
            self.found = {tuple(row[:-2]): (float(row[-2]), int(row[-1])) for row in rows}

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return tuple(map(str, key)) in self.found

    def __getitem__(self, key: tuple[Any, ...]) -> tuple[float, int]:
        return self.found[tuple(map(str, key))]

    def add(self, key: tuple[Any, ...], share: float, taken: int) -> None:
        self.found[tuple(map(str, key))] = share, taken
        if self.path is None:
            return
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow((*key, share, taken))


def draw(found: dict[tuple[str, str, str], list[float]], path: Path) -> None:
    """A panel a world, a row a pair, a dot a gate."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    worlds = list(dict.fromkeys(world for world, _, _ in found))
    names = list(dict.fromkeys(name for _, name, _ in found))
    targets = list(dict.fromkeys(target for _, _, target in found))
    figure, panels = plt.subplots(
        1, len(worlds), figsize=(3.4 * len(worlds) + 1.6, 0.34 * len(names) + 1.3), sharey=True, squeeze=False
    )
    for world, panel in zip(worlds, panels[0], strict=True):
        for colour, marker, target in zip(("#0072B2", "#D55E00"), "ox", targets, strict=False):
            points = [
                (100 * x, i) for i, name in enumerate(names) for x in found.get((world, name, target), ())
            ]
            panel.scatter(
                *zip(*points, strict=True), s=22, c=colour, marker=marker, label=f"taught the {target}"
            )
        panel.axvline(5, color="0.7", linewidth=1, linestyle=":")
        panel.set_title({"both": "both decide, 64 actions"}.get(world, f"the {world} decides"), fontsize=10)
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(-0.2, 150)
        panel.set_xticks([0, 1, 5, 20, 100], ["0", "1", "5", "20", "100"])
        panel.set_axisbelow(True)
        panel.set_xlabel("regret, % of the gap")
        panel.grid(axis="y", color="0.92")
    panels[0][0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower left", fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    quiet()
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    worlds, targets = (
        given.get("world", ",".join(WORLDS)).split(","),
        given.get("target", "probability").split(","),
    )
    steps, seeds = int(given.get("steps", 3000)), int(given.get("seeds", 3))
    IMAGES["gate"] = int(given.get("images", IMAGES["gate"]))
    options = {key: int(given[key]) for key in ("validations", "patience") if key in given}
    pairs = [pair for pair in valid_pairs(online=False) if pair[1] != "rungs" and RULES[pair[0]].priced]
    every = ["-".join(pair) for pair in pairs]
    names = given["pair"].split(",") if "pair" in given else every
    found: dict[tuple[str, str, str], list[float]] = {}
    out = Path(given["out"]) if "out" in given else None
    journal = Journal(out and out / "worlds.csv")
    console = Console()
    for world in worlds:
        for name in names:
            for target in targets:
                rule, _, policy = name.partition("-")
                trained = []
                for seed in range(seeds):
                    key = (world, name, target, IMAGES["gate"], steps, str(sorted(options.items())), seed)
                    if key not in journal:
                        journal.add(
                            key, *train(WORLDS[world], (rule, policy), target, steps, seed, **options)
                        )
                    trained.append(journal[key])
                found[world, name, target] = [share for share, _ in trained]
                told = (f"{100 * share:.1f}% ({taken} steps)" for share, taken in trained)
                console.print(world, name, target, *told)
    table = Table(
        "rule and policy", "target", *worlds, title=f"regret, % of the gap, {steps} steps, {seeds} seeds"
    )
    for name in names:
        for target in targets:
            cells = [found[world, name, target] for world in worlds]
            spread = [f" ±{100 * stdev(of):.1f}" if len(of) > 1 else "" for of in cells]
            table.add_row(
                name, target, *(f"{100 * mean(of):.1f}{s}" for of, s in zip(cells, spread, strict=True))
            )
    console.print(table)
    if out is not None:
        draw(found, out / "worlds.png")


if __name__ == "__main__":
    main()
