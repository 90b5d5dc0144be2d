"""Policy `evidence`: every kept tile may show what the answer needs, on its own. The tiles are kept that
raise the predicted score by more than they cost, the best of a unit of cost first.

Axes: B batch, T tiles, K selections of a row.

Output t is a logit: of the chance r_t that tile t shows enough. The answer is wrong where no kept tile does,
a noisy-or (Pearl 1988): P(right | kept) = 1 - prod over kept t of (1 - r_t). The glance is always kept, so
its r is what an answer is worth without any other tile. What a tile adds shrinks by the same factor for all
others as tiles are added, so that greedy search is a sort by r_t over cost_t, and what is kept is the front
of that order. The price is arithmetic here and no input of the gate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.policies.policy import POLICIES, Deciding, Limit, PolicyConfig

SHOWS, GLANCE = -3.0, 0.0
"""Where a tile's logit, and the glance's, start: tiles alike, and half of the answers right."""


@POLICIES.register("evidence")
class EvidencePolicy(BernoulliPolicy):
    """outputs [B, T]: logits of r; cost [B, T]: what each tile adds to the relative cost; price [B]; it
    samples at a temperature, in score: every tile on its own, by what it adds where greedy search comes to
    it."""

    options = ("temperature",)
    dial = False
    by_tile = False

    def __init__(
        self,
        outputs: Tensor,
        cost: Tensor,
        price: Tensor,
        capacity: Tensor,
        actions: ActionSet,
        budget: BudgetRule,
        temperature: float,
    ) -> None:
        super().__init__(outputs, capacity, actions, budget)
        self.outputs, self.temperature = self.logit, temperature
        self.charge = price[:, None] * cost
        ratio = outputs.sigmoid() / cost.clamp(min=1e-9)
        self.rank = ratio.masked_fill(~self.free, -1.0)
        order = self.rank.sort(dim=-1, descending=True).indices
        miss = (F.logsigmoid(-self.outputs) * (self.free | self.forced)).gather(-1, order)
        glance = F.logsigmoid(-self.outputs[:, -1:]) * self.forced[:, -1:]
        before = miss.cumsum(-1) - miss + glance
        place = order.sort(dim=-1).indices
        self.before = before.exp().gather(-1, place)
        self.logit = (self.before * outputs.sigmoid() - self.charge) / temperature

    @classmethod
    def check(
        cls,
        config: PolicyConfig,
        actions: ActionConfig,
        budget: BudgetRule,
        grid: tuple[int, ...],
        listless: bool = False,
    ) -> None:
        super().check(config, actions, budget, grid, listless)
        if sum(g * g for g in grid) > len(grid) and not actions.drawn:
            raise UserError(
                f"gate.policy={config.policy} with pyramid.grid={list(grid)} and actions.drawn=0 learns from "
                "selections of single tiles, and rollouts would hold none; allowed: actions=regions, or "
                "pyramid.grid=[1]"
            )

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.tensor([SHOWS] * (layout.tiles - 1) + [GLANCE])

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "EvidencePolicy":
        layout, price = gate.layout, seen.price + gate.tilt
        cost = layout.tile_costs(seen.cost, seen.capacity)
        temperature = gate.config.temperature
        return cls(outputs, cost, price, seen.capacity, layout.actions, layout.budget, temperature)

    def worth(self, selection: Tensor) -> Tensor:
        """Predicted score - price x cost."""
        kept = selection & (self.free | self.forced)[:, None]
        return -missed(self.outputs, kept).expm1() - (kept * self.charge[:, None]).sum(-1)

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """In score; near also where the order of a kept tile and one that is not is nearly another."""
        nearest = self.logit.abs().masked_fill(~self.free, float("inf")).amin(-1) * self.temperature
        kept = decision.selection & self.free
        last = self.rank.masked_fill(~kept, float("inf")).amin(-1)
        first = self.rank.masked_fill(kept | ~self.free, -float("inf")).amax(-1)
        # the gap as a share, of what the tiles show
        return torch.minimum(nearest, (1 - first / last).abs().nan_to_num(float("inf")))


def missed(outputs: Tensor, selection: Tensor) -> Tensor:
    """Log of the chance that no kept tile shows enough. outputs [B, T] logits, selection [B, K, T] bool ->
    [B, K] <= 0."""
    return (F.logsigmoid(-outputs)[:, None] * selection).sum(-1)
