"""The trained gates, and what tells whether they decide by the question: their own decisions dealt out to
other questions, and decisions for other questions."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Section, Style
from pyrskip.rollouts.table import RolloutTable

PERMUTATIONS = 20


def gate(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """What the gates of this name decide, a point a seed and price; none where none was trained."""
    for seed in inputs.seeds if name in inputs.gates else ():
        for price, action in zip(
            inputs.prices_of(name, seed), inputs.decided(name, seed, split), strict=True
        ):
            yield Decisions(action, price=price, seed=seed, gate=name)


def ablations(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """What gates from outside the package decide that were trained beside the run's own."""
    for name in inputs.gates:
        family, _, variant = name.partition(":")
        if family == "ablation":
            yield from (replace(of, variant=variant) for of in gate(name, inputs, split))


def random(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The mean over permutations of the gate's own decisions dealt out to other questions, at exactly what
    they cost where the gate took them; one permutation, at what it costs, where decisions are not listed."""
    table = inputs.tables[split]
    yield from _unlisted("random", inputs, split)
    if _is_unlisted(inputs, split):
        return
    for seed in inputs.seeds if "gate" in inputs.gates else ():
        orders = _orders(seed, len(table))
        for price, action in zip(
            inputs.prices_of("gate", seed), inputs.decided("gate", seed, split), strict=True
        ):
            dealt = torch.stack([action[order] for order in islice(orders, PERMUTATIONS)])
            yield replace(_at_cost_of(action, dealt, table), price=price, seed=seed, gate="gate")


def _at_cost_of(action: Tensor, dealt: Tensor, table: RolloutTable) -> Decisions:
    """A mix that costs as many FLOPs as action [N]: of dealt [K, N] and, as decisions cost more or less with
    another question, as little of each question's cheapest or dearest action as makes up for that."""
    flops = table.cost.flops[:, : len(table.actions)]
    even = torch.full((len(dealt),), 1 / len(dealt), dtype=torch.float64)
    own, others = (float(of.mean(flops).mean()) for of in (Decisions(action), Decisions(dealt, even)))
    end = flops.argmin(-1) if others > own else flops.argmax(-1)
    room = others - float(Decisions(end).mean(flops).mean())
    part = torch.tensor([min(1.0, (others - own) / room) if room else 0.0], dtype=torch.float64)
    return Decisions(torch.cat([dealt, end[None]]), torch.cat([even * (1 - part), part]))


def shuffled_query(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The gate decides for another sample's question and how sure the model is there; what is paid and
    answered stays the sample's own."""
    table = inputs.tables[split]
    yield from _unlisted("gate:shuffled_query", inputs, split)
    if _is_unlisted(inputs, split):
        return
    for seed in inputs.seeds if "gate" in inputs.gates else ():
        prices = inputs.prices_of("gate", seed)
        order = next(islice(_orders(seed, len(table)), PERMUTATIONS * len(prices), None))
        own = {name: value[order] for name, value in table.signals["question"].items()}
        signals = {**table.signals, "question": own}
        others = replace(table, query_of=table.query_of[order], signals=signals)
        for price, action in zip(prices, inputs.decide("gate", seed, others), strict=True):
            yield Decisions(action, price=price, seed=seed, gate="gate")


def random_tiles(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """As many tiles of each level as the gate keeps for the question, anywhere; none where a level is a
    tile."""
    yield from _unlisted("random:tiles", inputs, split)


def _is_unlisted(inputs: Inputs, split: str) -> bool:
    """Whether the gate's decisions are not listed, so that the model itself was asked."""
    return any(("gate", seed, split) in inputs.unlisted for seed in inputs.seeds)


def _unlisted(name: str, inputs: Inputs, split: str) -> Iterator[Decisions]:
    """Unlisted decisions of a method, a point a seed and price."""
    for seed in inputs.seeds:
        columns = inputs.unlisted.get((name, seed, split), ())
        prices = inputs.prices_of("gate", seed) if len(columns) else ()
        for price, column in zip(prices, columns, strict=True):
            yield Decisions(column, price=price, seed=seed, gate="gate")


def _orders(seed: int, questions: int) -> Iterator[Tensor]:
    """A seed's permutations of the questions, one after another: `random` takes PERMUTATIONS a price,
    `gate:shuffled_query` the one behind those."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(questions, generator=generator)


_style = partial(Style, section=Section.GATES)
_own = _style(BLUE, "-", "o", panels=("gate", "explained"), place=4, first=True, band=True, by_type=True)
METHODS.register("gate", Method(partial(gate, "gate"), _own, candidate=True))
for _name, _look in {
    "gate:joint": _style(BLUE, "--", "x", place=3, first=True),
    "gate:query_only": _style(ORANGE, "-", "s", place=2, first=True),
    "gate:glance_only": _style(GREEN, "-", "^", place=1, first=True),
}.items():
    METHODS.register(_name, Method(partial(gate, _name), _look, candidate=True))
_other = _style(SKY, "-", "D", first=True)
METHODS.register("ablation", Method(ablations, _other, candidate=True, variants=True))
METHODS.register("random", Method(random, Style(GREY, "-", ".", section=Section.RANDOM, place=1, first=True)))
_anywhere = Style(GREY, "--", "+", section=Section.RANDOM, place=2)
METHODS.register("random:tiles", Method(random_tiles, _anywhere))
METHODS.register("gate:shuffled_query", Method(shuffled_query, _style(PURPLE, ":", "v")))
