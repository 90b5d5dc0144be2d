"""Environments: what a learning rule talks to, online (a model answers) or offline (a rollout table does).

Axes: B batch, S actions, T tiles. A batch is a Batch online and the rows of the table [B] int64 offline.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates.gate import Layout, Observation
from pyrskip.gates.policies import Relaxed
from pyrskip.gates.sequential import Reveal
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features, GatedModel
from pyrskip.models.tiles import levels_of
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch

Rows = TypeVar("Rows", contravariant=True)
Worth = Callable[[Tensor, Tensor], Tensor]
"""(score, relative cost), [B] or [B, S] each -> the reward, of the same shape."""


class Environment(Protocol, Generic[Rows]):
    """tile_level [T] int64: the level of each tile."""

    layout: Layout
    tile_level: Tensor

    def to(self, device: torch.device) -> None:
        """Move what it holds to where the gate is trained."""
        ...

    def observe(self, rows: Rows, price: Tensor) -> Observation:
        """What the gate may see. price [B]."""
        ...

    def score(self, rows: Rows, asked: Tensor) -> Tensor:
        """The metric of the answers under a decision [B, T] -> [B] in [0, 1]."""
        ...

    def chance(self, rows: Rows, asked: Tensor) -> Tensor:
        """The probability of the first accepted answer under a decision [B, T] -> [B]."""
        ...

    def scores(self, rows: Rows) -> Tensor:
        """The metric under every listed action, [B, S]."""
        ...

    def chances(self, rows: Rows) -> Tensor:
        """The probability of the first accepted answer under every listed action, [B, S]."""
        ...

    def cost(self, rows: Rows, asked: Tensor) -> Tensor:
        """Relative cost of a decision [B, T] -> [B]."""
        ...

    def tokens(self, rows: Rows, asked: Tensor) -> Tensor:
        """Realised tokens of a decision [B, T] -> [B] float."""
        ...

    def types(self, rows: Rows) -> Sequence[str]:
        """The question type of each row."""
        ...

    def relaxed(self, rows: Rows, sample: Relaxed, worth: Worth, soft: bool) -> Tensor:
        """What a straight-through sample is worth, [B], with its gradient. soft: by the answer's probability,
        not its score."""
        ...


class TableEnvironment:
    """Plays a rollout table back. unit: FLOPs of relative cost 1, the mean full pyramid on the training
    split."""

    def __init__(self, table: RolloutTable, pyramid: Pyramid, budget: BudgetRule, unit: float) -> None:
        self.table = table
        actions = table.actions
        self.layout = Layout(table.query.shape[-1], table.glance.shape[1], pyramid.tiles, actions, budget)
        self.capacity, self.tile_level = pyramid.capacity(table.size), pyramid.tile_level
        self.relative = (table.cost.flops[:, : len(actions)] / unit).float()
        # tables that keep every tile's mean features [M, T, C] let a gate look at what it has kept
        self.features: Tensor | None = getattr(table, "features", None)

    def to(self, device: torch.device) -> None:
        self.table = self.table.to(device)
        self.capacity, self.relative = self.capacity.to(device), self.relative.to(device)
        self.features = None if self.features is None else self.features.to(device)

    def observe(self, rows: Tensor, price: Tensor) -> Observation:
        t = self.table
        image, text = t.image_of[rows], t.query_of[rows]
        return Observation(
            query=t.query[text],
            query_mask=t.query_mask[text],
            glance=t.glance[image],
            glance_mask=t.glance_mask[image],
            capacity=self.capacity[image],
            cost=self.relative[rows],
            price=price,
            confidence=None if t.confidence is None else t.confidence[rows],
            reveal=None if self.features is None else self._reveal(image),
        )

    def _reveal(self, image: Tensor) -> Reveal:
        features = self.features
        assert features is not None
        return lambda tile, keep: features[image, tile] * keep[:, None]

    def action(self, rows: Tensor, asked: Tensor) -> Tensor:
        """The listed action that a decision is, [B]; tiles without capacity do not count."""
        capacity, actions = self.capacity[self.table.image_of[rows]], self.table.actions
        if actions.ladder:
            same = (asked[:, None] == actions.tokens(capacity, self.layout.budget)).all(-1)
        else:
            same = (((asked > 0)[:, None] == actions.selection) | (capacity == 0)[:, None]).all(-1)
        if not bool(same.any(-1).all()):
            raise UserError(
                "a decision is none of the rollout table's actions; roll out an action set that holds it"
            )
        return same.int().argmax(-1)

    def score(self, rows: Tensor, asked: Tensor) -> Tensor:
        return self.table.score[rows, self.action(rows, asked)]

    def chance(self, rows: Tensor, asked: Tensor) -> Tensor:
        return self.chances(rows).gather(1, self.action(rows, asked)[:, None]).squeeze(1)

    def scores(self, rows: Tensor) -> Tensor:
        return self.table.score[rows, : len(self.table.actions)]

    def chances(self, rows: Tensor) -> Tensor:
        if self.table.probability is None:
            raise UserError(
                "rule.target=probability, which this model's rollouts do not hold; allowed: rule.target=score"
            )
        return self.table.probability[rows, : len(self.table.actions)]

    def cost(self, rows: Tensor, asked: Tensor) -> Tensor:
        return self.relative[rows, self.action(rows, asked)]

    def tokens(self, rows: Tensor, asked: Tensor) -> Tensor:
        return self.table.cost.tokens[rows, self.action(rows, asked)].float()

    def types(self, rows: Tensor) -> Sequence[str]:
        return [self.table.types[row] for row in rows.tolist()]

    def relaxed(self, rows: Tensor, sample: Relaxed, worth: Worth, soft: bool) -> Tensor:
        """The table's multilinear extension: the expectation over actions, of their weights."""
        if sample.weight is None:
            listed, tiles = self.table.actions.selection.shape
            raise UserError(
                f"gate.policy=bernoulli decides tile by tile: it needs all {2 ** (tiles - 1)} selections, "
                "and "
                f"the rollout table lists {listed}; allowed: rule.online=true, gate.policy=categorical, or "
                "actions.unit=tile without a sample"
            )
        scores = self.chances(rows) if soft else self.scores(rows)
        return (sample.weight * worth(scores, self.relative[rows])).sum(-1)


class ModelEnvironment:
    """Asks the model. Scores are metrics where nothing is differentiated, the answer's probability where it
    is.

    A batch's levels, and what has been encoded of it, are kept until the next one comes: a step asks about
    many decisions on the same images.
    """

    def __init__(
        self,
        model: NativeModel,
        actions: ActionSet,
        budget: BudgetRule,
        unit: float,
        confidence: bool = False,
    ) -> None:
        self.model, self.unit, self.confidence = model.requires_grad_(False), unit, confidence
        tiles = model.pyramid.tiles
        self.layout = Layout(model.text.width, model.vision.channels, tiles, actions, budget)
        self.tile_level = model.pyramid.tile_level
        self.glance = torch.zeros(tiles, dtype=torch.bool)
        self.glance[model.pyramid.glance] = True
        self.batch: Batch | None = None
        self.levels: list[Tensor] = []
        self.features = Features((), torch.empty(0))

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def observe(self, rows: Batch, price: Tensor) -> Observation:
        features = self.encode(rows, self.glance.to(price.device).expand(len(rows), -1))
        seen = observe(self.model, self.layout, rows, features, price, self.unit, self.confidence)
        return replace(seen, reveal=partial(_look, self, self.model.pyramid, rows))

    @torch.no_grad()
    def encode(self, rows: Batch, keep: Tensor) -> Features:
        """The tiles that any question of an image keeps [B, T] bool, each encoded when it is first asked for;
        others may be there as well."""
        if rows is not self.batch:
            self.batch, self.levels = rows, levels_of(self.model.pyramid, rows)
            self.features = self.model.encode(rows, keep, self.levels)
            return self.features
        had = self.features
        new = keep & ~had.encoded[rows.image_of] & (self._capacity(rows) > 0)
        if bool(new.any()):
            more = self.model.encode(rows, new, self.levels)
            # a map is zero where it was not encoded
            maps = (
                a + b if bool(new[:, tile].any()) else a
                for tile, (a, b) in enumerate(zip(had.maps, more.maps, strict=True))
            )
            self.features = Features(tuple(maps), had.encoded | more.encoded)
        return self.features

    @torch.no_grad()
    def score(self, rows: Batch, asked: Tensor) -> Tensor:
        return self.model.score(rows, self.encode(rows, asked > 0), asked)

    @torch.no_grad()
    def chance(self, rows: Batch, asked: Tensor) -> Tensor:
        return self.model.forced(rows, self.encode(rows, asked > 0), asked).loglik.exp()

    @torch.no_grad()
    def scores(self, rows: Batch) -> Tensor:
        features, asked = self._every_action(rows)
        return torch.stack([self.model.score(rows, features, a) for a in asked.unbind(1)], dim=1)

    @torch.no_grad()
    def chances(self, rows: Batch) -> Tensor:
        features, asked = self._every_action(rows)
        return torch.stack(
            [self.model.forced(rows, features, a).loglik.exp() for a in asked.unbind(1)], dim=1
        )

    def _every_action(self, rows: Batch) -> tuple[Features, Tensor]:
        asked = self.layout.actions.tokens(self._capacity(rows), self.layout.budget)
        return self.encode(rows, (asked > 0).any(1)), asked

    def cost(self, rows: Batch, asked: Tensor) -> Tensor:
        return self._flops(rows, asked) / self.unit

    def tokens(self, rows: Batch, asked: Tensor) -> Tensor:
        return self.model.realise(asked, rows.size[rows.image_of]).sum(-1).float()

    def types(self, rows: Batch) -> Sequence[str]:
        return rows.types

    def relaxed(self, rows: Batch, sample: Relaxed, worth: Worth, soft: bool = True) -> Tensor:
        """Every tile is encoded, since a skipped one must tell its gradient; gates weigh their tokens. The
        cost is that of the hard decision; its gradient is what each tile costs beside the glance."""
        if not soft:
            raise UserError(
                "rule.target=score has no gradient online; allowed: rule.target=probability, or "
                "rule.online=false"
            )
        capacity = self._capacity(rows)
        budget, keep = self.layout.budget, sample.keep
        every = torch.ones_like(capacity, dtype=torch.bool)
        with torch.no_grad():
            features = self.encode(rows, every)
            chosen = keep > 0.5
            # a kept tile has its tokens; a skipped one, which weighs nothing, those that it would get if it
            # were kept as well
            one = torch.eye(capacity.shape[1], dtype=torch.bool, device=keep.device)
            asked = torch.stack(
                [budget.tokens(chosen | one[t], capacity)[:, t] for t in range(len(one))], dim=1
            )
            asked = torch.where(chosen, budget.tokens(chosen, capacity), asked)
            hard = self.cost(rows, budget.tokens(chosen, capacity))
            single = self.glance.to(keep.device) | one
            alone = [self.cost(rows, budget.tokens(pair.expand_as(every), capacity)) for pair in single]
            extra = torch.stack(alone, dim=1) - alone[-1][:, None]
        score = self.model.forced(rows, features, asked, gates=keep).loglik.exp()
        return worth(score, hard + ((keep - keep.detach()) * extra).sum(-1))

    def _capacity(self, rows: Batch) -> Tensor:
        return self.model.pyramid.capacity(rows.size)[rows.image_of]

    def _flops(self, rows: Batch, asked: Tensor) -> Tensor:
        size = rows.size[rows.image_of]
        return self.model.cost(
            self.model.realise(asked, size), size, self.model.prompt_tokens(rows)
        ).flops.float()


def observe(
    model: GatedModel,
    layout: Layout,
    rows: Batch,
    features: Features,
    price: Tensor,
    unit: float,
    confidence: bool = False,
) -> Observation:
    """The observation of a batch whose glance is encoded. confidence: whether a native model is asked how
    sure it is."""
    query, mask = model.text.encode(rows.texts)
    capacity = model.pyramid.capacity(rows.size)[rows.image_of]
    cost = action_costs(model, layout, rows)
    cells = model.pyramid.cells(rows.size)[:, model.pyramid.glance]
    glance = features.maps[model.pyramid.glance]
    grid = [torch.arange(n, device=glance.device) for n in glance.shape[-2:]]
    inside = (grid[0][None, :, None] < cells[:, 0, None, None]) & (
        grid[1][None, None, :] < cells[:, 1, None, None]
    )
    return Observation(
        query=query,
        query_mask=mask,
        glance=glance.detach()[rows.image_of].float(),
        glance_mask=inside[rows.image_of],
        capacity=capacity,
        cost=(cost.flops / unit).float(),
        price=price,
        confidence=model.confidence(rows, features)
        if confidence and isinstance(model, NativeModel)
        else None,
        reveal=partial(_look, model, model.pyramid, rows) if isinstance(model, NativeModel) else None,
    )


@torch.no_grad()
def _look(
    encoder: ModelEnvironment | NativeModel, pyramid: Pyramid, rows: Batch, tile: int, keep: Tensor
) -> Tensor:
    """Mean features [B, C] of one tile, encoded for the rows that keep it; zero for the others."""
    wanted = torch.zeros(len(rows), pyramid.tiles, dtype=torch.bool, device=keep.device)
    wanted[:, tile] = keep
    cells = encoder.encode(rows, wanted).maps[tile].float()
    count = pyramid.cells(rows.size)[:, tile].prod(-1).clamp(min=1)
    # maps are zero outside of what is valid
    return (cells.sum((-1, -2)) / count[:, None])[rows.image_of] * keep[:, None]


def action_costs(model: GatedModel, layout: Layout, rows: Batch) -> Cost:
    """Cost of every listed action, [B, S] each."""
    size = rows.size[rows.image_of]
    asked = layout.actions.tokens(model.pyramid.capacity(rows.size)[rows.image_of], layout.budget)
    realised = model.realise(asked, size[:, None].expand(-1, asked.shape[1], -1))
    return model.cost(realised, size, model.prompt_tokens(rows))
