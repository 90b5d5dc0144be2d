"""A small rollout table without a model, for tests of what is computed from tables."""

import torch

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.decision import ActionSet, blind, realise, reference
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable

TYPES = ("color", "shape", "count")
TEXTS = ("what color is it?", "which shape is it?", "how many are there?")
PIXEL_FLOPS, TOKEN_FLOPS, WORD_FLOPS = 100.0, 5_000.0, 40_000.0


def synthetic_pyramid(levels: int = 3) -> Pyramid:
    return Pyramid(size=64, levels=levels, stride=8)


def synthetic_table(
    split: str = "test",
    images: int = 40,
    levels: int = 3,
    seed: int = 0,
    varied_cost: bool = False,
    rungs: tuple[int, ...] | None = None,
) -> RolloutTable:
    """A question of each type on every image. A color needs the glance, a shape level 1, a count level 0.

    What is needed makes an answer right with p .95, less with p .5, no image with p .3. varied_cost: longer
    questions cost more. rungs: what may be asked of a level; then p rises from .5 to .95 with the root of the
    needed level's tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    pyramid, budget = synthetic_pyramid(levels), BudgetRule(rungs=rungs)
    actions = ActionSet.of(pyramid, budget)
    size = torch.full((images, 2), 64)
    kind = torch.arange(len(TYPES)).repeat(images)
    image_of = torch.arange(images).repeat_interleave(len(TYPES))

    selection = torch.cat([actions.selection, reference(pyramid)[None], blind(pyramid)[None]])
    capacity = pyramid.capacity(size[:1])
    asked = torch.cat([actions.tokens(capacity, budget)[0], selection[-2:] * capacity])
    tokens = realise(asked, pyramid.cells(size[:1])[0]).prod(-1).sum(-1).double().expand(len(kind), -1)
    flops = tokens * TOKEN_FLOPS + selection.double() @ synthetic_tile_flops(levels, 1)[0]
    if varied_cost:
        flops = flops + WORD_FLOPS * torch.randint(1, 5, (len(kind), 1), generator=generator)

    finest = torch.where(selection.any(-1), selection.int().argmax(-1), levels)
    enough = finest <= torch.tensor([levels - 1, 1, 0])[kind][:, None]
    chance = torch.where(enough, 0.95, 0.5)
    if rungs is not None:
        needed = torch.tensor([levels - 1, 1, 0])
        chance = 0.5 + 0.45 * (asked / capacity).sqrt()[:, needed].T.float()[kind]
    chance[:, -1] = 0.3
    # one draw a question: an action that does more is never worse
    score = (torch.rand(len(kind), 1, generator=generator) < chance).float()

    # surer where the glance is enough
    sure = torch.rand(len(kind), generator=torch.Generator().manual_seed(98 + seed)) * chance[:, 0]

    query = torch.randn(len(TYPES), 4, 8, generator=torch.Generator().manual_seed(99))
    return RolloutTable(
        actions=actions,
        score=score,
        probability=chance.clone(),
        cost=Cost(tokens, flops, 64 * tokens),
        similarity=torch.rand(len(kind), pyramid.tiles, generator=generator) * 2 - 1,
        image_of=image_of,
        query_of=kind,
        signals={
            "question": {"answer_stats": torch.stack([sure, (1 - sure) / 2, 1 - sure], dim=-1)},
            "text": {"query": query, "query_mask": torch.ones(len(TYPES), 4, dtype=torch.bool)},
            "image": {
                "glance": torch.randn(images, 6, 2, 2, generator=generator),
                "glance_mask": torch.ones(images, 2, 2, dtype=torch.bool),
            },
        },
        size=size,
        types=tuple(TYPES[k] for k in kind.tolist()),
        keys=tuple(f"{split}-{i // 3}/{i % 3}" for i in range(len(kind))),
        texts=TEXTS,
        image_keys=tuple(f"{split}-{i}" for i in range(images)),
        split=split,
    )


def synthetic_tile_flops(levels: int, images: int) -> torch.Tensor:
    """[M, T]: FLOPs of encoding each tile."""
    pyramid = synthetic_pyramid(levels)
    pixels = pyramid.pixels(torch.full((images, 2), 64)).prod(-1)
    return pixels.double() * PIXEL_FLOPS
