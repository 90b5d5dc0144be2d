"""Policy `autoregressive`: tiles choose in turn, the coarsest first, each knowing what was chosen before. All
combinations are listed, so it is a categorical distribution with structured logits.

Axes: B batch, F = T - 1 tiles beside the glance, R choices of a tile, S actions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.decision import ActionSet
from pyrskip.observation import Layout, Observation
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import POLICIES, Deciding, PolicyConfig, listed
from pyrskip.policies.rungs import choices_of, opening
from pyrskip.transfer import sent


@POLICIES.register("autoregressive")
class AutoregressivePolicy(CategoricalPolicy):
    """Outputs: a logit for every choice of every tile, and how the coarser tiles' choices move them."""

    options = ("open_bias",)
    by_tile = True
    relaxed = False

    @classmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        alone = opening(config, layout)
        return torch.cat([alone, torch.zeros(len(alone) ** 2)])

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "AutoregressivePolicy":
        layout = gate.layout
        tiles, kept = layout.tiles - 1, layout.actions.choices - 1
        coupling = outputs[:, tiles * kept :].unflatten(1, (tiles, kept, tiles, kept))
        coupling = F.pad(coupling, (1, 0, 0, 0, 1, 0))
        logit = chained(choices_of(outputs, layout), coupling, layout.actions)
        return cls(logit - gate.tilt * seen.cost, listed(seen, layout), layout.actions)


def chained(choice: Tensor, coupling: Tensor, actions: ActionSet) -> Tensor:
    """Log-probability of each action, [B, S].

    choice [B, F, R]: logits of the tiles beside the glance; coupling [B, F, R, F, R]: what choice [u, q] of a
    coarser tile u adds to logit [t, r] of a finer one, t < u (entries with t >= u do not count). Fully
    visible sigmoid belief net (Neal 1992), of R choices.
    """
    chosen = F.one_hot(sent(actions.steps, choice.device)[:, :-1], choice.shape[-1]).to(choice)
    tiles = torch.arange(choice.shape[1], device=choice.device)
    before = chosen[:, None] * (tiles[:, None] < tiles)[None, :, :, None].to(
        choice
    )  # [S, t, u, q]: u chose before t
    logit = choice[:, None] + torch.einsum("btruq,stuq->bstr", coupling, before)
    return (logit.log_softmax(-1) * chosen).sum((-1, -2))
