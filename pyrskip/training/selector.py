"""Train the scorer of pruner `visionselector` (arXiv:2510.16598) through the frozen language model: every
token stays, times the probability that it does, and the probabilities sum to the budget.

Axes: B questions, T tiles, U sets of visual tokens, N visual tokens.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.models.native import NativeModel
from pyrskip.pruners import Kept, Prunable, Pruner
from pyrskip.pruners.pruner import rank
from pyrskip.pruners.visionselector import Scorer, SelectorConfig, SoftTopK
from pyrskip.sample import Batch
from pyrskip.training.module import OptimizerConfig, StepModule, step_seed

PULL = 0.1
"""Weight of the cross-entropy at the first step."""


class SoftSelection(Pruner):
    """What stands for the pruner meanwhile. gap: of the tokens that it saw last, the mean binary
    cross-entropy of the probabilities against the hard choice."""

    gap: Tensor

    def __init__(self, config: SelectorConfig, scorer: Scorer) -> None:
        super().__init__(replace(config, ratio=config.budget, tokens=0))
        self.scorer = scorer

    def prune(self, seen: Prunable) -> Kept:
        score, count = self.scorer(seen.tokens, seen.real), self.stays(seen.real.sum(-1))
        chosen: Tensor = SoftTopK.apply(score, seen.real, count)
        hard = rank(score, seen.real) < count[:, None]
        self.gap = F.binary_cross_entropy(chosen[seen.real], hard[seen.real].double())
        place = torch.arange(seen.real.shape[1], device=seen.real.device)
        tokens = seen.tokens * chosen[..., None].to(seen.tokens.dtype)
        return Kept(tokens, seen.real, place.expand_as(seen.real))

    def read(self, tokens: Tensor, layers: int) -> list[Tensor]:
        return [tokens.long()] * layers


class SelectorModule(StepModule):
    """Under decisions that are drawn from the listed ones, as what it will prune is."""

    def __init__(
        self, config: SelectorConfig, model: NativeModel, actions: ActionSet, budget: BudgetRule
    ) -> None:
        super().__init__(OptimizerConfig(steps=config.steps, lr=config.lr, weight_decay=0.0), config.seed)
        self.config, self.actions, self.budget = config, actions, budget
        self.model = model.requires_grad_(False)
        self.scorer = Scorer(model.language.width)

    def train(self, mode: bool = True) -> "SelectorModule":
        super().train(mode)
        self.model.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(self.seed, batch_idx))
        action = int(torch.randint(len(self.actions), (), generator=generator))
        size, image_of = batch.on_cpu
        asked = self.actions.tokens(self.model.pyramid.capacity(size)[image_of], self.budget)[:, action]
        with torch.no_grad():
            features = self.model.encode(batch, asked > 0)
        self.model.pruner = soft = SoftSelection(self.config, self.scorer)
        miss = self.model.loss(batch, features, asked).mean()
        done = batch_idx / max(1, self.config.steps - 1)
        loss = miss + (PULL + (self.config.pull - PULL) * done) * soft.gap
        if self.logs(batch_idx):
            reported = self.over_ranks(torch.stack([miss.double(), soft.gap]))
            values = {"train/loss": reported[0], "train/gap": reported[1]}
            self.log_dict(values, prog_bar=True, batch_size=len(batch))
        return loss
