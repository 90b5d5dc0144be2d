"""Configuration: Hydra composes YAML from conf/, dataclasses say what is allowed.

A wrong key or value is refused before any work with one sentence: the key, its value, what is allowed.
"""

import json
import math
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyrskip.budget import BudgetRule
from pyrskip.data.datamodule import LoaderConfig
from pyrskip.data.shards import DataConfig
from pyrskip.decision import ActionConfig
from pyrskip.errors import UserError, unknown_key, unknown_name
from pyrskip.evaluation.evaluate import EvaluationConfig
from pyrskip.gates.gate import GATES, GateConfig
from pyrskip.models.language import LanguageConfig
from pyrskip.models.native import CostConfig, ModelConfig, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.models.vlm.served import AnswererConfig, check_served
from pyrskip.policies import POLICIES
from pyrskip.pruners import PRUNERS, InsidePruner, PrunerConfig, check_pruner, pruner_config
from pyrskip.pruners.visionselector import SelectorConfig
from pyrskip.registry import load_plugins
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.peers import PeersConfig
from pyrskip.signals import SIGNALS
from pyrskip.tracking.loggers import check_loggers
from pyrskip.training.flex import FlexConfig
from pyrskip.training.rules import RULES, RuleConfig, rule_config
from pyrskip.training.rules.supervised import SupervisedConfig
from pyrskip.training.trainer import TrainerConfig

STAGES = ("data", "cache", "flex", "pruner", "rollouts", "peers", "gate", "frontier")
"""Names of the stages, in order: `pyrskip.stages` has them."""


@dataclass(frozen=True)
class Config:
    """Everything a run is made from. `borrow` is the key `from`; seeds gates are trained, from `seed` on;
    plugins: modules that add to registries, imported before anything else is read."""

    name: str = "run"
    root: str = "runs"
    seed: int = 0
    seeds: int = 3
    stages: tuple[str, ...] = STAGES
    borrow: str | None = None
    ablations: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    model: AnswererConfig = field(default_factory=AnswererConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    budget: BudgetRule = field(default_factory=BudgetRule)
    actions: ActionConfig = field(default_factory=ActionConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig, metadata={"variant": pruner_config})
    flex: FlexConfig = field(default_factory=FlexConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    rule: RuleConfig = field(default_factory=SupervisedConfig, metadata={"variant": rule_config})
    reward: RewardConfig = field(default_factory=RewardConfig)
    peers: PeersConfig = field(default_factory=PeersConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise UserError(
                f"name={self.name!r} is no directory below {self.root}; allowed: letters, digits, - and _"
            )
        if self.seeds < 1 or self.seed < 0:
            raise UserError(f"seed={self.seed}, seeds={self.seeds}: allowed: at least 0 and at least 1")
        if not self.stages:
            raise UserError(f"stages=[] leaves nothing to run; allowed: one or more of {', '.join(STAGES)}")
        for stage in self.stages:
            if stage not in STAGES:
                raise unknown_name("stages", stage, STAGES)
        if self.data.cache is not None and not self.vision.frozen:
            raise UserError(
                f"data.cache={self.data.cache} with vision.frozen=false: maps would change; allowed: "
                "vision.frozen=true"
            )
        if self.data.cache is not None and self.model.served:
            raise UserError(
                f"data.cache={self.data.cache} with model.name={self.model.name}, which answers from pixels; "
                "allowed: data.cache=null"
            )
        if self.vision.components is not None and self.model.served:
            raise UserError(
                f"vision.components={self.vision.components} with model.name={self.model.name}, for which "
                "nothing is fitted; allowed: null"
            )
        if self.pyramid.levels < 2:
            raise UserError(
                f"pyramid.levels={self.pyramid.levels} leaves a gate nothing to skip; allowed: at least 2"
            )
        # a gate that reads all that the run's own does is no ablation of it
        ablations = [
            name
            for name, gate in GATES.items()
            if set(gate.needs) < {"query", "glance"} or name != self.gate.name or self.gate.signals
        ]
        if not set(self.ablations) <= set(ablations) or len(set(self.ablations)) < len(self.ablations):
            raise UserError(f"ablations={list(self.ablations)}: allowed: each once, {', '.join(ablations)}")
        layers = None if self.model.served else self.language.layers
        for pruner in (self.pruner, *self.peers.configs()):
            check_pruner(pruner, self.model.name, self.model.prunable, layers)
            if self.model.served and isinstance(pruner, SelectorConfig):
                raise UserError(
                    f"pruner.name={pruner.name} learns through the native model, and model.name="
                    f"{self.model.name} is none; allowed: another pruner"
                )
        if self.peers.pruners and self.pruner != PrunerConfig():
            raise UserError(
                f"peers.pruners={list(self.peers.pruners)} with pruner.name={self.pruner.name}: peers are "
                "held against a run that prunes nothing; allowed: pruner=none, or peers.pruners=[]"
            )
        if self.peers.pruners and self.actions.drawn:
            raise UserError(
                f"peers.pruners={list(self.peers.pruners)} with actions.drawn={self.actions.drawn}: rollouts "
                "behind a pruner hold listed decisions alone; allowed: actions.drawn=0, or peers.pruners=[]"
            )
        if self.rule.online and issubclass(PRUNERS.get(self.pruner.name, object), InsidePruner):
            raise UserError(
                f"rule.online=true with pruner.name={self.pruner.name}, which prunes between layers, where "
                "tokens cannot be weighed by gates; allowed: rule.online=false"
            )
        RULES[self.rule.name].check(self.rule, self.gate, self.reward)
        listless = self.rule.online and RULES[self.rule.name].listless
        grid, policy = self.pyramid.whole_grid, POLICIES[self.gate.policy]
        policy.check(self.gate, self.actions, self.budget, grid, listless)
        for name in self.gate.signals:
            if SIGNALS[name].source not in self.model.sources:
                raise UserError(
                    f"gate.signals={list(self.gate.signals)} with model.name={self.model.name}, which does "
                    f"not show {SIGNALS[name].source}, from which {name} is computed; allowed: "
                    f"{', '.join(n for n in SIGNALS if SIGNALS[n].source in self.model.sources)}"
                )
        # what is decided on single tiles the frontier asks the model about
        replayed = "frontier" in self.stages and not policy.per_tile
        if self.gate.looks and (replayed or not self.rule.online or self.reward.mode == "target"):
            frontier = "" if policy.per_tile else "stages without frontier, "
            raise UserError(
                "gate.looks=true decides on features of what it has kept, and rollout tables hold none; "
                f"allowed: rule.online=true, {frontier}and reward.target=null"
            )
        if self.reward.mode == "sampled" and POLICIES[self.gate.policy].dial:
            low, high = self.reward.low, self.reward.high
            for price in self.evaluation.prices:
                if not low <= price <= high:
                    raise UserError(
                        f"evaluation.prices={price} is outside of what the gate is trained on; allowed: "
                        f"{low} to {high} (reward.low, reward.high)"
                    )

    def check_served(self) -> None:
        """Refuse what cannot be done with a model that shows nothing of its inside, without loading it."""
        name = f"model.name={self.model.name}"
        if self.pyramid.halo:
            raise UserError(
                f"pyramid.halo={self.pyramid.halo} with {name}, to which a tile is a picture of its own; "
                "allowed: 0"
            )
        check_served(self.model, self.vision, self.text)
        if self.rule.online:
            raise UserError(
                f"rule.online=true differentiates the model, and {name} shows nothing of its inside; "
                "allowed: false"
            )
        if not self.model.probable and self.rule.target == "probability":
            raise UserError(
                f"rule.target=probability is not given by {name}; allowed: rule.target=score, or "
                "model.remote.probability=true where the server has prompt_logprobs"
            )
        if not self.model.probable and getattr(self.rule, "shaping", False):
            raise UserError(
                f"rule.shaping=true needs probabilities, which {name} does not give; allowed: false"
            )
        if self.budget != BudgetRule():
            raise UserError(
                f"budget.total, floor, cap, weights, rungs: {name} gives a tile its own number of tokens; "
                "allowed: budget=full"
            )

    @property
    def native(self) -> ModelConfig:
        return ModelConfig(self.pyramid, self.vision, self.text, self.language, self.cost)

    @property
    def directory(self) -> Path:
        return Path(self.root) / self.name


def read(cfg: DictConfig) -> tuple[Config, dict[str, Any]]:
    """A composed Hydra config -> the checked Config, and the nodes that loggers are made from.

    Raises UserError for a key that does not exist, a value of the wrong type or out of range.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    assert not plain.pop("lent", False), "pyrskip.stages.lending.lend comes first"
    load_plugins(plain.get("plugins") or ())
    nodes = plain.pop("logger", None) or {}
    check_loggers(nodes)
    given, saved = plain.pop("from", None), plain.pop("borrow", None)  # a saved config.json has the latter
    plain["borrow"] = saved if given is None else given
    gate, rule = plain.get("gate"), plain.get("rule")
    if isinstance(gate, dict) and isinstance(rule, dict) and gate.get("policy") == "auto":
        gate["policy"] = RULES[rule.get("name", "supervised")].default_policy
    model = plain.get("model")
    if isinstance(model, dict) and isinstance(rule, dict) and rule.get("target") == "auto":
        asked = (model.get("remote") or {}).get("probability")
        rule["target"] = "score" if model.get("name") == "remote" and not asked else "probability"
    return _build(Config, plain, ""), nodes


def read_saved(place: str, key: str) -> dict[str, Any]:
    """The config.json of the run in `place`, which `key` names. Raises UserError where there is none."""
    try:
        saved: dict[str, Any] = json.loads((Path(place) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={place} is no run: it holds no config.json; allowed: a run's directory"
        ) from error
    return saved


def _build(cls: Any, values: Any, path: str) -> Any:
    """A dataclass from plain values, checked key by key."""
    known = {f.name: f for f in fields(cls)}
    if not isinstance(values, dict):
        raise UserError(
            f"{path.rstrip('.')}={values!r} is no group of keys; allowed: {', '.join(sorted(known))}"
        )
    nested: dict[str, Any] = {
        name: f.default_factory for name, f in known.items() if isinstance(f.default_factory, type)
    }
    for name, f in known.items():
        if "variant" in f.metadata and isinstance(values.get(name), dict):
            nested[name] = f.metadata["variant"](values[name].get("name", nested[name].name))
    arguments: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            shown = ({"borrow": "from"}.get(name, name) for name in known)
            raise unknown_key(f"{path}{key}", shown, values.get("name"))
        factory = nested.get(key)
        if factory is not None and hasattr(factory, "__dataclass_fields__"):
            arguments[key] = _build(factory, value, f"{path}{key}.")
        else:
            flat[key] = value
    schema = OmegaConf.structured(_flat_schema(cls, flat))
    try:
        checked = OmegaConf.to_container(OmegaConf.merge(schema, {k: _listed(v) for k, v in flat.items()}))
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "key", None) or next(iter(flat))
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}{key}={flat.get(key)!r} is not allowed: {reason}; wanted: {known[key].type}"
        ) from error
    assert isinstance(checked, dict)
    for key, value in checked.items():
        if not _finite(value):
            raise UserError(f"{path}{key!s}={value} is not allowed; allowed: finite numbers")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in checked.items()}
    return cls(**arguments, **{str(k): v for k, v in tuples.items()})


def _flat_schema(cls: Any, flat: dict[str, Any]) -> Any:
    """OmegaConf knows no `tuple[x, ...]`: a schema of the same fields with lists instead."""
    hints = get_type_hints(cls)

    def listed(hint: Any) -> Any:
        if get_origin(hint) is tuple:
            return list[get_args(hint)[0]]  # type: ignore[misc]
        if type(None) in get_args(hint):
            inner = next(a for a in get_args(hint) if a is not type(None))
            return listed(inner) | None
        return Any if get_origin(hint) is dict else hint

    return make_dataclass(cls.__name__, [(name, listed(hints[name])) for name in flat])


def _finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def to_plain(config: Any) -> Any:
    """Dataclasses -> plain dicts, lists and scalars, for JSON."""
    if hasattr(config, "__dataclass_fields__"):
        return {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, dict):
        return {k: to_plain(v) for k, v in config.items()}
    return [to_plain(v) for v in config] if isinstance(config, list | tuple) else config
