"""Learning rules by name."""

from pyrskip.errors import choose
from pyrskip.training.gate import GateModule
from pyrskip.training.gumbel import GumbelModule
from pyrskip.training.supervised import SupervisedModule

RULES: dict[str, type[GateModule]] = {"supervised": SupervisedModule, "gumbel": GumbelModule}


def find_rule(name: str) -> type[GateModule]:
    if name not in RULES:
        raise choose("rule.name", name, RULES)
    return RULES[name]
