"""Rollout tables on the terminal: what every decision scores and costs, and which level each type of question
needs."""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console

from pyrskip.evaluation.needs import Need
from pyrskip.report.tables import Column, Table, print_table
from pyrskip.rollouts.oracles import by_sample, by_type
from pyrskip.rollouts.table import OUTSIDE, RolloutTable

ORACLE_PRICES = (0.01, 0.1)
LOST, KEPT, BLIND = 0.20, 0.03, 0.05
"""A level matters to a type that loses LOST of accuracy without it. The glance is enough for one that loses
less than KEPT at it, and is LOST above its most frequent answer when it sees all. The question alone gives
nothing away where it is at most BLIND above the most frequent answer."""


def print_rollouts(tables: Mapping[str, RolloutTable], console: Console | None = None) -> None:
    """What every listed action, and what is outside of the set, scores and costs; and the best action by type
    and by sample.

    tables: 'gate', 'val' and 'test'. Sets of single tiles are counted, not listed. Oracles are of test, the
    one by type fitted on the gate's rollouts.
    """
    gate, test = tables["gate"], tables["test"]
    unit = gate.mean_full_flops
    lines: list[list[str | float | None]] = []
    for column, name in enumerate((*gate.actions.names, *OUTSIDE)):
        if "." not in name:
            scores = [100 * float(t.score[:, column].mean()) for t in tables.values()]
            lines.append([name, *scores, float(gate.cost.flops[:, column].mean()) / unit])
    rows = torch.arange(len(test))
    for price in ORACLE_PRICES:
        best = by_type(gate, price, unit)
        picks = {
            "oracle:type": torch.tensor([best.get(kind, test.actions.full) for kind in test.types]),
            "oracle:sample": by_sample(test, price, unit),
        }
        for name, action in picks.items():
            score = 100 * float(test.score[rows, action].mean())
            cost = float(test.cost.flops[rows, action].mean()) / unit
            lines.append([f"{name}, price {price:g}", *[None] * (len(tables) - 1), score, cost])
    columns = (
        Column("decision"),
        *(Column(f"{split} %", ".1f") for split in tables),
        Column("x full", ".3f"),
    )
    title = f"Rollouts with {gate.origin.get('model', 'a model')}"
    print_table(Table(title, columns, lines, "x full: FLOPs over the mean full pyramid's"), console)
    counts = (f"{split}: {len(t.image_keys)} images, {len(t)} questions" for split, t in tables.items())
    print(f"{len(gate.actions)} actions; {'; '.join(counts)}")


def print_needs(needs: Sequence[Need], console: Console | None = None) -> None:
    levels = list(needs[0].without)
    names = ("full", *(f"no level {level}" for level in levels), "glance", "question", "majority")
    columns = (Column("type"), Column("questions", "d"), *(Column(name, ".1f") for name in names))
    lines: list[list[str | float | None]] = [
        [
            *(n.type, n.questions),
            *(100 * v for v in (n.full, *n.without.values(), n.glance, n.question_only, n.majority)),
        ]
        for n in needs
    ]
    mean = 100 * sum(n.full for n in needs) / len(needs)
    lines.append(["mean over types", None, mean, *[None] * (len(names) - 1)])
    print_table(Table("What each type of question needs: accuracy, %", columns, lines), console)
    for line in verdicts(needs):
        print(line)


def verdicts(needs: Sequence[Need]) -> list[str]:
    """Which types need level 0, which only the glance, and which the question alone gives away."""
    lost = [n.type for n in needs if n.full - n.without[0] >= LOST]
    kept = [n.type for n in needs if n.full - n.glance < KEPT and n.full - n.majority >= LOST]
    given_away = [n.type for n in needs if n.question_only - n.majority > BLIND]
    return [
        f"types that lose at least {100 * LOST:.0f} points without level 0: {', '.join(lost) or 'none'}",
        f"types that lose less than {100 * KEPT:.0f} points at the glance alone: {', '.join(kept) or 'none'}",
        f"the question alone scores over {100 * BLIND:.0f} points more than the most frequent answer to: "
        f"{', '.join(given_away) or 'no type'}",
    ]
