"""Low first, then ask: decisions of two turns, both of which are paid. The model answers from the glance;
where it is not sure of that, it asks for more and answers again."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import GREEN, RED, Section, Style
from pyrskip.gates.asking import threshold

SURE = "answer_stats"
"""The signal whose first number is how sure the model is of its first answer: it stands for the request that
published models are trained to write."""


def whole_picture(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """It asks for the picture at full resolution, and reads that beside the glance (VisionThink,
    arXiv:2507.13348)."""
    if not _tells(inputs):
        return
    second = {
        name: torch.full((len(inputs.tables[name]),), inputs.tables[name].column("0"))
        for name in {"val", split}
    }
    for price in inputs.prices:
        yield replace(two_turns(inputs, split, price, second), price=price)


def part(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """It asks for what the gate would look at, which runs for every question (AdaptVision, arXiv:2512.03794,
    whose model writes a box)."""
    for seed in inputs.seeds if _tells(inputs) and "gate" in inputs.gates else ():
        decided = {name: inputs.decided("gate", seed, name) for name in {"val", split}}
        for number, price in enumerate(inputs.prices_of("gate", seed)):
            second = {name: of[number] for name, of in decided.items()}
            of = two_turns(inputs, split, price, second)
            yield replace(of, price=price, seed=seed, gate="gate")


def two_turns(inputs: Inputs, split: str, price: float, second: Mapping[str, Tensor]) -> Decisions:
    """second: what a second turn looks at, columns [N] of 'val' and the split. It is asked for where the
    first answer is no surer than is best on validation at the price."""
    least = threshold(_sure(inputs, "val"), _gain(inputs, price, second["val"]))
    low, own = inputs.tables[split].column("glance"), second[split]
    asks = (_sure(inputs, split) <= least) & _shows_more(inputs, split, own)
    return Decisions(own.where(asks, low), first=torch.where(asks, low, -1))


def _gain(inputs: Inputs, price: float, second: Tensor) -> Tensor:
    """What a second turn adds to each of validation's questions, in score, for what it costs; nothing where
    it shows nothing more, for then there is none."""
    table = inputs.tables["val"]
    low = torch.full_like(second, table.column("glance"))
    better = Decisions(second).mean(table.score) - Decisions(low).mean(table.score)
    dearer = Decisions(second).mean(table.cost.flops) - inputs.encoded_twice("val", low, second)
    return (better - price * dearer / inputs.unit).where(_shows_more(inputs, "val", second), 0.0)


def _shows_more(inputs: Inputs, split: str, second: Tensor) -> Tensor:
    """Whether a decision keeps anything beside the glance, [N] bool."""
    table = inputs.tables[split]
    return table.steps(torch.arange(len(table)), second)[:, :-1].any(-1)


def _sure(inputs: Inputs, split: str) -> Tensor:
    """The probability of the first answer's first token, [N]."""
    return inputs.tables[split].signals["question"][SURE][:, 0]


def _tells(inputs: Inputs) -> bool:
    """Whether the model tells how sure it is, and there is more to ask for."""
    return SURE in inputs.tables["val"].signals["question"] and inputs.pyramid.levels > 1


_style = partial(Style, panels=(), section=Section.PEERS)
METHODS.register("visionthink", Method(whole_picture, _style(RED, "--", "^", place=2)))
METHODS.register("adaptvision", Method(part, _style(GREEN, "-.", "v", place=3)))
