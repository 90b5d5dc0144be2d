"""Pruners of visual tokens, as peers: of the full pyramid, and behind the gate's own decisions."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods.fixed import always
from pyrskip.evaluation.methods.gates import gate
from pyrskip.evaluation.methods.method import METHODS, Decisions, Method
from pyrskip.evaluation.style import GREEN, ORANGE, Section, Style
from pyrskip.pruners import PrunerConfig


def pruned(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """The full pyramid behind each pruner, a point a ratio."""
    for peer, tables in inputs.peers.items():
        table = tables[split]
        yield replace(always(table, table.actions.full, peer.name), peer=peer)


def gate_pruned(inputs: Inputs, split: str) -> Iterator[Decisions]:
    """What the gates decide, each pruner behind it at the first of its ratios."""
    first: dict[str, PrunerConfig] = {}
    for peer in inputs.peers:
        first.setdefault(peer.name, peer)
    for peer in first.values():
        for decided in gate("gate", inputs, split):
            yield replace(decided, variant=peer.name, peer=peer)


_style = partial(Style, kind="curve", panels=(), section=Section.PEERS)
METHODS.register("pruned", Method(pruned, _style(ORANGE, "-", "s"), variants=True))
METHODS.register("gate+pruned", Method(gate_pruned, _style(GREEN, "--", "s", place=1), variants=True))
