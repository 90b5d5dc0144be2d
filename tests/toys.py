"""A world of two kinds of question, one answerable at the glance and one from the full pyramid alone, to
learn in."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.data.datamodule import StepData
from pyrskip.decision import ActionSet, blind, reference
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.training.gate import GateModule, RewardConfigured
from pyrskip.training.module import OptimizerConfig, StepModule
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit
from tests.models import tiny_batch, tiny_model

PYRAMID = Pyramid(64, 3, 8)
KINDS = {"easy": torch.zeros(3, dtype=torch.bool), "hard": torch.ones(3, dtype=torch.bool)}
IMAGES = 100
# tiles that show something on their own are no model of a question that needs every level at once
PAIRS = [pair for pair in valid_pairs(online=False) if pair[0] != "evidence"]
# of those over tiles that share most with bernoulli each pair but one is a slow test
SLOW = [
    (rule, policy)
    for rule, policy in PAIRS
    if policy in ("quadtree", "topk")
    and (rule, policy) not in (("gumbel", "quadtree"), ("reinforce", "topk"))
]
pairs = pytest.mark.parametrize(
    ("rule", "policy"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair in SLOW else []) for pair in PAIRS],
)


def toy_table(
    pyramid: Pyramid = PYRAMID, actions: ActionSet | None = None, kinds: Mapping[str, Tensor] = KINDS
) -> RolloutTable:
    """A question of each kind on every image, right where the tiles [T] bool that it needs are kept."""
    generator = torch.Generator().manual_seed(0)
    actions = actions or ActionSet.by_level(pyramid)
    selection = torch.cat([actions.selection, reference(pyramid)[None], blind(pyramid)[None]])
    kind = torch.arange(len(kinds)).repeat(IMAGES)
    right = torch.stack([(selection >= needs).all(-1).float() for needs in kinds.values()])
    capacity = pyramid.capacity(torch.tensor([[64, 64]])).double()
    tokens = (selection.double() @ capacity[0]).expand(len(kind), -1)
    words = torch.randint(1, 5, (len(kind), 1), generator=generator)
    return RolloutTable(
        actions=actions,
        score=right[kind],
        probability=right[kind],
        cost=Cost(tokens, 1000 * (tokens + 0.1 * words), 64 * tokens),
        similarity=torch.zeros(len(kind), pyramid.tiles),
        image_of=torch.arange(IMAGES).repeat_interleave(len(kinds)),
        query_of=kind,
        signals={
            "question": {},
            "text": {
                "query": torch.randn(len(kinds), 3, 8, generator=generator),
                "query_mask": torch.ones(len(kinds), 3, dtype=torch.bool),
            },
            "image": {
                "glance": torch.randn(IMAGES, 5, 2, 2, generator=generator),
                "glance_mask": torch.ones(IMAGES, 2, 2, dtype=torch.bool),
            },
        },
        size=torch.full((IMAGES, 2), 64),
        types=tuple(kinds) * IMAGES,
        keys=tuple(f"image-{i}/{k}" for i in range(IMAGES) for k in range(len(kinds))),
        texts=tuple(f"{name}?" for name in kinds),
        image_keys=tuple(f"image-{i}" for i in range(IMAGES)),
        split="gate",
    )


def toy_environment(pyramid: Pyramid = PYRAMID, **table: Any) -> TableEnvironment:
    made = toy_table(pyramid, **table)
    return TableEnvironment(made, pyramid, BudgetRule(), made.mean_full_flops)


def toy_module(
    rule: str,
    policy: str,
    reward: RewardConfig,
    steps: int = 250,
    name: str = "joint",
    seed: int = 0,
    environment: TableEnvironment | None = None,
    **config: Any,
) -> GateModule:
    environment = environment or toy_environment()
    torch.manual_seed(seed)
    gate = build_gate(GateConfig(name=name, policy=policy, width=16), environment.layout)
    optimizer = OptimizerConfig(steps=steps, lr=3e-3, warmup=10)
    return RULES[rule](rule_config(rule)(optimizer=optimizer, **config), gate, environment, reward, seed)


def batches(module: GateModule) -> list[Tensor]:
    assert isinstance(module.environment, TableEnvironment)
    questions, generator = len(module.environment.table), torch.Generator().manual_seed(module.seed)
    return list(torch.randint(questions, (module.optimizer_config.steps, 64), generator=generator))


def train_by_lightning(module: GateModule) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches(module), batch_size=None))  # type: ignore[arg-type]
    return {name: float(v) for name, v in trainer.callback_metrics.items()}


def random_gate(module: GateModule) -> Gate:
    torch.manual_seed(1)
    torch.nn.init.normal_(module.gate.head.weight)
    if module.gate.kind.episodic:
        torch.nn.init.normal_(module.gate.head.get_submodule("steps.out").weight)
    return module.gate


def online_module(rule: str, policy: str, grid: tuple[int, ...]) -> GateModule:
    model, batch = tiny_model(grid), tiny_batch()
    size, capacity = batch.size[batch.image_of], model.pyramid.capacity(batch.size)[batch.image_of]
    unit = float(model.cost(capacity, size, model.prompt_tokens(batch)).flops.mean())
    config = GateConfig(name="joint", policy=policy, width=16)
    actions = ActionSet.by_level(model.pyramid)
    environment = ModelEnvironment(model, actions, BudgetRule(), unit, config.needs)
    gate = build_gate(config, environment.layout)
    torch.nn.init.normal_(gate.head.weight, std=0.1)
    rewarded = issubclass(rule_config(rule), RewardConfigured)
    entropy = {"entropy": 0.0, "entropy_end": None} if rewarded else {}
    return RULES[rule](
        rule_config(rule)(online=True, target="probability", **entropy),
        gate,
        environment,
        RewardConfig(0.3),
        0,
    )


def fit_until(
    module: StepModule,
    data: StepData,
    directory: Path,
    until: int,
    config: TrainerConfig,
    *callbacks: pl.Callback,
) -> dict[str, Tensor]:
    """Train in a directory, from its last checkpoint if there is one; what kills it kills it at step
    `until`."""
    step = module.training_step

    def dies(batch: Any, batch_idx: int) -> Any:
        if batch_idx == until:
            raise InterruptedError
        return step(batch, batch_idx)

    module.training_step = dies
    with suppress(InterruptedError):
        fit(build_trainer(config, directory, callbacks=callbacks), module, data, directory)
    return module.state_dict()
