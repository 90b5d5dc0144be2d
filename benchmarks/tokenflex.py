"""Whether one model for every number of tokens beats one for each (TokenFLEX, arXiv:2504.03154).

python benchmarks/tokenflex.py run=<directory> [key=value ...]

run=<directory> of any run whose data stage is done (stages=[data] is enough): its data, encoder, projector
and language model; out=<directory> for tokenflex.csv, tokenflex.png and every question's score: what is in
there is not trained again; steps=600, images=8 a step, seeds=3 trainings of each kind, test=500 images to
answer on.

The model reads level 0 alone, as the paper's reads a picture: pooled to 64, 144 or 256 of 256 tokens, or the
same shares of what it has. `stochastic` is trained on one of the three a step, with p .2, .3 and .5; the
others on one of them alone, from the same weights and on the same questions. Intervals are a paired bootstrap
over test images of the mean over seeds; ± is the deviation between seeds, of accuracy or of what is gained.
"""

import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pyrskip.budget import StochasticBudget, scale
from pyrskip.config import read, read_saved
from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import Filled, collate
from pyrskip.decision import ActionSet
from pyrskip.evaluation.bootstrap import Bootstrap, Interval
from pyrskip.files import write_whole
from pyrskip.launch import quiet
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.scoring import score_native
from pyrskip.stages.cache import encoder_of, inputs_of, statistics
from pyrskip.stages.flex import texts_of
from pyrskip.stages.run import Run
from pyrskip.training.flex import FlexModule
from pyrskip.training.trainer import build_trainer, fit

BUDGETS = (64, 144, 256)
WHOLE = 256
STOCHASTIC = "stochastic"
PAPER = {64: 1.6, 144: 1.0, 256: 0.4}
"""Points of accuracy that stochastic training gained over fixed."""
REVERSE = -2.9
"""53.3 less 56.2: trained at 256 and used at 64, over trained at 64 and used at 256."""
COLUMNS = ("trained", "seed", "used", "questions", "accuracy")


@dataclass(frozen=True)
class Fixed:
    """The same share of capacity at every step, as `pyrskip.budget.StochasticBudget` gives it."""

    share: float

    def fractions(self, step: int, rank: int = 0) -> tuple[float, ...]:
        return (self.share,)


@dataclass(frozen=True)
class Scores:
    """score [3, N]: of each test question at each of BUDGETS; image_of [N]."""

    score: Tensor
    image_of: Tensor

    @classmethod
    def load(cls, path: Path) -> "Scores":
        return cls(**safetensors.torch.load_file(path))

    def save(self, path: Path) -> None:
        write_whole(path, safetensors.torch.save({"score": self.score, "image_of": self.image_of}))


def train(run: Run, trained: str, seed: int, steps: int, images: int, directory: Path) -> NativeModel:
    """A model of the run's config, `directory` for its checkpoint."""
    config, side = run.config, run.config.pyramid.size
    vision = encoder_of(run)
    data = inputs_of(run, "train", vision)
    tokenizer = train_tokenizer(texts_of(data), config.language.vocabulary)
    torch.manual_seed(seed)
    model = NativeModel(config.native, tokenizer)
    model.vision.load_state_dict(vision.state_dict())
    shares: dict[str, Any] = {"full_share": 0, "reference_share": 1, "glance_share": 0, "region_share": 0}
    optimizer = replace(config.flex.optimizer, steps=steps)
    flex = replace(config.flex, **shares, close_share=0.0, seed=seed, optimizer=optimizer)
    module = FlexModule(flex, model, ActionSet.by_level(model.pyramid))
    stochastic = StochasticBudget("tokenflex", seed)
    module.budget = stochastic if trained == STOCHASTIC else Fixed(int(trained) / WHOLE)  # type: ignore[assignment]
    model.whiten(statistics(data, config.loader.rollout_images, side))
    batches = StepData(Filled(data), lambda samples: collate(samples, side), images, steps, seed)
    trainer = build_trainer(replace(config.trainer, quiet=True), directory)
    fit(trainer, module, batches, directory)
    return model.eval()


@torch.no_grad()
def answered(run: Run, model: NativeModel, images: int) -> Scores:
    """Its scores on the first test images, at each of BUDGETS."""
    data, size = inputs_of(run, "test", model.vision), run.config.loader.rollout_images
    scores, image_of, first = [], [], model.pyramid.tile_level == 0
    for start in range(0, min(images, len(data)), size):
        stop = min(start + size, images, len(data))
        batch = collate(data.__getitems__(list(range(start, stop))), run.config.pyramid.size)
        capacity = model.pyramid.capacity(batch.size)[batch.image_of] * first
        asked = torch.stack([scale(capacity, budget / WHOLE) for budget in BUDGETS], dim=1)
        scores.append(score_native(model, batch, model.encode(batch, capacity > 0), asked)[0])
        image_of.append(batch.image_of + start)
    return Scores(torch.cat(scores).T.contiguous(), torch.cat(image_of))


def gained(
    found: dict[tuple[str, int], Scores], a: tuple[str, int], b: tuple[str, int]
) -> tuple[float, Interval, float]:
    """Points that a, (how it is trained, at which budget it is used), has over b: the mean over seeds, its
    interval, and the deviation between seeds."""
    of_a, of_b = (_of_seeds(found, *each) for each in (a, b))
    some = next(iter(found.values()))
    low, high = Bootstrap(some.image_of).interval_of_difference(of_a.mean(0), of_b.mean(0))
    points = 100 * (of_a - of_b).mean(-1)
    return float(points.mean()), (100 * low, 100 * high), _deviation(points)


def _of_seeds(found: dict[tuple[str, int], Scores], trained: str, used: int) -> Tensor:
    """The score of each question with each seed, [K, N] float64."""
    own = [of.score[BUDGETS.index(used)] for (name, _), of in found.items() if name == trained]
    return torch.stack(own).double()


def _deviation(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else 0.0


def rows(found: dict[tuple[str, int], Scores]) -> list[tuple[str, int, int, int, float]]:
    return [
        (trained, seed, used, of.score.shape[1], float(of.score[i].double().mean()))
        for (trained, seed), of in found.items()
        for i, used in enumerate(BUDGETS)
    ]


def tell(found: dict[tuple[str, int], Scores]) -> None:
    print("accuracy % (95 %) | used at " + " | ".join(map(str, BUDGETS)))
    some = next(iter(found.values()))
    bootstrap = Bootstrap(some.image_of)
    for trained in dict.fromkeys(name for name, _ in found):
        cells = []
        for used in BUDGETS:
            score = 100 * _of_seeds(found, trained, used)
            low, high = bootstrap.interval(score.mean(0))
            spread = _deviation(score.mean(-1))
            cells.append(f"{float(score.mean()):.1f} ± {spread:.1f} ({low:.1f} to {high:.1f})")
        print(f"trained {trained} | " + " | ".join(cells))
    compared = {
        f"stochastic over fixed at {used}": ((STOCHASTIC, used), (str(used), used), points)
        for used, points in PAPER.items()
    }
    least, most = BUDGETS[0], BUDGETS[-1]
    reverse = (str(most), least), (str(least), most), REVERSE
    compared[f"trained at {most} and used at {least}, over the reverse"] = reverse
    for what, (one, other, claimed) in compared.items():
        points, (low, high), spread = gained(found, one, other)
        print(f"{what}: {points:+.1f} ± {spread:.1f} ({low:+.1f} to {high:+.1f}); the paper {claimed:+}")


def draw(found: dict[tuple[str, int], Scores], path: Path) -> None:
    """Accuracy over the budget that is used, a line a training."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 3.4))
    colours = ("#0072B2", "#E69F00", "#009E73", "#8C8C8C")
    for trained, colour in zip(dict.fromkeys(name for name, _ in found), colours, strict=False):
        own = [r for r in rows(found) if r[0] == trained]
        of = {used: [r[4] for r in own if r[2] == used] for used in BUDGETS}
        label = trained if trained == STOCHASTIC else f"fixed {trained}"
        axes.plot(BUDGETS, [100 * mean(of[used]) for used in BUDGETS], "o-", c=colour, label=label)
        for used in BUDGETS:
            axes.plot([used] * len(of[used]), [100 * a for a in of[used]], ".", c=colour, markersize=4)
    axes.set_xticks(BUDGETS)
    axes.set_xlabel("of 256 tokens used")
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", color="0.92")
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    quiet()
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    place, out = Path(given["run"]), Path(given["out"])
    config, nodes = read(OmegaConf.create(read_saved(given["run"], "run")))
    run = Run(replace(config, root=str(place.parent), name=place.name), nodes)
    steps, images = int(given.get("steps", 600)), int(given.get("images", 8))
    found: dict[tuple[str, int], Scores] = {}
    for seed in range(int(given.get("seeds", 3))):
        for trained in (STOCHASTIC, *map(str, BUDGETS)):
            directory = out / f"{trained}-{seed}"
            path = directory / "scores.safetensors"
            if not path.exists():
                model = train(run, trained, seed, steps, images, directory)
                answered(run, model, int(given.get("test", 500))).save(path)
            found[trained, seed] = Scores.load(path)
            with (out / "tokenflex.csv").open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows(found)])
    tell(found)
    draw(found, out / "tokenflex.png")


if __name__ == "__main__":
    main()
