"""The gate where it is above fixed selections on held-out validation images, and the best of those
elsewhere."""

from collections.abc import Iterator
from dataclasses import replace

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.fixed import always
from pyrskip.evaluation.methods.gates import gate
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.safe import safe
from pyrskip.evaluation.style import BLUE, Section, Style
from pyrskip.inference.safe import Safe


def never_worse(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """A fixed selection runs no gate, and pays for none."""
    table, choices = inputs.tables[split], dict[int, Safe]()
    for of in gate("gate", inputs, split):
        assert of.seed is not None
        assert of.price is not None
        if of.seed not in choices:
            choices[of.seed] = safe(inputs, of.seed)
        fixed = choices[of.seed].at(of.price)
        yield (
            of if fixed is None else replace(always(table, table.column(fixed)), price=of.price, seed=of.seed)
        )


_look = Style(BLUE, ":", "P", panels=("gate",), section=Section.GATES, place=5, first=True)
METHODS.register("gate:safe", Method(never_worse, _look))
