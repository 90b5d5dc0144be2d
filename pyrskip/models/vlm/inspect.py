"""What a third-party model makes of pictures, before anything is trained: `pyrskip vlm inspect <folder>`.

Read from its config and processor alone; weights are not touched.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from pyrskip.errors import UserError
from pyrskip.models.vlm.layout import check_pyramid, check_room, level_costs
from pyrskip.models.vlm.prompts import Prompts
from pyrskip.pyramid import Pyramid

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SMALLEST = 64
"""Pixels a side of a glance that is still worth a look."""
MOST_LEVELS = 4
ANSWER = 16
"""Tokens of an answer, as `model=hf` has them by default."""
STRIDE = 8
"""Pixels a side of a cell of the gate's own encoder, as `vision` has them by default."""


@dataclass(frozen=True)
class Proposal:
    """A pyramid of which every level is cheaper than the finer ones, and the action set for it."""

    pyramid: Pyramid
    actions: str

    def keys(self, path: str) -> str:
        """The config's keys, as they follow `pyrskip train experiment=your_vlm`."""
        p = self.pyramid
        grid = ",".join(str(g) for g in p.grid)
        return (
            f"model=hf model.hf.path={path} text=minilm actions={self.actions} pyramid.size={p.size} "
            f"pyramid.levels={p.levels} pyramid.grid=[{grid}]"
        )


def propose(prompts: Prompts, size: int) -> Proposal:
    """For images of up to `size` pixels a side: whole levels where a smaller picture is cheaper, else one
    level of quarters over a glance. Smaller images where the language model has no room for such.

    Raises UserError where none fits.
    """
    while size >= 2 * SMALLEST:
        proposal = _whole_levels(prompts, size) or Proposal(Pyramid(size, 2, STRIDE, (2,)), "tiles")
        try:
            check_pyramid(prompts, proposal.pyramid, ANSWER)
            check_room(prompts.own(), Pyramid(size, 1, STRIDE), ANSWER)
        except UserError as error:
            fault = error
            size //= 2
        else:
            return proposal
    raise UserError(f"no pyramid of at least {2 * SMALLEST} px fits this model: {fault}")


def _whole_levels(prompts: Prompts, size: int) -> Proposal | None:
    """The levels of whole images that get cheaper one by one, at least two."""
    sides = [size >> level for level in range(MOST_LEVELS) if size >> level >= SMALLEST]
    looks = [prompts.look((side, side), lone=False) for side in sides]
    costs = [look.tokens + look.beside for look in looks]
    levels = 1
    while levels < len(costs) and costs[levels] < costs[levels - 1]:
        levels += 1
    return Proposal(Pyramid(size, levels, STRIDE), "levels") if levels > 1 else None


def parameters(config: "PreTrainedConfig") -> int:
    """How many a model of this config has: those of one that is built without memory for them."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


def inspect(path: str, size: int = 1024) -> str:
    """What is printed of a folder or a hub id: its family, how large it is, tokens of pictures, which sizes
    cost the same, a proposed pyramid and the keys to copy. size: pixels a side of the largest images, a
    multiple of 128.

    Raises UserError where the folder holds no model of a known family.
    """
    if size < 2 * SMALLEST or size % (2 * SMALLEST):
        raise UserError(f"size={size}: allowed: multiples of {2 * SMALLEST}")
    prompts = Prompts.from_pretrained(path)
    own, family = prompts.own(), prompts.family
    sides = [size >> level for level in range(10) if size >> level >= SMALLEST // 2]
    tiles = {side: prompts.look((side, side), lone=False).tokens for side in sides}
    wide = {side: (side, side // 2) for side in sides}
    weights = parameters(prompts.config)
    lines = [
        f"{path}: model family {prompts.config.model_type}",
        f"weights, calculated from its config: {weights / 1e9:.2f} billion, {2 * weights / 1e9:.1f} GB in "
        "16 bits",
        f"processor's settings for a tile: {prompts.images_kwargs or 'its own'}",
        f"room of the language model: {prompts.room or 'not said'} tokens; template: {prompts.words('')}, "
        f"around a picture: {prompts.look((size, size), lone=False).beside}",
    ]
    if not family.additive:
        lines.append("a lone picture is cut by the model itself, several are not")
    if family.cross:
        lines.append("pictures are read by cross-attention and take no place in the prompt")
    lines += ["", f"{'picture':>13}  {'as a tile':>9}  {'as its user runs it':>19}"]
    for side in sides:
        for rows, columns in ((side, side), wide[side]):
            tile, whole = prompts.look((rows, columns), lone=False), own.look((rows, columns))
            lines.append(f"{f'{rows} x {columns}':>13}  {tile.tokens:9}  {whole.tokens:19}")
    lines.append("")
    for tokens, alike in groupby(sides, key=lambda side: tiles[side]):
        same = list(alike)
        if len(same) > 1:
            lines.append(f"tiles of {', '.join(map(str, same))} px cost the same: {tokens} tokens")
    found = propose(prompts, size)
    costs = zip(range(found.pyramid.levels), level_costs(prompts, found.pyramid), strict=True)
    lines += [
        f"proposed: {', '.join(f'level {level}: {cost} tokens' for level, cost in costs)}",
        "keys to copy behind pyrskip train experiment=your_vlm:",
        f"  {found.keys(path)}",
    ]
    return "\n".join(lines)
