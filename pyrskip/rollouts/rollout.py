"""Stage rollouts: score every listed action on every question of a split, in parallel over ranks, resumable.

Axes: B questions of a batch, K decisions of each question's own, S listed actions, T tiles. A split is rolled
out in chunks of images. A chunk is written whole or not at all, whatever the number of ranks, so a run that
was killed goes on with the chunks that are not there."""

import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.data.cache import CachedDataset
from pyrskip.data.reader import ShardDataset
from pyrskip.data.sampler import ChunkSampler
from pyrskip.decision import ActionSet, blind
from pyrskip.errors import UserError
from pyrskip.gated import encode_glance
from pyrskip.models.halves import in_halves
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features
from pyrskip.models.tiles import agreement
from pyrskip.models.vlm.served import ServedModel
from pyrskip.proposals import propose
from pyrskip.rollouts.scoring import score_native, score_served
from pyrskip.rollouts.table import RolloutTable, check_origin
from pyrskip.sample import Batch, Sample
from pyrskip.signals import PER, Per, read, signals_of

UNREADABLE = "unreadable"
"""A file in a chunk's directory that stands for its table, where each of its images is broken or refused."""


class RolloutModule(pl.LightningModule):
    """Predicts the part of a table that a batch gives. origin: what the table is to know of its making;
    drawn: selections of each question's own, by `seed` and its key.

    refused: keys of images of the last batch that are left out, since the model refuses a question on them,
    each with the reason.
    """

    def __init__(
        self,
        model: NativeModel | ServedModel,
        actions: ActionSet,
        budget: BudgetRule,
        split: str,
        origin: Mapping[str, str] | None = None,
        drawn: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.split, self.origin = model, split, dict(origin or {})
        self.drawn, self.seed = drawn, seed
        self.actions, self.budget = actions, budget
        self.as_run = model.as_run if isinstance(model, ServedModel) else None
        self.signals = signals_of(model)
        self.refused: dict[str, str] = {}
        # a rank whose chunks are all done has nothing left
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def decisions(self, capacity: Tensor) -> Tensor:
        """The listed actions and what is outside of the set. capacity [B, T] -> [B, S + 2, T].

        Where the reference is the model as its users run it, which is no decision, it asks for no tile.
        """
        nothing = blind(self.model.pyramid)
        reference = self.model.reference if self.as_run is None else nothing
        outside = torch.stack([reference, nothing]).to(capacity.device)
        listed = self.actions.tokens(capacity, self.budget)
        return torch.cat([listed, self.budget.tokens(outside[None], capacity[:, None])], dim=1)

    def own(self, keys: Sequence[str], capacity: Tensor) -> Tensor:
        """Selections of the questions' own, the same whatever batch they are in. capacity [B, T] -> [B, K, T]
        bool."""
        found = []
        for key, real in zip(keys, (capacity > 0).cpu(), strict=True):
            rng = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
            found.append(propose(self.model.pyramid, real, self.drawn, rng))
        return torch.stack(found).to(capacity.device)

    @torch.no_grad()
    def predict_step(self, batch: Batch | None, batch_idx: int) -> RolloutTable | None:
        """None where no sample of the batch can be read, or the model answers on none."""
        self.refused = {}
        found = [] if batch is None else [part for part in in_halves(self._part, batch) if part is not None]
        return RolloutTable.concatenate(found) if len(found) > 1 else next(iter(found), None)

    def _part(self, batch: Batch) -> RolloutTable | None:
        model = self.model
        image_size, image_of = batch.on_cpu
        size, capacity = image_size[image_of], model.pyramid.capacity(image_size)[image_of]
        asked = self.decisions(capacity)
        drawn = self.own(batch.keys, capacity) if self.drawn else None
        if drawn is not None:
            asked = torch.cat([asked, self.budget.tokens(drawn, capacity[:, None])], dim=1)
        features = encode_glance(model, batch)
        score: Tensor
        probability: Tensor | None
        similarity: Tensor | None = None
        agrees: Tensor | None = None
        if isinstance(model, NativeModel):
            features = model.look(batch, features, asked.amax(1))
            score, probability = score_native(model, batch, features, asked)
            similarity = self.similarity(model, batch, features, capacity)
            agrees = agreement(model.pyramid, features.maps, model.pyramid.cells(image_size))
        else:
            score, probability, refused = self._served(model, batch, asked)
            self.refused |= refused
            if refused:
                images = [key not in refused for key in batch.image_keys]
                kept = [row for row, image in enumerate(batch.image_of.tolist()) if images[image]]
                if not kept:
                    return None
                batch, size, asked, score = batch.rows(kept), size[kept], asked[kept], score[kept]
                probability = None if probability is None else probability[kept]
                drawn = None if drawn is None else drawn[kept]
                features = encode_glance(model, batch)
        realised = model.realise(asked, size[:, None].expand(-1, asked.shape[1], -1))
        texts = tuple(dict.fromkeys(batch.texts))
        where = {t: i for i, t in enumerate(texts)}
        rows = {
            "question": list(range(len(batch))),
            "text": [batch.texts.index(t) for t in texts],
            "image": [int((batch.image_of == i).int().argmax()) for i in range(len(batch.image))],
        }
        seen = read(self.signals, model, batch, features)
        signals: dict[Per, dict[str, Tensor]] = {per: {} for per in PER}
        for signal in self.signals.values():
            signals[signal.per] |= {name: seen[name][rows[signal.per]] for name in signal.shapes}
        part = RolloutTable(
            actions=self.actions,
            score=score,
            probability=probability,
            cost=self._cost(batch, size, realised),
            similarity=similarity,
            signals=signals,
            image_of=batch.image_of,
            query_of=torch.tensor([where[t] for t in batch.texts]),
            size=batch.size,
            types=tuple(batch.types),
            keys=batch.keys,
            texts=texts,
            image_keys=batch.image_keys,
            split=self.split,
            origin=self.origin,
            drawn=drawn,
            agreement=agrees,
        )
        return part.to(torch.device("cpu"))

    def _served(
        self, model: ServedModel, batch: Batch, asked: Tensor
    ) -> tuple[Tensor, Tensor | None, dict[str, str]]:
        """As `score_served`, with the reference's column from the model as its users run it."""
        score, probability, refused = score_served(model, batch, asked)
        if self.as_run is None:
            return score, probability, refused
        at, whole = len(self.actions), asked.new_ones(len(batch), 1, 1)
        own, chance, also = score_served(self.as_run, batch, whole)
        score[:, at] = own[:, 0]
        if probability is not None and chance is not None:
            probability[:, at] = chance[:, 0]
        return score, probability, refused | also

    def _cost(self, batch: Batch, size: Tensor, realised: Tensor) -> Cost:
        """Of the decisions, [B, S + 2] each, on the CPU. size [B, 2] and realised on the CPU."""
        words = self.model.prompt_tokens(batch).cpu()
        cost = self.model.cost(realised, size, words)
        if self.as_run is not None:
            whole = self.as_run.realise(realised.new_ones(len(batch), 1), size)
            own = self.as_run.cost(whole, size, words)
            for name in ("tokens", "flops", "kv_bytes"):
                getattr(cost, name)[:, len(self.actions)] = getattr(own, name)
        return cost

    def similarity(self, model: NativeModel, batch: Batch, features: Features, capacity: Tensor) -> Tensor:
        """Cosine of the mean word embedding with every tile's mean token, [B, T]; -1 where a tile has
        none."""
        tokens, real, tile = model.project(batch, features, capacity)
        ids, mask = model.language.tokenize(batch.texts)
        question = (model.language.embed(ids) * mask[..., None]).sum(1)
        member = F.one_hot(tile, model.pyramid.tiles) * real[..., None]
        mean = torch.einsum("bnt,bnd->btd", member.to(tokens), tokens)
        cosine = F.cosine_similarity(question[:, None], mean, dim=-1)
        return cosine.masked_fill(member.sum(1) == 0, -1.0)


class ChunkWriter(pl.Callback):
    """Writes each chunk as soon as its last batch is done."""

    def __init__(self, chunks: "_Chunks", directory: Path) -> None:
        self.chunks, self.directory = chunks, directory
        self.parts: list[RolloutTable] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, RolloutModule)
        for key, reason in pl_module.refused.items():
            self.chunks.lose(key, reason)
        if outputs is not None:
            self.parts.append(outputs)
        chunk = self.chunks.ends.get(batch_idx)
        if chunk is None:
            return
        place = self.directory / _name(chunk)
        if self.parts:
            RolloutTable.concatenate(self.parts).save(place)
        else:
            place.mkdir(parents=True, exist_ok=True)
            (place / UNREADABLE).touch()
        self.parts.clear()


def roll_out(
    trainer: pl.Trainer,
    module: RolloutModule,
    data: ShardDataset | CachedDataset,
    images: int,
    chunk: int,
    directory: Path,
) -> None:
    """Write `directory`/table.safetensors and table.json, each rank chunks of it first.

    images: of a pass; chunk: images of a chunk. Chunks that are there are kept; UserError where they are of
    another origin.
    """
    whole = ChunkSampler(len(data), images, chunk)
    places = {c: directory / _name(c) for c in whole.chunks}
    done = [c for c, place in places.items() if (place / "table.json").exists()]
    for c in done:
        check_origin(RolloutTable.load(places[c]), module.origin, places[c])
    chunks = _Chunks(data, images, chunk, done, module.model.pyramid.size)
    trainer.callbacks.append(ChunkWriter(chunks, directory))  # type: ignore[attr-defined]
    trainer.predict(module, datamodule=chunks, return_predictions=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        parts = [place for place in places.values() if not (place / UNREADABLE).exists()]
        for part in parts:
            if not (part / "table.json").exists():
                raise UserError(
                    f"{part} is gone, so another run may have written here; run the same command again, alone"
                )
        if not parts:
            raise UserError(
                f"none of the {len(data)} samples of split {module.split} could be read; the log names what "
                "is broken"
            )
        RolloutTable.concatenate([RolloutTable.load(p) for p in parts]).save(directory)
        for old in directory.glob("chunk-*"):
            shutil.rmtree(old)
    trainer.strategy.barrier()


class _Chunks(pl.LightningDataModule):
    """A rank's batches of the chunks that are not `done`. ends: as the sampler's, once there is one."""

    def __init__(
        self,
        data: ShardDataset | CachedDataset,
        images: int,
        chunk: int,
        done: list[tuple[int, int]],
        side: int,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer chunks than ranks
        self._data, self._images, self._chunk, self._done, self._side = data, images, chunk, done, side
        self.ends: dict[int, tuple[int, int]] = {}

    def lose(self, key: str, reason: str) -> None:
        """Leave a sample out as one that cannot be read."""
        data = self._data if isinstance(self._data, ShardDataset) else self._data.data
        data.lose(key, reason)

    def predict_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = ChunkSampler(len(self._data), self._images, self._chunk, self._done, rank, world)
        self.ends = sampler.ends
        return DataLoader(self._data, batch_sampler=sampler, collate_fn=self._gather)

    def _gather(self, samples: list[Sample | None]) -> Batch | None:
        readable = [sample for sample in samples if sample is not None]
        return Batch.collate(readable, self._side) if readable else None


def _name(chunk: tuple[int, int]) -> str:
    return f"chunk-{chunk[0]:08d}-{chunk[1]:08d}"
