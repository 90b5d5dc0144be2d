"""Policy `quadtree` of a gate that `looks`: level by level, each decided in view of what the kept tiles of
coarser levels show.

Axes: B batch, T tiles, n tiles of a level, C channels of the encoder's map, D hidden width.

A step decides on the tiles of one level that lie under kept ones, all at once and each by itself given what
has been seen; what it keeps is encoded before the next step. The state of a tile is what the trunk read of it
(question, glance, price), what the tile above shows at its place, and the mean of all that kept tiles have
shown. So the log-odds of a tile are those under its kept parent. What is kept on the finest level shows
nothing to anybody, and is left to the answer to encode.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation, RevealLevel
from pyrskip.policies.bernoulli import TilePolicy
from pyrskip.policies.nested import levels_of, under
from pyrskip.policies.policy import Deciding, Limit, PolicyConfig, Relaxed, clip, limit_of
from pyrskip.transfer import sent


class LevelHead(nn.Linear):
    """From what the trunk read, [B, D] or of each tile [B, T, D], to the part of each tile's state that the
    observation fixes, [B, T, D]; and what the rest of the state and the log-odds are made of."""

    def __init__(self, config: PolicyConfig, layout: Layout) -> None:
        super().__init__(config.width, config.width)
        channels = layout.width("glance", 0)
        self.place = nn.Parameter(torch.randn(layout.tiles, config.width) * config.width**-0.5)
        self.norm = nn.LayerNorm(channels)
        self.above = nn.Linear(channels, config.width, bias=False)
        self.kept = nn.Linear(channels, config.width, bias=False)
        self.out = nn.Linear(config.width, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.start = nn.Parameter(torch.full((layout.tiles,), config.open_bias))

    def forward(self, hidden: Tensor) -> Tensor:
        fixed = super().forward(hidden)
        return (fixed if fixed.ndim == 3 else fixed[:, None]) + self.place

    def logits(self, fixed: Tensor, tiles: slice, above: Tensor, kept: Tensor) -> Tensor:
        """Log-odds of a level's tiles, each under a kept parent. fixed [B, n, D]; above [B, n, C]: what the
        tiles above show; kept [B, C]: the mean of all that was shown -> [B, n]."""
        state = fixed + self.above(self.norm(above)) + self.kept(self.norm(kept))[:, None]
        logit: Tensor = self.out(F.gelu(state)).squeeze(-1) + self.start[tiles]
        return logit


@dataclass(frozen=True)
class Step:
    """Of a level's tiles the log-odds and whether they lie under kept ones, [B, n] each; tiles: where they
    are among all; kept [B, T] bool: what coarser levels keep."""

    logit: Tensor
    asked: Tensor
    tiles: slice
    kept: Tensor


@dataclass(frozen=True)
class Descent:
    """An episode, [B, T] each: log-odds of each tile, whether it lay under a kept one and so was asked about,
    and what was kept."""

    logit: Tensor
    asked: Tensor
    kept: Tensor


class DescentPolicy(TilePolicy):
    """state [B, T, D]: what the observation fixes of each tile's; grid: tiles a side of each level, finest
    first, each a multiple of the next."""

    def __init__(
        self,
        head: LevelHead,
        state: Tensor,
        reveal: RevealLevel,
        grid: tuple[int, ...],
        capacity: Tensor,
        actions: ActionSet,
        budget: BudgetRule,
    ) -> None:
        super().__init__(capacity, actions, budget)
        self.head, self.state, self.reveal, self.grid = head, state.float(), reveal, grid

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.zeros(config.width)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "DescentPolicy":
        if seen.reveal_level is None:
            raise UserError(
                "gate.looks=true decides on features of what it has kept, and this rollout table holds none; "
                "allowed: rule.online=true, or gate.looks=false"
            )
        assert isinstance(gate.head, LevelHead)
        layout = gate.layout
        return cls(
            gate.head, outputs, seen.reveal_level, layout.grid, seen.capacity, layout.actions, layout.budget
        )

    def sample(self) -> Decision:
        return self.decide(
            self._descend(lambda step: torch.rand_like(step.logit) < step.logit.sigmoid()).kept
        )

    def rsample(self, temperature: float) -> Relaxed:
        raise UserError(
            "gate.looks=true cannot be relaxed: what it would see of a tile depends on a hard choice"
        )

    def log_prob(self, decision: Decision) -> Tensor:
        selection, found = decision.selection, self.along(decision)
        own = F.binary_cross_entropy_with_logits(found.logit, selection.float(), reduction="none")
        lonely = (selection & self.free & ~found.asked).any(-1)
        never = self.never(selection[:, None]).squeeze(1) | lonely
        return -(own * found.asked).sum(-1).masked_fill(never, float("inf"))

    def entropy(self) -> Tensor:
        """That of the steps along one random episode: right on average."""
        found = self.along(self.sample())
        own = F.binary_cross_entropy_with_logits(found.logit, found.logit.sigmoid(), reduction="none")
        return (own * found.asked).sum(-1)

    def marginals(self) -> Tensor:
        """Those of the steps along the mode's episode; 0 of tiles that it is not asked about."""
        found = self._greedy(None)
        return found.logit.sigmoid() * found.asked + self.forced.float()

    @property
    def probs(self) -> Tensor | None:
        return None

    def mode(self, max_tokens: Limit = None) -> Decision:
        """The likeliest choice of every step. A limit is spent on coarser levels first, and of a level on the
        likeliest tiles."""
        limit = None if max_tokens is None else limit_of(max_tokens, self.state)
        decision = self.decide(self._greedy(limit).kept)
        return decision if limit is None else clip(decision, limit)

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """That of the closest step: by how much a tile is wanted or not; and, under a limit, the nearest two
        of a level of which one has gone first."""
        found = self.along(decision)
        nearest = found.logit.abs().masked_fill(~found.asked, float("inf")).amin(-1)
        wanted, level = found.asked & (found.logit > 0), sent(levels_of(self.grid), self.state.device)
        pairs = (wanted & ~found.kept)[:, :, None] & (wanted & found.kept)[:, None]
        apart = (found.logit[:, :, None] - found.logit[:, None]).abs()
        apart = apart.masked_fill(~(pairs & (level[:, None] == level)), float("inf"))
        return torch.minimum(nearest, apart.amin((-1, -2)))

    def along(self, decision: Decision) -> Descent:
        """The episode that ends in a decision."""
        selection = decision.selection
        return self._descend(lambda step: selection[:, step.tiles])

    def _greedy(self, limit: Tensor | None) -> Descent:
        """The mode's episode, of at most limit [B] tokens."""

        def choose(step: Step) -> Tensor:
            wanted = step.asked & (step.logit > 0)
            if limit is None:
                return wanted
            around = step.tiles.start, self.state.shape[1] - step.tiles.stop
            wanted, rank = (F.pad(of, around) for of in (wanted, step.logit))
            return self.fitting(wanted, rank, step.kept, limit)[:, step.tiles]

        return self._descend(choose)

    def _descend(self, choose: Callable[[Step], Tensor]) -> Descent:
        """Play an episode: choose(step) -> choice [B, n] bool; what it says of tiles that are not asked about
        does not count."""
        kept = self.forced
        on, count = kept[:, -1:], torch.zeros_like(self.state[:, :1, 0])
        shown = self.state.new_zeros(len(count), self.head.above.in_features)
        # the glance is not asked about
        logits, asks = [self.state[:, -1:, 0].detach()], [torch.zeros_like(on)]
        for level in reversed(range(len(self.grid) - 1)):
            start, side = sum(g * g for g in self.grid[:level]), self.grid[level]
            tiles = slice(start, start + side * side)
            above = self.reveal(level + 1, on).float()
            asked = self.free[:, tiles] & under(on, self.grid[level + 1], side)
            shown, count = shown + (above * asked[..., None]).sum(1), count + asked.sum(-1, keepdim=True)
            logit = self.head.logits(self.state[:, tiles], tiles, above, shown / count.clamp(min=1))
            on = asked & choose(Step(logit, asked, tiles, kept))
            kept = torch.cat([kept[:, :start], on, kept[:, tiles.stop :]], dim=1)
            logits.insert(0, logit)
            asks.insert(0, asked)
        return Descent(torch.cat(logits, dim=1), torch.cat(asks, dim=1), kept)
