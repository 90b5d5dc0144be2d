"""Learning rules by name."""

from pyrskip.errors import choose
from pyrskip.training.actor_critic import ActorCriticModule
from pyrskip.training.exact import ExactModule
from pyrskip.training.gate import GateModule
from pyrskip.training.gumbel import GumbelModule
from pyrskip.training.reinforce import ReinforceModule
from pyrskip.training.supervised import SupervisedModule

RULES: dict[str, type[GateModule]] = {
    "supervised": SupervisedModule,
    "gumbel": GumbelModule,
    "reinforce": ReinforceModule,
    "actor_critic": ActorCriticModule,
    "exact": ExactModule,
}


def find_rule(name: str) -> type[GateModule]:
    if name not in RULES:
        raise choose("rule.name", name, RULES)
    return RULES[name]


def valid_pairs(online: bool) -> list[tuple[str, str]]:
    """Every rule with every policy that it can train, from a rollout table or asking the model."""
    return [
        (name, policy)
        for name, rule in RULES.items()
        for policy in rule.policies
        if not (online and policy in rule.offline_only)
    ]
