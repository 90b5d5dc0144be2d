"""Stage flex: train the model under random selections and stochastic budgets, so that any decision works
afterwards.

Axes: B questions, T tiles.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from pyrskip.budget import StochasticBudget, scale
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.block import Block
from pyrskip.models.native import NativeModel
from pyrskip.proposals import propose
from pyrskip.sample import Batch
from pyrskip.training.module import OptimizerConfig, StepModule, step_seed


@dataclass(frozen=True)
class FlexConfig:
    """budget: a stochastic budget (tokenflex, uniform, sandwich, fixed). Shares of steps: full_share keep
    everything, reference_share level 0 alone, glance_share the glance alone, region_share a few tiles, as a
    region gate chooses them; the rest a random selection, of random tiles half of the time where levels have
    several. blind_share: of questions, asked without any
    image. dropout: of the encoder's features, whitened: it keeps a model that has few images from knowing
    them by heart.

    close_share: of the steps, the first ones, on close-ups alone and with everything kept. To find things by
    their names is learned many times faster, and more cheaply, among the few tokens of a close-up than among
    a thousand; then it carries over.
    """

    budget: str = "tokenflex"
    full_share: float = 0.3
    reference_share: float = 0.1
    glance_share: float = 0.0
    region_share: float = 0.0
    blind_share: float = 0.05
    close_share: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        shares = (self.full_share, self.reference_share, self.glance_share, self.region_share)
        if min(*shares, self.blind_share) < 0 or sum(shares) > 1 or self.blind_share >= 1:
            raise UserError(
                f"flex.full_share={self.full_share}, reference_share={self.reference_share}, "
                f"glance_share={self.glance_share}, region_share={self.region_share}, "
                f"blind_share={self.blind_share}: allowed: at least 0, the first four at most 1 together, "
                "the last below 1"
            )
        for name in ("close_share", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"flex.{name}={getattr(self, name)}: allowed: at least 0 and below 1")
        StochasticBudget(self.budget, self.seed)

    @property
    def close_steps(self) -> int:
        return round(self.close_share * self.optimizer.steps)


class FlexModule(StepModule):
    def __init__(self, config: FlexConfig, model: NativeModel, actions: ActionSet) -> None:
        super().__init__(config.optimizer, config.seed)
        self.config, self.model, self.actions = config, model, actions
        self.budget = StochasticBudget(config.budget, config.seed)
        model.projector.dropout.p = config.dropout

    def configure_model(self) -> None:
        """Under trainer.strategy=fsdp: what trains in parts, those of every block of a prefix decoder
        collected for it alone, all others together. What is frozen stays whole."""
        if self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.language.blocks:
            if type(block) is Block:  # CrossBlock is entered by more than one door
                fully_shard(block, mesh=mesh)
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous()  # an encoder's are channels_last
        fully_shard(self, mesh=mesh, ignored_params={p for p in self.parameters() if not p.requires_grad})
        register_fsdp_forward_method(self, "training_step")

    def selection(self, step: int) -> Tensor:
        """A random selection, [T] bool: one a step, on all ranks, so that none pads to or waits for a larger
        one's tokens."""
        c, pyramid = self.config, self.model.pyramid
        generator = torch.Generator().manual_seed(step_seed(c.seed, step))
        kind = float(torch.rand((), generator=generator))
        if step < c.close_steps or kind < c.full_share:
            return self.actions.selection[self.actions.full]
        if kind < c.full_share + c.reference_share:
            return pyramid.tile_level == 0
        if kind < c.full_share + c.reference_share + c.glance_share:
            return torch.arange(pyramid.tiles) == pyramid.glance
        if kind >= 1 - c.region_share:
            rng = np.random.default_rng(step_seed(c.seed, step))
            return propose(pyramid, torch.ones(pyramid.tiles, dtype=torch.bool), 1, rng)[0]
        chosen = self.actions.selection[int(torch.randint(len(self.actions), (), generator=generator))]
        if pyramid.tiles > pyramid.levels and float(torch.rand((), generator=generator)) < 0.5:
            some = torch.rand(pyramid.tiles, generator=generator) < 0.5
            some[pyramid.glance] = True
            chosen = chosen & some
        return chosen

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # decisions are made on the CPU: no step waits for an accelerator to read back what it decided
        selection, (size, image_of) = self.selection(batch_idx), batch.on_cpu
        capacity = self.model.pyramid.capacity(size)[image_of]
        sighted = torch.rand(len(batch), 1) >= self.config.blind_share
        sighted[0] = (
            True  # parts are collected from all ranks or from none, so each must have something to project
        )
        fractions = self.budget.fractions(batch_idx)
        features = self.model.encode(batch, selection & sighted & (capacity > 0))
        results = [
            self.model.forced(batch, features, scale(capacity, f) * selection * sighted) for f in fractions
        ]
        loss = -torch.stack([r.loglik for r in results]).mean()
        accuracy = torch.stack([r.greedy.float() for r in results]).mean()
        if self.logs(batch_idx):  # ranks wait for each other
            reported = self.over_ranks(torch.stack([loss, accuracy]))
            values = {"train/loss": reported[0], "train/accuracy": reported[1]}
            self.log_dict(values, batch_size=len(batch))
        return loss
