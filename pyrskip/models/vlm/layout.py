"""Whether a pyramid makes sense for a third-party model: its levels get cheaper, and all of it fits."""

from pyrskip.errors import UserError
from pyrskip.models.vlm.prompts import Look, Prompts
from pyrskip.pyramid import Pyramid


def check_pyramid(prompts: Prompts, pyramid: Pyramid, answer: int) -> None:
    """Refuse a pyramid of which a level is not cheaper than a finer one, and one whose prompt does not fit.

    answer: tokens of an answer. Raises UserError with the numbers, at the largest picture.
    """
    costs = level_costs(prompts, pyramid)
    for level in range(1, pyramid.levels):
        if costs[level] >= costs[level - 1]:
            counted = ", ".join(f"level {i}: {cost}" for i, cost in enumerate(costs))
            raise UserError(
                f"pyramid.size={pyramid.size}, levels={pyramid.levels}, grid={list(pyramid.grid)}: level "
                f"{level} costs this model no less than level {level - 1} (tokens of the largest image: "
                f"{counted}); allowed: levels that get cheaper, such as `pyrskip vlm inspect` proposes"
            )
    check_room(prompts, pyramid, answer)


def level_costs(prompts: Prompts, pyramid: Pyramid) -> list[int]:
    """Tokens of every whole level of the largest image, finest first, with what stands around pictures."""
    return [g * g * (look.tokens + look.beside) for g, look in _levels(prompts, pyramid)]


def _levels(prompts: Prompts, pyramid: Pyramid) -> list[tuple[int, Look]]:
    """Of every level of the largest image: its grid, and one of its tiles."""
    sides = (pyramid.side(level) for level in range(pyramid.levels))
    return [
        (g, prompts.look((side,) * 2, lone=pyramid.tiles == 1))
        for g, side in zip(pyramid.grid, sides, strict=True)
    ]


def check_room(prompts: Prompts, pyramid: Pyramid, answer: int) -> None:
    """Refuse a pyramid whose largest prompt and answer the language model has no positions for."""
    pictures = sum(g * g * prompts.place(look) for g, look in _levels(prompts, pyramid))
    needed, room = pictures + prompts.words("") + answer, prompts.room
    if room is not None and needed > room:
        raise UserError(
            f"pyramid.size={pyramid.size}, levels={pyramid.levels}, grid={list(pyramid.grid)}: all "
            f"{pyramid.tiles} tiles of the largest image and an answer are {needed} tokens, and the language "
            f"model has positions for {room}; allowed: a smaller size, fewer levels or a smaller grid"
        )
