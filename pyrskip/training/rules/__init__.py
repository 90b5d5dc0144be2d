"""Learning rules by name: one file each, with its own config, found by themselves."""

from pyrskip.registry import import_modules
from pyrskip.training.gate import RULES, GateModule, RuleConfig

import_modules(__name__)

__all__ = ["RULES", "GateModule", "RuleConfig", "rule_config", "valid_pairs"]


def rule_config(name: str) -> type[RuleConfig]:
    """The config of a rule."""
    return RULES[name].config_class


def valid_pairs(online: bool) -> list[tuple[str, str]]:
    """Every rule with every policy that it can train, from a rollout table or asking the model."""
    return [(name, policy) for name, rule in RULES.items() for policy in rule.policies(online)]
