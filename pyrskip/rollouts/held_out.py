"""Validation's two halves, by image: one that trainings look at, and one that trained gates are judged on:
what they guarantee, and whether they are above fixed selections.

Axes: N questions, M images.
"""

import hashlib

import torch

from pyrskip.rollouts.table import RolloutTable


def held_out(table: RolloutTable) -> list[int]:
    """Rows of `image_keys`: the half of the validation images that no gate is chosen by, no weights, no tilt,
    no job of a sweep. By chance, order included, a function of the keys alone; the smaller half."""
    images = table.image_of.unique().tolist()
    by_chance = sorted(images, key=lambda image: _digest(table.image_keys[image]))
    return by_chance[(len(images) + 1) // 2 :]


def looked_at(table: RolloutTable) -> RolloutTable:
    """The questions on the other half, which trainings may look at."""
    hidden = torch.tensor(held_out(table), dtype=torch.long)
    return table.take((~torch.isin(table.image_of, hidden)).nonzero().squeeze(1))


def _digest(key: str) -> bytes:
    return hashlib.sha256(f"held out/{key}".encode()).digest()
