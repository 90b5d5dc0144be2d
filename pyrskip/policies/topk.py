"""Policy `topk`: so many tiles beside the glance, the best ones.

Axes: B batch, F = T - 1 tiles beside the glance, T tiles, K selections of a row.

The budget b is a share of a row's tiles, learned of each question and price, or given. A number between two
whole ones is one of them by chance, b on average. Of so many tiles every set is possible, as likely as
exp(sum of its tiles' logits): the probabilities that tiles are kept sum to b, as those of a soft top-k do
(VisionSelector, arXiv:2510.16598), a sample keeps just so many, and the likeliest set is the top-k that
inference runs. Sums over all sets of a size are elementary symmetric polynomials; one loop over the tiles
finds them. A sample's gradient is that of these probabilities (SIMPLE, arXiv:2210.01941).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Decision
from pyrskip.observation import Layout, Observation
from pyrskip.policies.bernoulli import DependentPolicy, later
from pyrskip.policies.policy import POLICIES, Deciding, PolicyConfig, Relaxed
from pyrskip.policies.sampling import multilinear

NEVER = -1e9
"""A logit of what cannot be: finite, so that differences of two have gradients."""


@POLICIES.register("topk")
class TopKPolicy(DependentPolicy):
    """logit [B, T] float, the last tile's ignored; budget_logit [B]: of the share of a row's tiles that is
    kept; capacity [B, T] int64."""

    options = ("open_bias", "share")

    def __init__(
        self, logit: Tensor, budget_logit: Tensor, capacity: Tensor, actions: ActionSet, budget: BudgetRule
    ) -> None:
        super().__init__(logit, capacity, actions, budget)
        self.budget_logit = budget_logit.float()
        real = self.free.sum(-1).float()
        self.count = self.budget_logit.sigmoid() * real
        low = self.count.detach().floor()
        part = (self.count - low)[:, None]
        numbers = torch.arange(logit.shape[-1], device=logit.device)  # 0 to F
        is_low, is_high = numbers == low[:, None], numbers == (low + 1).minimum(real)[:, None]
        self.chance = is_low * (1 - part) + is_high * part
        self.sums = self._sums(self.logit)

    @classmethod
    def memory(cls, tiles: int) -> int:
        """The sums of every number of tiles, and what their gradients need: 6 floats each."""
        return 6 * 4 * tiles**2

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.tensor([0.0] * (layout.tiles - 1) + [config.open_bias])

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "TopKPolicy":
        share, layout = gate.config.share, gate.layout
        wanted = outputs[:, -1] if share is None else torch.full_like(outputs[:, -1], share).logit()
        return cls(outputs, wanted - gate.tilt, seen.capacity, layout.actions, layout.budget)

    def sample(self) -> Decision:
        return self.decide(self._drawn())

    def rsample(self, temperature: float) -> Relaxed:
        """Its gradient is that of the marginals of logits over the temperature."""
        soft = self._marginals(self.logit / temperature)
        keep = self._drawn().float() + (soft - soft.detach()) + self.forced.float()
        return Relaxed(keep, multilinear(keep, self.actions.selection) if self._enumerable else None)

    def log_probs(self, selection: Tensor) -> Tensor:
        kept = selection & self.free[:, None]
        number = kept.sum(-1)
        chance = self.chance.gather(1, number)
        log_chance = chance.where(chance > 0, 1.0).log()
        found = log_chance + (self.logit[:, None] * kept).sum(-1) - self.sums[-1].gather(1, number)
        return found.masked_fill(self.never(selection) | (chance <= 0), float("-inf"))

    def entropy(self) -> Tensor:
        log_chance = self.chance.where(self.chance > 0, 1.0).log()
        within = (self.chance * (self.sums[-1].clamp(min=NEVER / 2) - log_chance)).sum(-1)
        return within - (self.logit * self._marginals(self.logit) * self.free).sum(-1)

    def marginals(self) -> Tensor:
        return self._marginals(self.logit) + self.forced.float()

    def worth(self, selection: Tensor) -> Tensor:
        """The sum of the kept logits, of the selections nearest to the budget."""
        kept = selection & self.free[:, None]
        off = (kept.sum(-1) - self.count.round()[:, None]).abs()
        return (self.logit[:, None] * kept).sum(-1) + NEVER * off

    @property
    def wanted(self) -> Tensor:
        """The best tiles, as many as the likelier of the two numbers says."""
        stay = (later(self.rank).transpose(1, 2) & self.free[:, None]).sum(-1)
        return self.free & (stay < self.count.round()[:, None])

    def nearest(self) -> Tensor:
        """Between the last tile that is wanted and the first that is not, and to the next number of tiles."""
        wanted, inf = self.wanted, float("inf")
        last = self.logit.masked_fill(~wanted, inf).amin(-1)
        first = self.logit.masked_fill(wanted | ~self.free, -inf).amax(-1)
        real = self.free.sum(-1)
        turns = [((self.count.round() + half) / real) for half in (-0.5, 0.5)]
        near = [
            (self.budget_logit - turn.clamp(1e-6, 1 - 1e-6).logit())
            .abs()
            .masked_fill((turn < 0) | (turn > 1), inf)
            for turn in turns
        ]
        return torch.minimum(last - first, torch.minimum(*near)).nan_to_num(inf, inf)

    def _sums(self, logit: Tensor) -> list[Tensor]:
        """Log of the summed weight of all sets of 0 to F tiles among the first t, [B, F + 1], for each t from
        0 to F."""
        empty = torch.arange(logit.shape[-1], device=logit.device) == 0
        found = [torch.where(empty, 0.0, NEVER).expand(logit.shape)]
        for of_tile in logit.where(self.free, NEVER)[:, :-1].unbind(1):
            one_more = F.pad(found[-1][:, :-1], (1, 0), value=NEVER) + of_tile[:, None]
            found.append(torch.logaddexp(found[-1], one_more.clamp(min=NEVER)))
        return found

    def _keeps(self, logit: Tensor, sums: list[Tensor], tile: int) -> Tensor:
        """The chance that a tile is kept where 0 to F are left to keep of it and those before it, [B, F +
        1]."""
        fewer = F.pad(sums[tile][:, :-1], (1, 0), value=NEVER)
        chance = (logit[:, tile, None] + fewer - sums[tile + 1]).clamp(max=0).exp()
        return chance * self.free[:, tile, None] * (fewer > NEVER / 2)

    def _marginals(self, logit: Tensor) -> Tensor:
        """[B, T], 0 of the glance."""
        sums = self.sums if logit is self.logit else self._sums(logit)
        left, found = self.chance, [torch.zeros_like(self.chance[:, 0])]
        for tile in reversed(range(logit.shape[-1] - 1)):
            kept = left * self._keeps(logit, sums, tile)
            found.insert(0, kept.sum(-1))
            left = left - kept + F.pad(kept[:, 1:], (0, 1))
        return torch.stack(found, dim=1)

    def _drawn(self) -> Tensor:
        """Random tiles [B, T] bool, without the glance."""
        with torch.no_grad():
            number = (self.count.floor() + (torch.rand_like(self.count) < self.count.frac())).long()
            found = [torch.zeros_like(number, dtype=torch.bool)]
            for tile in reversed(range(self.logit.shape[-1] - 1)):
                chance = self._keeps(self.logit, self.sums, tile).gather(1, number[:, None]).squeeze(1)
                found.insert(0, torch.rand_like(chance) < chance)
                number = number - found[0].long()
            return torch.stack(found, dim=1)
