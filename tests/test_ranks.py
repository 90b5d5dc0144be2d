"""Claims about several ranks: two with a batch each learn what one learns from both batches.

Noise belongs to a rank and a step, so here it is made to belong to a row: what is left is how ranks are
joined.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrskip.data.datamodule import StepData
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.vision import VisionConfig
from pyrskip.reward import RewardConfig
from pyrskip.sample import Batch
from pyrskip.training.best import KEPT, Best
from pyrskip.training.flex import FlexConfig, FlexModule
from pyrskip.training.module import OptimizerConfig, StepModule
from pyrskip.training.trainer import (
    CHECKPOINT,
    TrainerConfig,
    build_trainer,
    fit,
    rank_failures_as_user_errors,
)
from tests.models import BACKBONE, tiny_batch, tiny_model
from tests.ranks import on_two_ranks
from tests.toys import PAIRS, fit_until, online_module, toy_environment, toy_module

STEPS = 3
ROWS = 24
BF16 = 0.02
SAMPLED, TARGET = RewardConfig(), RewardConfig(target=0.4)
Found = dict[str, Any]


class Noise:
    """Draws for the rows of all ranks, of which a rank takes its own: rows `first` to first + n of
    `total`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.first = self.total = self.draws = 0
        rand = torch.rand
        patch.setattr(
            torch,
            "rand",
            lambda *size, **given: rand(*size, **given) if "generator" in given else self.draw(size),
        )
        patch.setattr(torch, "rand_like", lambda like: self.draw(like.shape))
        patch.setattr(torch, "multinomial", self.choose)
        patch.setattr(Tensor, "exponential_", lambda like: like.copy_(-self.draw(like.shape).log()))

    def draw(self, shape: Sequence[int]) -> Tensor:
        self.draws += 1
        every = torch.empty(self.total, *shape[1:]).uniform_(
            1e-6, 1, generator=torch.Generator().manual_seed(self.draws)
        )
        return every[self.first : self.first + shape[0]]

    def choose(self, probs: Tensor, samples: int, replacement: bool = False) -> Tensor:
        return (
            (probs.cumsum(-1) < self.draw((len(probs), 1)))
            .sum(-1, keepdim=True)
            .clamp(max=probs.shape[-1] - 1)
        )


class Notes(pl.Callback):
    """Gradients of each step, and at the end all that was learnt and logged."""

    def __init__(self) -> None:
        self.found: Found = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any
    ) -> None:
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        self.found |= {f"{trainer.global_step} {name}": gradient for name, gradient in gradients.items()}

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.found |= {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
        self.found |= {f"logged {name}": value.clone() for name, value in trainer.callback_metrics.items()}


class Rows(Dataset[Any]):
    """The whole steps' batches, or a rank's halves of them."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def train(
    module: StepModule, batches: Sequence[Any], noise: Noise, patch: pytest.MonkeyPatch, **options: Any
) -> Found:
    """Steps of plain gradient descent, under which near gradients stay near."""
    notes = Notes()
    patch.setattr(module, "configure_optimizers", lambda: torch.optim.SGD(module.parameters(), lr=0.1))
    config = TrainerConfig(log_every=1, quiet=True, **options)
    trainer = build_trainer(config, Path("/nowhere"), callbacks=[notes])
    trainer.fit(module, DataLoader(Rows(batches), batch_size=None))
    return notes.found


def world(rank: int | None) -> dict[str, Found]:
    """What every kind of training finds on a rank, or with no ranks on the whole batch."""
    found: dict[str, Found] = {}
    for name, module, batches, counts, options in trainings(rank):
        with pytest.MonkeyPatch.context() as patch:
            noise = Noise(patch)
            noise.first, noise.total = sum(counts[: rank or 0]), sum(counts)
            found[name] = train(module, batches, noise, patch, devices=1 if rank is None else 2, **options)
    return found


def trainings(rank: int | None) -> Iterator[tuple[str, StepModule, Sequence[Any], list[int], dict[str, Any]]]:
    """Name, module, the steps' batches, how many rows each rank's have, and of the Trainer what is not as
    always."""
    own = slice(0, 2 * ROWS) if rank is None else slice(rank * ROWS, (rank + 1) * ROWS)
    rows = [torch.arange(200)[3 * step :: 4][: 2 * ROWS][own] for step in range(STEPS)]
    steps = OptimizerConfig(steps=STEPS)
    once = {
        "actor_critic": {"samples": 1}
    }  # noise is dealt out to ranks by rows, which several episodes repeat
    plain: list[Any] = [(rule, policy, "joint", SAMPLED, once.get(rule, {})) for rule, policy in PAIRS]
    more: list[Any] = [("exact", "categorical", name, SAMPLED, {}) for name in ("predictor", "glance")]
    for baseline in ("none", "running_mean", "self_critical", "group_deviation"):
        more.append(("reinforce", "bernoulli", "joint", TARGET, {"baseline": baseline}))
    more.append(("actor_critic", "sequential", "joint", TARGET, {"clip": 0.2, "epochs": 2, "samples": 1}))
    for rule, policy, gate, reward, options in plain + more:
        module = toy_module(rule, policy, reward, STEPS, gate, **options)
        yield f"{rule} {policy} {gate} {reward.mode} {options}", module, rows, [ROWS, ROWS], {}
    # images have as many questions as they have: ranks differ in rows
    parts = [tiny_batch((1, 1, 2, 1, 1), seed=0), tiny_batch((3, 2, 3, 1, 2), seed=1)]
    batch = joined(parts) if rank is None else parts[rank]
    counts = [len(part) for part in parts]
    yield "gumbel online", online_module("gumbel", "bernoulli", (1,)), [batch] * STEPS, counts, {}
    yield "supervised online", online_module("supervised", "utility", (1,)), [batch] * STEPS, counts, {}
    trained = VisionConfig(BACKBONE.backbone, out_index=2, weights="none", frozen=False)
    for name, vision, given in (
        ("frozen", BACKBONE, {}),
        ("trained", trained, {}),
        ("accumulated", BACKBONE, {"accumulate": STEPS}),
        ("bf16", BACKBONE, {"precision": "bf16-mixed"}),
    ):
        model = tiny_model(vision=vision).train()
        flex = FlexModule(
            FlexConfig(optimizer=steps, blind_share=0.0), model, ActionSet.by_level(model.pyramid)
        )
        yield f"flex {name}", flex, [batch] * STEPS, counts, given


@pytest.mark.slow
@pytest.mark.parametrize(("end", "said"), [("dies", "gone"), ("sleeps", "silent for trainer.timeout=15 s")])
def test_no_rank_waits_for_one_that_dies_or_sleeps(end: str, said: str, tmp_path: Path) -> None:
    config = TrainerConfig(devices=2, timeout=15, checkpoint_every=1, quiet=True)

    def work(rank: int) -> str:
        module = toy_module("exact", "categorical", SAMPLED, STEPS)
        step = module.training_step

        def stop(rows: Any, batch_idx: int) -> Tensor:
            if rank == 1 and batch_idx == STEPS - 1:
                while end == "sleeps" and not (tmp_path / "said").exists():
                    time.sleep(0.1)
                os._exit(0)
            return step(rows, batch_idx)

        module.training_step = stop  # type: ignore[method-assign]
        with pytest.raises(UserError) as caught, rank_failures_as_user_errors(config):
            fit(
                build_trainer(config, tmp_path),
                module,
                StepData(Rows(list(range(200))), torch.tensor, 4, STEPS),
                tmp_path,
            )
        (tmp_path / "said").touch()
        torch.save(None, tmp_path / "rank-1.pt")
        return str(caught.value)

    assert said in on_two_ranks(work, tmp_path)[0]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["global_step"] == STEPS - 1


@pytest.mark.slow
def test_ranks_that_are_killed_amid_a_cycle_go_on_with_their_own_episodes(tmp_path: Path) -> None:
    """Two steps on the same episodes, killed between them: the ranks' rows, so their episodes, differ."""

    def train(name: str, until: int) -> Any:
        module = toy_module("actor_critic", "sequential", SAMPLED, 6, clip=0.2, epochs=2)
        data = StepData(Rows(list(range(200))), torch.tensor, 4, 6)
        config = TrainerConfig(devices=2, checkpoint_every=1, quiet=True)
        fit_until(module, data, tmp_path / name, until, config)
        return module

    def work(rank: int) -> dict[str, Found]:
        train("killed", 3)
        modules = {"whole": train("whole", 6), "killed": train("killed", 6)}
        return {name: {**m.state_dict(), "rows": m.memory["rows"]} for name, m in modules.items()}

    ranks = on_two_ranks(work, tmp_path)
    for found in ranks:
        assert len(found["whole"]) > 10
        assert all(found["killed"][name].equal(value) for name, value in found["whole"].items())
    assert not ranks[0]["whole"]["rows"].equal(ranks[1]["whole"]["rows"])


@pytest.mark.slow
def test_ranks_stop_together_at_what_the_first_one_measures(tmp_path: Path) -> None:
    rewards = [1, 2, 5, 3, 4, 5, 9, 9]

    def train(rank: int, name: str, until: int) -> Found:
        module, steps = toy_module("reinforce", "bernoulli", SAMPLED, 8), []
        best = Best(toy_environment(), 8, 3, tmp_path / name / KEPT)

        def reward(of: Any) -> float:
            steps.append(of.trainer.global_step)
            assert rank == 0
            return float(rewards[steps[-1] - 1])

        best.reward = reward  # type: ignore[method-assign]
        data = StepData(Rows(list(range(200))), torch.tensor, 4, 8)
        config = TrainerConfig(devices=2, checkpoint_every=1, quiet=True)
        fit_until(module, data, tmp_path / name, until, config, best)
        return {**module.state_dict(), "kept": best.state["step"], "steps": best.state["steps"]}

    def work(rank: int) -> dict[str, Found]:
        train(rank, "killed", 4)
        return {name: train(rank, name, 8) for name in ("whole", "killed")}

    for found in on_two_ranks(work, tmp_path):
        assert found["whole"]["kept"] == 3 and found["whole"]["steps"] == 6
        assert all(
            torch.as_tensor(found["killed"][n]).equal(torch.as_tensor(v)) for n, v in found["whole"].items()
        )


@pytest.mark.slow
def test_what_forked_ranks_refuse_is_one_sentence(tmp_path: Path) -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> Any:
            raise UserError("too much is broken")

    config = TrainerConfig(devices=2, strategy="ddp_fork", quiet=True)
    data, module = (
        StepData(Broken([0] * 200), torch.tensor, 4, STEPS),
        toy_module("exact", "categorical", SAMPLED, STEPS),
    )
    with pytest.raises(UserError, match="^too much is broken$"), rank_failures_as_user_errors(config):
        fit(build_trainer(config, tmp_path), module, data, tmp_path)


def joined(parts: Sequence[Batch]) -> Batch:
    """One batch of all images and their questions."""
    starts = [sum(len(part.image) for part in parts[:i]) for i in range(len(parts))]
    return Batch(
        torch.cat([part.image for part in parts]),
        torch.cat([part.size for part in parts]),
        torch.cat([part.image_of + start for part, start in zip(parts, starts, strict=True)]),
        tuple(q for part in parts for q in part.questions),
        tuple(key for part in parts for key in part.keys),
        tuple(key for part in parts for key in part.image_keys),
    )


@pytest.mark.slow
def test_two_ranks_learn_from_two_batches_what_one_rank_learns_from_both(tmp_path: Path) -> None:
    """Every rule, policy and gate, online and off, flex with a frozen and a trained encoder, accumulation,
    bfloat16: gradients of three steps, baselines and multipliers, metrics."""
    ranks = on_two_ranks(world, tmp_path)
    alone = world(None)
    assert len(alone) == len(PAIRS) + 13
    for name, found in alone.items():
        for rank in (0, 1):
            assert ranks[rank][name].keys() == found.keys(), name
            for key, wanted in found.items():
                if "explained_variance" in key:  # of each rank's own episodes
                    continue
                got, near = ranks[rank][name][key], BF16 if "bf16" in name else 1e-5
                assert torch.allclose(got, wanted, rtol=near, atol=near, equal_nan=True), (
                    name,
                    rank,
                    key,
                    got,
                    wanted,
                )
