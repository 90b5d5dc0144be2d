"""Is a gate worth having on this data? What a summary says of gates against fixed selections.

Axes: N questions, P prices.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from pyrskip.evaluation.frontier import Frontier
from pyrskip.evaluation.safe import LEVEL, above_hull, safe
from pyrskip.rollouts.held_out import held_out


def verdict(frontier: Frontier) -> dict[str, Any]:
    """Its part of the summary.

    above: at how many of `settings`, seeds and prices, the run's gate is above the hull by so many held-out
    `images`; over these, measured on test: relative_flops, of the cheapest and the dearest, and gain, the
    mean height over the hull; None where there are none. seeds: what stands in place of each gate.
    """
    inputs, test = frontier.inputs, frontier.inputs.tables["test"]
    choices = {seed: safe(inputs, seed) for seed in inputs.seeds}
    heights, costs, settings = [], [], 0
    for seed, of in choices.items():
        prices = inputs.prices_of("gate", seed)
        above = [of.at(price) is None for price in prices]
        settings += len(prices)
        action = inputs.decided("gate", seed, "test")[torch.tensor(above)]
        heights.append(
            above_hull(inputs, test, action, torch.full((len(action),), inputs.gate_flops["gate"]))
        )
        own = (frontier.select("gate", "test", price, seed)[0].row.relative_flops for price in prices)
        costs += [cost for cost, is_above in zip(own, above, strict=True) if is_above]
    height = torch.cat(heights).mean(0)
    return {
        "level": LEVEL,
        "images": len(held_out(inputs.tables["val"])),
        "above": len(costs),
        "settings": settings,
        "relative_flops": [min(costs), max(costs)] if costs else None,
        "gain": float(height.mean()) if costs else None,
        "gain_ci95": frontier.bootstrap["test"].interval(height) if costs else None,
        "seeds": [{"seed": seed, **asdict(of)} for seed, of in choices.items()],
    }


def said(verdict: Mapping[str, Any]) -> str:
    """Whether a gate is worth having, in a line. verdict: as summary.json has it."""
    if not verdict["above"]:
        return (
            "a gate is not worth having on this data: a fixed selection does as well, as far as "
            f"{verdict['images']} held-out images tell"
        )
    (cheap, dear), (low, high) = verdict["relative_flops"], verdict["gain_ci95"]
    return (
        f"a gate is worth having on this data between costs {cheap:.3f} and {dear:.3f}: on test it is "
        f"{100 * verdict['gain']:.2f} points ({100 * low:.2f} to {100 * high:.2f}) above the hull of fixed "
        f"selections, at {verdict['above']} of {verdict['settings']} prices, those where {verdict['images']} "
        "held-out images tell that it is above"
    )
