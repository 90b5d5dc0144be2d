"""Policy `rungs`: every tile takes one of its choices on its own; the action set lists every combination.

Axes: B batch, F = T - 1 tiles beside the glance, R choices of a tile, S actions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import ActionSet, Candidates
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import POLICIES, Deciding, PolicyConfig, Relaxed, listed
from pyrskip.policies.sampling import gumbel_softmax
from pyrskip.transfer import sent


@POLICIES.register("rungs")
class RungsPolicy(CategoricalPolicy):
    """choice [B, F, R] float: logits of what is asked of each tile but the glance; bias [B, S]: added to the
    actions' logits."""

    options = ("open_bias",)
    by_tile = True
    # a sample weighs a tile's tokens: it has no gradient between one number of them and another
    relaxed_online = False

    def __init__(
        self, choice: Tensor, candidates: Candidates, actions: ActionSet, bias: Tensor | float = 0.0
    ) -> None:
        self.choice = choice.float()
        super().__init__(independent(self.choice, actions) + bias, candidates, actions)

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        return opening(config, layout)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "RungsPolicy":
        choice = choices_of(outputs, gate.layout)
        return cls(choice, listed(seen, gate.layout), gate.layout.actions, -gate.tilt * seen.cost)

    def rsample(self, temperature: float) -> Relaxed:
        picked = gumbel_softmax(self.choice, temperature)
        weight = picked[:, 0]
        for tile in range(1, picked.shape[1]):
            weight = (weight[:, :, None] * picked[:, None, tile]).flatten(1)
        return Relaxed(F.pad(1 - picked[..., 0], (0, 1), value=1.0), weight)


def check_complete(config: PolicyConfig, layout: Layout) -> None:
    """Raises UserError unless the actions list every combination of the tiles' choices."""
    if not layout.actions.complete:
        raise UserError(
            f"gate.policy={config.policy} chooses level by level, but the action set of "
            f"{len(layout.actions)} does not list every combination for {layout.tiles} tiles; allowed: "
            "gate.policy=categorical, or pyramid.grid=[1]"
        )


def opening(config: PolicyConfig, layout: Layout) -> Tensor:
    """[F x (R - 1)]: logits that are higher the more a choice keeps. Raises UserError as `check_complete`."""
    check_complete(config, layout)
    kept = layout.actions.choices - 1
    return (config.open_bias * torch.arange(1, kept + 1) / kept).repeat(layout.tiles - 1)


def choices_of(outputs: Tensor, layout: Layout) -> Tensor:
    """Outputs [B, F x (R - 1) or more] -> [B, F, R]. To skip is every tile's choice 0, and its logit 0: a
    second free logit would double every step that is learned."""
    tiles, kept = layout.tiles - 1, layout.actions.choices - 1
    return F.pad(outputs[:, : tiles * kept].unflatten(1, (tiles, kept)), (1, 0))


def independent(choice: Tensor, actions: ActionSet) -> Tensor:
    """Log-probability of each action where tiles choose on their own. choice [B, F, R] logits -> [B, S]."""
    one_hot = F.one_hot(sent(actions.steps, choice.device)[:, :-1], choice.shape[-1]).to(choice)
    return choice.log_softmax(-1).flatten(1) @ one_hot.flatten(1).T
