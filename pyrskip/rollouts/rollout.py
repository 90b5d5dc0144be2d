"""Stage rollouts: score every listed action on every question of a split, in parallel over ranks.

Axes: B questions of a batch, S listed actions, T tiles.
"""

import shutil
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.data.sampler import EvalSampler
from pyrskip.decision import ActionSet, blind, reference
from pyrskip.errors import UserError
from pyrskip.gates.gate import Layout
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.environments import observe
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch


class RolloutModule(pl.LightningModule):
    """Predicts the part of a table that a batch gives."""

    def __init__(self, model: NativeModel, actions: ActionSet, budget: BudgetRule, split: str) -> None:
        super().__init__()
        self.model, self.split = model, split
        self.layout = Layout(model.text.width, model.vision.channels, model.pyramid.tiles, actions, budget)
        self.parts: list[RolloutTable] = []

    def decisions(self, capacity: Tensor) -> Tensor:
        """The listed actions and what is outside of the set. capacity [B, T] -> [B, S + 2, T]."""
        outside = torch.stack([reference(self.model.pyramid), blind(self.model.pyramid)]).to(capacity.device)
        listed = self.layout.actions.tokens(capacity, self.layout.budget)
        return torch.cat([listed, self.layout.budget.tokens(outside[None], capacity[:, None])], dim=1)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        if not len(batch):  # nothing of it could be read
            return
        model, layout = self.model, self.layout
        capacity = model.pyramid.capacity(batch.size)[batch.image_of]
        size, words = batch.size[batch.image_of], model.prompt_tokens(batch)
        features = model.encode(batch, capacity > 0)
        scores, chances, costs = [], [], []
        for asked in self.decisions(capacity).unbind(1):
            forced = model.forced(batch, features, asked)
            scores.append(model.score(batch, features, asked, forced=forced))
            chances.append(forced.loglik.exp())
            costs.append(model.cost(model.realise(asked, size), size, words))
        seen = observe(model, layout, batch, features, torch.zeros(len(batch), device=self.device), 1.0)
        similarity = self.similarity(batch, features_tokens=model.project(batch, features, capacity))
        first = [int((batch.image_of == i).int().argmax()) for i in range(len(batch.image))]
        texts = tuple(dict.fromkeys(batch.texts))
        where = {t: i for i, t in enumerate(texts)}
        query_of = torch.tensor([where[t] for t in batch.texts])
        said = [batch.texts.index(t) for t in texts]
        part = RolloutTable(
            actions=layout.actions,
            score=torch.stack(scores, dim=1),
            probability=torch.stack(chances, dim=1),
            cost=Cost(*(torch.stack([getattr(c, n) for c in costs], dim=1) for n in ("tokens", "flops", "kv_bytes"))),
            similarity=similarity,
            image_of=batch.image_of,
            query_of=query_of,
            query=seen.query[said],
            query_mask=seen.query_mask[said],
            glance=seen.glance[first],
            glance_mask=seen.glance_mask[first],
            size=batch.size,
            types=tuple(batch.types),
            keys=batch.keys,
            texts=texts,
            image_keys=batch.image_keys,
            split=self.split,
        )
        self.parts.append(part.to(torch.device("cpu")))

    def similarity(self, batch: Batch, features_tokens: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Cosine of the mean word embedding with every tile's mean token, [B, T]; -1 where a tile has none."""
        tokens, real, tile = features_tokens
        ids, mask = self.model.language.tokenize(batch.texts)
        question = (self.model.language.embed(ids) * mask[..., None]).sum(1)
        member = F.one_hot(tile, self.model.pyramid.tiles) * real[..., None]
        mean = torch.einsum("bnt,bnd->btd", member.to(tokens), tokens)
        cosine = F.cosine_similarity(question[:, None], mean, dim=-1)
        return cosine.masked_fill(member.sum(1) == 0, -1.0)


def roll_out(trainer: pl.Trainer, module: RolloutModule, data: ShardDataset, images: int, directory: Path) -> None:
    """Write `directory`/table.safetensors, each rank a part of it first."""
    sampler = EvalSampler(len(data), images, trainer.global_rank, trainer.world_size)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=partial(collate, side=module.model.pyramid.size))
    module.parts.clear()
    trainer.predict(module, loader, return_predictions=False)
    part = directory / f"part-{trainer.global_rank}"
    if module.parts:  # more ranks than images leave some without
        RolloutTable.concatenate(module.parts).save(part)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        parts = [p for rank in range(trainer.world_size) if (p := directory / f"part-{rank}").exists()]
        if not parts:
            raise UserError(f"no image of the split {module.split} can be read; the log names what is broken")
        RolloutTable.concatenate([RolloutTable.load(p) for p in parts]).save(directory)
        for p in parts:
            shutil.rmtree(p)
    trainer.strategy.barrier()
