"""Hydra's config groups for what is registered and has no YAML: `rule=<name>` works for a rule of a plug-in
too, `data=<name>` for a format or a source."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from pyrskip.data.convert import FORMATS
from pyrskip.data.sources import SOURCES
from pyrskip.gates.gate import GATES
from pyrskip.pruners import PRUNERS
from pyrskip.registry import Registry
from pyrskip.training.rules import RULES, valid_pairs

GROUPS: Mapping[str, Registry[Any]] = {"data": FORMATS, "gate": GATES, "pruner": PRUNERS, "rule": RULES}
"""Groups whose options are registered, with the registries that plug-ins add to."""


def store_groups(conf: Path) -> None:
    """Store a config for every registered entry that has none in `conf`, and one for every rule with each of
    its policies: pair=<rule>-<policy>."""
    sources = {name: {"defaults": ["_options", "_self_"], "source": name} for name in SOURCES}
    formats = {name: {"defaults": ["_files", "_self_"], "source": name} for name in FORMATS}
    groups: dict[str, Mapping[str, Any]] = {
        "data": sources | formats,
        "rule": {name: asdict(rule.config_class()) for name, rule in RULES.items()},  # type: ignore[call-arg]
        "gate": {name: {"defaults": ["_options", "_self_"], "name": name} for name in GATES},
        "pruner": {name: asdict(of.config_class(name, 0.5)) for name, of in PRUNERS.items()},
    }
    store = ConfigStore.instance()
    for group, entries in groups.items():
        for name, node in entries.items():
            if not (conf / group / f"{name}.yaml").exists():
                store.store(name=name, node=node, group=group)
    for rule, policy in valid_pairs(online=False):
        node = {"defaults": [{"override /rule": rule}], "gate": {"policy": policy}}
        store.store(name=f"{rule}-{policy}", node=node, group="pair", package="_global_")
