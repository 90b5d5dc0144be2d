"""A pruner that keeps the visual tokens most like a word of the question."""

import torch.nn.functional as F
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.pruners import PRUNERS, KeepingPruner, Prunable


@PRUNERS.register("toy_pruner")
class MostAlike(KeepingPruner):
    needs = ("text",)

    def keep(self, seen: Prunable) -> Tensor:
        words, real = seen.beside["text"]
        alike = F.normalize(seen.tokens, dim=-1) @ F.normalize(words, dim=-1).transpose(1, 2)
        return self.highest(alike.masked_fill(~real[:, None], -1.0).amax(-1), seen)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        return 2.0 * language.width * words * tokens
