"""Policy `quadtree`: from coarse to fine, a tile is kept only under a kept tile of the next coarser level.

Axes: B batch, T tiles, K selections of a row, G tiles a side of a level.

Every set of tiles that is nested so is possible, as likely as exp(sum of its tiles' logits): a coarse tile is
worth what it shows itself and what is worth keeping under it. That is a tree-structured random field, whose
sums and maxima over all sets are exact, in one pass from the finest level up (Pearl 1988): the log-odds of a
tile under its kept parent are its logit and, of every tile under it, softplus of that one's log-odds. The
tiles of the coarsest level beside the glance lie under the glance, which is always kept. A gate that `looks`
decides level by level instead (`pyrskip.policies.descent`).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.policies.bernoulli import DependentPolicy, TilePolicy
from pyrskip.policies.descent import DescentPolicy, LevelHead
from pyrskip.policies.nested import blocks, by_level, one_line, spread
from pyrskip.policies.policy import POLICIES, Deciding, PolicyConfig, Relaxed
from pyrskip.policies.sampling import gumbel_sigmoid, multilinear
from pyrskip.transfer import sent

NEVER = -1e9
"""A logit of a tile that is padding: finite, so that its gradient is."""


@POLICIES.register("quadtree")
class QuadtreePolicy(DependentPolicy):
    """logit [B, T] float, the last tile's, the glance's, ignored; grid: tiles a side of each level, finest
    first, each a multiple of the next."""

    options = ("open_bias", "looks")

    def __init__(
        self, logit: Tensor, grid: tuple[int, ...], capacity: Tensor, actions: ActionSet, budget: BudgetRule
    ) -> None:
        super().__init__(logit, capacity, actions, budget)
        self.grid = grid
        self.odds = self._upward(F.softplus)  # of a tile under its kept parent, in logs
        self.total = F.softplus(self.odds)[:, self._coarsest].sum(-1)  # of all sets, in logs
        self.gain = self._upward(lambda gain: gain.clamp(min=0))  # of keeping a tile and the best under it
        self.rank = self._ranks()

    @classmethod
    def check(
        cls,
        config: PolicyConfig,
        actions: ActionConfig,
        budget: BudgetRule,
        grid: tuple[int, ...],
        listless: bool = False,
    ) -> None:
        check_nested(config, grid)
        super().check(config, actions, budget, grid, listless)

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        """Every tile's log-odds under its kept parent are open_bias. Raises UserError as `check_nested`."""
        check_nested(config, layout.grid)
        under = [0, *((fine // coarse) ** 2 for fine, coarse in pairwise(layout.grid))]
        each = F.softplus(torch.tensor(config.open_bias))
        levels = zip(layout.grid, under, strict=True)
        return torch.cat([(config.open_bias - n * each).expand(g * g) for g, n in levels])

    @classmethod
    def build_head(cls, config: PolicyConfig, layout: Layout) -> nn.Module:
        check_nested(config, layout.grid)
        return LevelHead(config, layout) if config.looks else super().build_head(config, layout)

    @classmethod
    def build_tile_head(cls, config: PolicyConfig, layout: Layout) -> nn.Module:
        check_nested(config, layout.grid)
        return LevelHead(config, layout) if config.looks else super().build_tile_head(config, layout)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> TilePolicy:
        layout = gate.layout
        if gate.config.looks:
            return DescentPolicy.of(outputs, seen, gate)
        share = seen.capacity / seen.capacity.sum(-1, keepdim=True)
        return cls(outputs - gate.tilt * share, layout.grid, seen.capacity, layout.actions, layout.budget)

    def sample(self) -> Decision:
        return self.decide(self._downward((torch.rand_like(self.odds) < self.odds.sigmoid()).float()) > 0)

    def rsample(self, temperature: float) -> Relaxed:
        keep = self._downward(gumbel_sigmoid(self.odds, temperature)) + self.forced.float()
        return Relaxed(keep, multilinear(keep, self.actions.selection) if self._enumerable else None)

    def log_probs(self, selection: Tensor) -> Tensor:
        kept = selection & self.free[:, None]
        lonely = (kept & (self._of_parents(kept.float()) == 0)).any(-1)
        found = (self.logit[:, None] * kept).sum(-1) - self.total[:, None]
        return found.masked_fill(self.never(selection) | lonely, float("-inf"))

    def entropy(self) -> Tensor:
        return self.total - (self.logit * self._downward(self.odds.sigmoid())).sum(-1)

    def marginals(self) -> Tensor:
        return self._downward(self.odds.sigmoid()) + self.forced.float()

    def worth(self, selection: Tensor) -> Tensor:
        return self.log_probs(selection)

    @property
    def wanted(self) -> Tensor:
        return self._downward((self.gain > 0).float()) > 0

    def nearest(self) -> Tensor:
        """Of the tiles under kept ones the one that nearly changes sides, where its logit moves and so do all
        those below it."""
        below = [1]
        for fine, coarse in pairwise(self.grid):
            below.append(1 + (fine // coarse) ** 2 * below[-1])
        size = torch.cat([torch.full((g * g,), float(n)) for g, n in zip(self.grid, below, strict=True)])
        apart = self.gain.abs() / size.to(self.gain)
        asked = self.free & (self._of_parents(self.wanted.float()) > 0)
        return apart.masked_fill(~asked, float("inf")).amin(-1)

    def exchangeable(self) -> Tensor:
        """A tile always goes after those that lie under it."""
        return ~sent(one_line(self.grid), self.logit.device)

    @property
    def _coarsest(self) -> slice:
        """The tiles that lie under the glance."""
        return slice(self.logit.shape[-1] - 1 - self.grid[-2] ** 2, self.logit.shape[-1] - 1)

    def _upward(self, passed: Callable[[Tensor], Tensor]) -> Tensor:
        """Of each tile its logit and what the tiles under it pass on, [B, T]; 0 of the glance."""
        found, under = list[Tensor](), None
        levels = by_level(self.logit.where(self.free, NEVER), self.grid)[:-1]
        for level in levels:
            own = level if under is None else level + blocks(under, level.shape[-1]).sum((-1, -3))
            found.append(own.flatten(-2))
            under = passed(own)
        return F.pad(torch.cat(found, dim=-1), (0, 1))

    def _downward(self, own: Tensor) -> Tensor:
        """Products from the glance down to each tile of what each gives [..., T]; 0 of the glance."""
        levels = by_level(own, self.grid)[:-1]
        found = [levels[-1]]
        for level in reversed(levels[:-1]):
            found.insert(0, level * spread(found[0], level.shape[-1]))
        return F.pad(torch.cat([level.flatten(-2) for level in found], dim=-1), (0, 1))

    def _of_parents(self, values: Tensor) -> Tensor:
        """What the tile above each has, [..., T] -> [..., T]; 1 of the glance and of those under it."""
        levels = by_level(values, self.grid)[:-1]
        above = [spread(coarse, fine.shape[-1]) for fine, coarse in pairwise(levels)]
        found = [level.flatten(-2) for level in [*above, torch.ones_like(levels[-1])]]
        return F.pad(torch.cat(found, dim=-1), (0, 1), value=1.0)

    def _ranks(self) -> Tensor:
        """The highest logit of a tile and of those that the mode keeps under it, [B, T]."""
        found, under = list[Tensor](), None
        kept = by_level(self.wanted, self.grid)
        for level, on in zip(by_level(self.logit, self.grid), kept, strict=True):
            best = level if under is None else level.maximum(blocks(under, level.shape[-1]).amax((-1, -3)))
            found.append(best.flatten(-2))
            under = best.where(on, NEVER)
        return torch.cat(found, dim=-1)


def check_nested(config: PolicyConfig, grid: tuple[int, ...]) -> None:
    """Raises UserError unless every tile lies under one of the next coarser level."""
    if not grid or any(fine % coarse for fine, coarse in pairwise(grid)):
        raise UserError(
            f"gate.policy={config.policy} with pyramid.grid={list(grid)}: it keeps a tile under one of the "
            "next coarser level, and these do not nest; allowed: each number a multiple of the next, such as "
            "[4, 2, 1]"
        )
