"""Signal `answer_stats`: how sure the model is of its answer after the glance alone.

Cascades (FrugalGPT, Chen et al. 2023) and early exits (BranchyNet, Teerapittayanon et al. 2016) decide by
these numbers; here they are inputs beside question and glance. The model reads the glance once more for them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrskip.models.tiers import GatedModel
from pyrskip.signals.signal import SIGNALS, Signal


@SIGNALS.register("answer_stats")
class AnswerStats(Signal):
    """answer_stats [B, 3]: of the first token's distribution the largest probability, the second largest, and
    the entropy in nats."""

    per = "question"
    source = "first_token"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.shapes = {"answer_stats": (3,)}

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        log_probs = source[0].log_softmax(-1)
        probs = log_probs.exp()
        entropy = -(probs * log_probs).sum(-1, keepdim=True)
        return (torch.cat([probs.topk(2, dim=-1).values, entropy], dim=-1),)

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        return model.first_token_flops(texts, size)
