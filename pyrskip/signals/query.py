"""Signal `query`: the words of the question, encoded."""

from collections.abc import Sequence

from torch import Tensor

from pyrskip.models.tiers import GatedModel
from pyrskip.signals.signal import SIGNALS, Signal


@SIGNALS.register("query")
class Query(Signal):
    """query [B, W, Q] float32 and query_mask [B, W] bool."""

    per = "text"
    source = "question"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.encoder = model.text.encoder
        self.shapes = {"query": (None, model.text.width), "query_mask": (None,)}

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        ids, mask = source
        return self.encoder(ids, mask), mask

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        words = model.text.tokenize(texts)[1].sum(-1)
        return model.text.flops(words) * model.convention.per_mac / 2
