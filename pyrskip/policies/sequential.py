"""The sequential policy: one tile after the other, the coarsest first, each decided in the state that the
choices so far have led to.

Axes: B batch, P prefixes of a row, T tiles, F = T - 1 tiles beside the glance, R choices a tile, S actions, C
channels of the encoder's map, D hidden width. Step h of the H = F steps of an episode decides on tile F - 1 -
h.

The state is what the trunk read (question, glance, price), the choices so far, their cost, and, where the
gate `looks`, the encoded features of what has been kept. A gate that does not look decides from question and
glance alone: its steps are then a way to write one distribution, enumerated like any other. One that looks
can be played only where there is something to look at: the environment hands out `reveal`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrskip.decision import ActionSet, Candidates, Decision
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation, Reveal
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import (
    POLICIES,
    Deciding,
    Limit,
    Policy,
    PolicyConfig,
    Relaxed,
    clip,
    limit_of,
    listed,
)
from pyrskip.policies.rungs import check_complete
from pyrskip.policies.sampling import draw
from pyrskip.transfer import sent


@dataclass(frozen=True)
class Steps:
    """An episode, [B, H] each: log-probability of the choice, entropy of the step's distribution, value of
    the state before.

    cost [B, H + 1]: relative cost of the choices so far, action [B, H + 1] the listed action that they are if
    nothing follows.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    cost: Tensor
    action: Tensor


class StepHead(nn.Module):
    """State -> logits of the next tile's choices and the state's value, each tile with a reading of its own.
    channels: of the features that it is shown, if any."""

    def __init__(
        self, width: int, tiles: int, choices: int, open_bias: float, channels: int | None = None
    ) -> None:
        super().__init__()
        self.finer, self.choices = tiles - 1, choices
        self.state = nn.Linear(self.finer * (choices + 1) + 1, width, bias=False)
        self.found = None if channels is None else nn.Linear(channels, width, bias=False)
        self.out = nn.Linear(width, self.finer * (choices - 1))
        # the critic shares what is read and moves none of it: its gradients drown the policy's, which then
        # collapses
        self.critic = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, self.finer))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            opening = open_bias * torch.arange(1, choices) / (choices - 1)
            self.out.bias.copy_(opening.repeat(self.finer))

    def state_of(
        self, context: Tensor, chosen: Tensor, cost: Tensor, tile: int, found: Tensor | None
    ) -> Tensor:
        """context [B, D]; chosen [B, P, F] int64, 0 where undecided; cost [B, P]; found [B, P, C] the sum of
        revealed features -> [B, P, D]."""
        place = torch.zeros(self.finer, device=cost.device)
        place[tile] = 1.0
        one_hot = nn.functional.one_hot(chosen, self.choices).flatten(2).float()
        state = torch.cat([one_hot, place.expand(*cost.shape, -1), cost[..., None]], dim=-1)
        hidden: Tensor = context[:, None] + self.state(state)
        if found is not None and self.found is not None:
            hidden = hidden + self.found(found)
        return hidden

    def logits(self, state: Tensor, tile: int) -> Tensor:
        """[..., D] -> [..., R], that to skip always 0."""
        own = slice(tile * (self.choices - 1), (tile + 1) * (self.choices - 1))
        logit = nn.functional.linear(nn.functional.gelu(state), self.out.weight[own], self.out.bias[own])
        return nn.functional.pad(logit, (1, 0))

    def value(self, state: Tensor, tile: int) -> Tensor:
        """[..., D] -> [...]."""
        value: Tensor = self.critic(state.detach())[..., tile]
        return value


class SequentialHead(nn.Linear):
    """From the trunk's hidden vector to the part of the state that the observation fixes, [B, D] -> [B, D];
    and the steps' head."""

    def __init__(self, config: PolicyConfig, layout: Layout) -> None:
        super().__init__(config.width, config.width)
        channels = layout.width("glance", 0) if config.looks else None
        self.steps = StepHead(config.width, layout.tiles, layout.actions.choices, config.open_bias, channels)


@POLICIES.register("sequential")
class SequentialPolicy(Policy):
    """context [B, D]: what the trunk read. cost [B, S]: relative cost of every action. tilt: what calibration
    adds to the price of a listed decision; a gate that looks has none. reveal: given where the gate looks."""

    options = ("open_bias", "looks")
    by_tile = True
    relaxed = False
    episodic = True

    def __init__(
        self,
        head: StepHead,
        context: Tensor,
        cost: Tensor,
        candidates: Candidates,
        actions: ActionSet,
        tilt: Tensor,
        reveal: Reveal | None = None,
    ) -> None:
        self.head, self.context, self.cost, self.candidates = head, context.float(), cost, candidates
        self.actions, self.reveal, self.radix = actions, reveal, sent(actions.radix, context.device)
        self.listed = None
        if reveal is None:
            self.listed = CategoricalPolicy(self._log_probs() - tilt * cost, candidates, actions)

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return torch.zeros(config.width)

    @classmethod
    def build_head(cls, config: PolicyConfig, layout: Layout) -> nn.Module:
        check_complete(config, layout)
        return SequentialHead(config, layout)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "SequentialPolicy":
        looks = gate.config.looks
        if looks and seen.reveal is None:
            raise UserError(
                "gate.looks=true decides on features of what it has kept, and this rollout table holds none; "
                "allowed: rule.online=true, or gate.looks=false"
            )
        assert isinstance(gate.head, SequentialHead)
        candidates, actions = listed(seen, gate.layout), gate.layout.actions
        reveal = seen.reveal if looks else None
        return cls(gate.head.steps, outputs, seen.cost, candidates, actions, gate.tilt, reveal)

    def sample(self) -> Decision:
        if self.listed is not None:
            return self.listed.sample()
        walked = self._walk(lambda _, logit: draw(logit))
        return self.candidates.take(walked[0])

    def rsample(self, temperature: float) -> Relaxed:
        if self.listed is None:
            raise UserError(
                "gate.looks=true cannot be relaxed: what it would see of a tile depends on a hard choice"
            )
        return self.listed.rsample(temperature)

    def log_prob(self, decision: Decision) -> Tensor:
        return (
            self.steps(decision).log_prob.sum(-1) if self.listed is None else self.listed.log_prob(decision)
        )

    def entropy(self) -> Tensor:
        """Exact where nothing is looked at, else that of the steps along one random episode: right on
        average."""
        if self.listed is not None:
            return self.listed.entropy()
        return self.steps(self.sample()).entropy.sum(-1)

    def marginals(self) -> Tensor:
        """Where the gate looks, those of the steps along the mode's episode."""
        if self.listed is not None:
            return self.listed.marginals()
        keeps: list[Tensor] = []

        def best(_: int, logit: Tensor) -> Tensor:
            keeps.insert(0, 1 - logit.softmax(-1)[:, 0])
            return logit.argmax(-1)

        self._walk(best)
        return torch.stack([*keeps, torch.ones_like(keeps[0])], dim=1)

    @property
    def probs(self) -> Tensor | None:
        return None if self.listed is None else self.listed.probs

    def mode(self, max_tokens: Limit = None) -> Decision:
        """The likeliest decision where all are enumerated; where the gate looks, the likeliest choice at
        every step."""
        if self.listed is not None:
            return self.listed.mode(max_tokens)
        limit = None if max_tokens is None else limit_of(max_tokens, self.cost)
        decision = self.candidates.take(self._walk(lambda _, logit: logit.argmax(-1), limit)[0])
        return decision if limit is None else clip(decision, limit)

    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """Where the gate looks, that of the closest step."""
        if self.listed is not None:
            return self.listed.margin(decision, max_tokens)
        chosen, apart = self._chosen(decision), []

        def follow(tile: int, logit: Tensor) -> Tensor:
            best = logit.gather(1, chosen[:, tile, None])
            others = logit.scatter(1, chosen[:, tile, None], float("-inf"))
            apart.append(best.squeeze(1) - others.amax(-1))
            return chosen[:, tile]

        self._walk(follow, None if max_tokens is None else limit_of(max_tokens, self.cost))
        return torch.stack(apart, dim=1).amin(-1)

    def steps(self, decision: Decision) -> Steps:
        """The episode that ends in a decision of the action set."""
        chosen = self._chosen(decision)
        return self._walk(lambda tile, _: chosen[:, tile])[1]

    def _chosen(self, decision: Decision) -> Tensor:
        """The choices of a decision of the action set, [B, T]."""
        assert decision.action is not None, "an episode ends in a decision of the list"
        return sent(self.actions.steps, decision.action.device)[decision.action]

    def prefixes(self, steps: Steps) -> list[Decision]:
        """The decisions before the first step of an episode and after each, if nothing followed."""
        return [self.candidates.take(action) for action in steps.action.unbind(1)]

    def _walk(
        self, choose: Callable[[int, Tensor], Tensor], limit: Tensor | None = None
    ) -> tuple[Tensor, Steps]:
        """Play an episode: choose(tile, logits [B, R]) -> choice [B]; no choice but 0 may lead to more tokens
        than limit [B].

        Returns the action [B] that it ends in, and its steps.
        """
        rows, finer, device = len(self.context), self.head.finer, self.context.device
        chosen = torch.zeros(rows, 1, finer, dtype=torch.int64, device=device)
        found = (
            None
            if self.head.found is None
            else torch.zeros(rows, 1, self.head.found.in_features, device=device)
        )
        actions = [torch.zeros(rows, dtype=torch.int64, device=device)]
        parts: list[tuple[Tensor, ...]] = []
        for tile in reversed(range(finer)):
            then = actions[-1][:, None] + self.radix[tile] * torch.arange(self.head.choices, device=device)
            spent = self.cost.gather(1, then[:, :1])
            state = self.head.state_of(self.context, chosen, spent, tile, found).squeeze(1)
            logit = self.head.logits(state, tile)
            if limit is not None:
                over = self.candidates.tokens.sum(-1).gather(1, then) > limit[:, None]
                logit = logit.masked_fill(over & (then != then[:, :1]), float("-inf"))
            choice = choose(tile, logit)
            log_probs = logit.log_softmax(-1)
            entropy = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
            parts.append(
                (log_probs.gather(1, choice[:, None]).squeeze(1), entropy, self.head.value(state, tile))
            )
            chosen = chosen.clone()
            chosen[:, 0, tile] = choice
            actions.append(then.gather(1, choice[:, None]).squeeze(1))
            if self.reveal is not None and found is not None and tile:
                found = found + self.reveal(tile, choice > 0)[:, None]
        log_prob, step_entropy, value = (torch.stack(column, dim=1) for column in zip(*parts, strict=True))
        action = torch.stack(actions, dim=1)
        return actions[-1], Steps(log_prob, step_entropy, value, self.cost.gather(1, action), action)

    def _log_probs(self) -> Tensor:
        """Log-probability of every listed action, [B, S]: the tree of prefixes, each evaluated once."""
        rows, finer, choices = self.context.shape[0], self.head.finer, self.head.choices
        chosen = torch.zeros(1, finer, dtype=torch.int64, device=self.context.device)
        total = torch.zeros(rows, 1, device=self.context.device)
        for tile in reversed(range(finer)):
            action = (chosen * self.radix).sum(-1)
            before = chosen.expand(rows, -1, -1)
            state = self.head.state_of(self.context, before, self.cost[:, action], tile, None)
            total = (total[..., None] + self.head.logits(state, tile).log_softmax(-1)).flatten(1)
            chosen = chosen.repeat_interleave(choices, dim=0)
            chosen[:, tile] = torch.arange(choices, device=chosen.device).repeat(len(chosen) // choices)
        return total.index_select(1, (chosen * self.radix).sum(-1).argsort())
