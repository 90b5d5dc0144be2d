"""Environments: what a learning rule talks to, online (a model answers) or offline (a rollout table does).

Axes: B batch, S actions, T tiles. A batch is a Batch online and the rows of the table [B] int64 offline.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates, Decision, distinct, power
from pyrskip.errors import UserError
from pyrskip.gated import encode_glance, observe
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features
from pyrskip.observation import Layout, Observation, Reveal, RevealLevel
from pyrskip.policies import Policy, Relaxed
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.policies.nested import levels_of, under
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.table import OUTSIDE, RolloutTable
from pyrskip.sample import Batch
from pyrskip.signals import shapes_of, signals_of

Rows = TypeVar("Rows", contravariant=True)
Reward = Callable[[Tensor, Tensor], Tensor]
"""(score, relative cost), [B] or [B, S] each -> the reward, of the same shape."""
AT_ONCE, TILES_AT_ONCE = 4096, 2**17
"""Rows that a gate decides on at once, and their tiles: a vector of each is in memory."""
KNOWN = 2**23
"""Numbers that the listed decisions of all kinds of images may take, to be kept."""


def in_parts(rows: Tensor, tiles: int) -> tuple[Tensor, ...]:
    """Rows [N] of a table of so many tiles, as many a part as a gate may decide on at once."""
    parts: tuple[Tensor, ...] = rows.split(max(1, min(AT_ONCE, TILES_AT_ONCE // tiles)))
    return parts


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

    def score(self, rows: Rows, decision: Decision) -> Tensor:
        """The metric of the answers under a decision, [B] in [0, 1]."""
        ...

    def probability(self, rows: Rows, decision: Decision) -> Tensor:
        """The probability of the first accepted answer under a decision, [B]."""
        ...

    def scores(self, rows: Rows) -> Tensor:
        """The metric under every listed action, [B, S]."""
        ...

    def probabilities(self, rows: Rows) -> Tensor:
        """The probability of the first accepted answer under every listed action, [B, S]."""
        ...

    def cost(self, rows: Rows, decision: Decision) -> Tensor:
        """Relative cost of a decision, [B]."""
        ...

    def tokens(self, rows: Rows, decision: Decision) -> Tensor:
        """Realised tokens of a decision, [B] float."""
        ...

    def types(self, rows: Rows) -> Sequence[str]:
        """The question type of each row."""
        ...

    def decide(self, rows: Rows, policy: Policy) -> Decision:
        """The mode; where it is not known what comes of it, what the policy prefers of what is."""
        ...

    def relaxed(self, rows: Rows, sample: Relaxed, reward: Reward, soft: bool) -> Tensor:
        """The reward of a straight-through sample, [B], with its gradient. soft: by the answer's probability,
        not its score."""
        ...


class TableEnvironment:
    """Answers from a rollout table. unit: FLOPs of relative cost 1, the mean full pyramid on the training
    split."""

    def __init__(self, table: RolloutTable, pyramid: Pyramid, budget: BudgetRule, unit: float) -> None:
        self.table = table
        actions = table.actions
        shapes = {name: tuple(value.shape[1:]) for of in table.signals.values() for name, value in of.items()}
        self.layout = Layout(shapes, pyramid.tiles, actions, budget, pyramid.grid)
        self.capacity, self.tile_level = pyramid.capacity(table.size), pyramid.tile_level
        every = (table.cost.flops / unit).float()
        self.relative, self.relative_of_column = every[:, : len(actions)], every
        # tables that keep every tile's mean features [M, T, C] let a gate look at what it has kept
        self.features: Tensor | None = getattr(table, "features", None)
        # images of few sizes have few kinds of decisions, which are found once
        kinds, kind = distinct(self.capacity.cpu())
        self.kind = kind.to(self.capacity.device)
        self.candidates: Candidates | None = None
        if len(kinds) * actions.selection.numel() <= KNOWN:
            self.candidates = Candidates(actions.tokens(self.capacity[kinds], budget))

    def to(self, device: torch.device) -> None:
        self.table = self.table.to(device)
        self.capacity, self.relative = self.capacity.to(device), self.relative.to(device)
        self.relative_of_column = self.relative_of_column.to(device)
        self.features = None if self.features is None else self.features.to(device)
        if self.candidates is not None:
            self.kind, self.candidates = self.kind.to(device), Candidates(self.candidates.tokens.to(device))

    def observe(self, rows: Tensor, price: Tensor) -> Observation:
        t = self.table
        image = t.image_of[rows]
        index = {"question": rows, "text": t.query_of[rows], "image": image}
        return Observation(
            signals={name: value[index[per]] for per, of in t.signals.items() for name, value in of.items()},
            capacity=self.capacity[image],
            cost=self.relative[rows],
            price=price,
            reveal=None if self.features is None else self._reveal(image),
            reveal_level=None if self.table.shown is None else self._reveal_level(self.table.shown, image),
            candidates=None if self.candidates is None else self.candidates.of(self.kind[image]),
        )

    def _reveal(self, image: Tensor) -> Reveal:
        features = self.features
        assert features is not None
        return lambda tile, keep: features[image, tile] * keep[:, None]

    def _reveal_level(self, shown: Tensor, image: Tensor) -> RevealLevel:
        grid = self.layout.grid

        def reveal(level: int, keep: Tensor) -> Tensor:
            below = levels_of(grid) == level - 1
            return shown[:, below][image] * under(keep, grid[level], grid[level - 1])[..., None]

        return reveal

    def score(self, rows: Tensor, decision: Decision) -> Tensor:
        return self.table.score[rows, self.column(rows, decision)]

    def probability(self, rows: Tensor, decision: Decision) -> Tensor:
        return self._probability(rows).gather(1, self.column(rows, decision)[:, None]).squeeze(1)

    def scores(self, rows: Tensor) -> Tensor:
        return self.table.score[rows, : len(self.table.actions)]

    def probabilities(self, rows: Tensor) -> Tensor:
        return self._probability(rows)[:, : len(self.table.actions)]

    def _probability(self, rows: Tensor) -> Tensor:
        if self.table.probability is None:
            raise UserError(
                "rule.target=probability, which this model's rollouts do not hold; allowed: rule.target=score"
            )
        return self.table.probability[rows]

    def tried(self, rows: Tensor, soft: bool) -> tuple[Tensor, Tensor]:
        """Every selection of which the table tells what comes of it, listed or a question's own, [B, S + K,
        T] bool; and its score, or the probability of the first accepted answer (soft), [B, S + K]."""
        listed, own = len(self.table.actions), self.table.drawn
        known = self._probability(rows) if soft else self.table.score[rows]
        selection = self.table.actions.selection.expand(len(rows), -1, -1)
        selection = selection if own is None else torch.cat([selection, own[rows]], dim=1)
        return selection, torch.cat([known[:, :listed], known[:, listed + len(OUTSIDE) :]], dim=1)

    def decide(self, rows: Tensor, policy: Policy) -> Decision:
        mode = policy.mode()
        if mode.action is not None or not isinstance(policy, BernoulliPolicy):
            return mode
        selection, _ = self.tried(rows, soft=False)
        best = policy.worth(selection).argmax(-1)
        kept = selection[torch.arange(len(rows), device=best.device), best]
        tokens = self.layout.budget.tokens(kept, self.capacity[self.table.image_of[rows]])
        return Decision(tokens, best + len(OUTSIDE) * (best >= len(self.table.actions)))

    def cost(self, rows: Tensor, decision: Decision) -> Tensor:
        """Of a decision that the table does not hold, what its tiles add up to."""
        if decision.action is None:
            listed = self.relative[rows]
            own = self.layout.tile_costs(listed, self.capacity[self.table.image_of[rows]])
            return listed[:, self.table.actions.index("glance")] + (own * decision.selection).sum(-1)
        return self.relative_of_column[rows, decision.action]

    def tokens(self, rows: Tensor, decision: Decision) -> Tensor:
        if decision.action is None:
            return decision.tokens.sum(-1).float()
        return self.table.cost.tokens[rows, decision.action].float()

    def types(self, rows: Tensor) -> Sequence[str]:
        return [self.table.types[row] for row in rows.tolist()]

    def relaxed(self, rows: Tensor, sample: Relaxed, reward: Reward, soft: bool) -> Tensor:
        """The table's multilinear extension: the expectation over actions, of their weights."""
        if sample.weight is None:
            listed, tiles = self.table.actions.selection.shape
            raise UserError(
                "a policy that decides tile by tile, such as gate.policy=bernoulli, needs all "
                f"{power(2, tiles - 1)} selections, and the rollout table lists {listed}; allowed: "
                "rule.online=true, gate.policy=categorical, or actions.unit=tile without a sample"
            )
        scores = self.probabilities(rows) if soft else self.scores(rows)
        return (sample.weight * reward(scores, self.relative[rows])).sum(-1)

    def action(self, decision: Decision) -> Tensor:
        """The listed action that a decision is, [B]. Raises UserError where the table does not list it."""
        if decision.action is None:
            raise UserError(
                "a decision is none of the rollout table's actions; roll out an action set that holds it"
            )
        return decision.action

    def column(self, rows: Tensor, decision: Decision) -> Tensor:
        """The column of the table that tells what comes of a decision, [B]. Raises UserError where none
        does."""
        if decision.action is not None or self.table.drawn is None:
            return self.action(decision)
        same = (self.table.drawn[rows] == decision.selection[:, None]).all(-1)
        if not bool(same.any(-1).all()):
            return self.action(decision)
        return same.int().argmax(-1) + self.table.first_drawn


class ModelEnvironment:
    """Asks the model. Scores are metrics where nothing is differentiated, the answer's probability where it
    is.

    What has been encoded of a batch is kept until the next one comes: a step asks about many decisions on the
    same images. needs: the signals that the gate reads.
    """

    def __init__(
        self, model: NativeModel, actions: ActionSet, budget: BudgetRule, unit: float, needs: Collection[str]
    ) -> None:
        self.model, self.unit = model.requires_grad_(False), unit
        self.signals = signals_of(model, needs)
        pyramid = model.pyramid
        self.layout = Layout(shapes_of(self.signals), pyramid.tiles, actions, budget, pyramid.grid)
        self.tile_level = model.pyramid.tile_level
        self.batch: Batch | None = None
        self.features = Features((), torch.empty(0))

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def observe(self, rows: Batch, price: Tensor) -> Observation:
        features = self.glance(rows)
        look = partial(self.encode, rows)
        return observe(self.model, self.layout, self.signals, rows, features, price, self.unit, look)

    def glance(self, rows: Batch) -> Features:
        if rows is not self.batch:
            self.batch, self.features = rows, encode_glance(self.model, rows)
        return self.features

    def encode(self, rows: Batch, tokens: Tensor) -> Features:
        """The tiles that any question of an image keeps, tokens [B, T], each encoded when it is first asked
        for; others may be there as well."""
        self.features = self.model.look(rows, self.glance(rows), tokens)
        return self.features

    @torch.no_grad()
    def score(self, rows: Batch, decision: Decision) -> Tensor:
        return self.model.score(rows, self.encode(rows, decision.tokens), decision.tokens)

    @torch.no_grad()
    def probability(self, rows: Batch, decision: Decision) -> Tensor:
        return self.model.forced(rows, self.encode(rows, decision.tokens), decision.tokens).loglik.exp()

    @torch.no_grad()
    def scores(self, rows: Batch) -> Tensor:
        features, tokens = self._every_action(rows)
        return torch.stack([self.model.score(rows, features, t) for t in tokens.unbind(1)], dim=1)

    @torch.no_grad()
    def probabilities(self, rows: Batch) -> Tensor:
        features, tokens = self._every_action(rows)
        return torch.stack(
            [self.model.forced(rows, features, t).loglik.exp() for t in tokens.unbind(1)], dim=1
        )

    def _every_action(self, rows: Batch) -> tuple[Features, Tensor]:
        tokens = self.layout.actions.tokens(self._capacity(rows), self.layout.budget)
        return self.encode(rows, tokens.amax(1)), tokens

    def cost(self, rows: Batch, decision: Decision) -> Tensor:
        return self._flops(rows, decision.tokens) / self.unit

    def tokens(self, rows: Batch, decision: Decision) -> Tensor:
        return self.model.realise(decision.tokens, rows.size[rows.image_of]).sum(-1).float()

    def types(self, rows: Batch) -> Sequence[str]:
        return rows.types

    def decide(self, rows: Batch, policy: Policy) -> Decision:
        return policy.mode()

    def relaxed(self, rows: Batch, sample: Relaxed, reward: Reward, soft: bool = True) -> Tensor:
        """Every tile is encoded, since a skipped one must give its gradient; gates weigh their tokens. The
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
            features = self.encode(rows, every.long())
            chosen = keep > 0.5
            # a kept tile has its tokens; a skipped one, which weighs nothing, those that it would get if it
            # were kept as well
            one = torch.eye(capacity.shape[1], dtype=torch.bool, device=keep.device)
            tokens = [budget.tokens(chosen | one[t], capacity)[:, t] for t in range(len(one))]
            kept = budget.tokens(chosen, capacity)
            asked = torch.where(chosen, kept, torch.stack(tokens, dim=1))
            hard = self._flops(rows, kept) / self.unit
            single = one[-1] | one
            alone = [
                self._flops(rows, budget.tokens(s.expand_as(every), capacity)) / self.unit for s in single
            ]
            extra = torch.stack(alone, dim=1) - alone[-1][:, None]
        score = self.model.forced(rows, features, asked, gates=keep).loglik.exp()
        return reward(score, hard + ((keep - keep.detach()) * extra).sum(-1))

    def _capacity(self, rows: Batch) -> Tensor:
        return self.model.pyramid.capacity(rows.size)[rows.image_of]

    def _flops(self, rows: Batch, tokens: Tensor) -> Tensor:
        size = rows.size[rows.image_of]
        realised = self.model.realise(tokens, size)
        return self.model.cost(realised, size, self.model.prompt_tokens(rows)).flops.float()
