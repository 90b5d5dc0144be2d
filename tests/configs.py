"""Runs that take two steps: their configs, and whether two of them ended with the same weights."""

from pathlib import Path

import safetensors.torch
import torch
from hydra import compose, initialize_config_dir

from pyrskip.config import Config, read
from pyrskip.launch import conf_directory
from tests.own_data import write_llava

REPOSITORY = Path(__file__).resolve().parent.parent
TWO_STEPS = [
    "data.limit=12",
    "data.samples_per_shard=6",
    "language.width=32",
    "language.mlp=32",
    "language.layers=1",
    "gate.width=8",
    "flex.optimizer.steps=2",
    "rule.optimizer.steps=2",
    "rule.batch=16",
    "seeds=1",
    "loader.batch_images=2",
    "evaluation.resamples=20",
    "evaluation.timing_seconds=0.001",
    "evaluation.prices=[0.05,0.5]",
    "evaluation.images=4",
    "trainer.checkpoint_every=1",
    "trainer.quiet=true",
]


def own_data(folder: Path) -> list[str]:
    """A small set in LLaVA's format, and the keys that name it."""
    path = write_llava(folder, images=60)
    return [
        f"data.files.path={path}",
        f"data.files.images={folder / 'images'}",
        "data.files.workers=0",
        "language.heads=4",
    ]


def tiny(root: Path, *overrides: str, experiment: str = "easy_vqa") -> Config:
    if experiment == "your_data":
        overrides = (*own_data(root), "pyramid.size=128", "pyramid.levels=3", *overrides)
    if experiment == "scenes":
        overrides = (
            "data.scenes.size=256",
            "pyramid.size=256",
            "pyramid.levels=3",
            "data.limit=6",
            *overrides,
        )
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        cfg = compose("train", overrides=[f"experiment={experiment}", f"root={root}", *TWO_STEPS, *overrides])
    return read(cfg)[0]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
