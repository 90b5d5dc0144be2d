"""Signals: the named inputs of gates.

Axes: B questions, I images, W words, C channels, h x w cells of the glance, V vocabulary.

A signal is a function of (model, batch) with its cost. It names the source that it is computed from, so that
a service that has the source, and no model, can compute it from an exported graph; and it says what it is a
function of, so that a rollout table keeps it once a question, text or image.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pyrskip.errors import UserError
from pyrskip.models.tiers import Features, GatedModel
from pyrskip.observation import Shape
from pyrskip.registry import Registry
from pyrskip.sample import Batch

Per = Literal["question", "text", "image"]
PER: tuple[Per, ...] = ("question", "text", "image")

SIGNALS: "Registry[type[Signal]]" = Registry("signal", "docs/extending-models.md")


class Signal(nn.Module):
    """per: what it is a function of. source: what `forward` is given, a name of SOURCES. shapes: name of each
    tensor that it gives -> the shape of one row; the first has the signal's own name.

    `forward` must be traceable by torch.export, and a row's values must depend on that row alone.
    """

    per: ClassVar[Per]
    source: ClassVar[str]
    shapes: Mapping[str, Shape]

    def __init__(self, model: GatedModel) -> None:
        """Takes what it needs of the model."""
        super().__init__()

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        """The source's tensors [B, ...] -> a tensor [B, ...] for each of `shapes`: themselves, where a signal
        makes nothing more of them."""
        return source

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        """What it costs beside what the answer runs anyway, in the cost model's unit. size [B, 2] of each
        text's image, rows and columns -> [B] float64."""
        return torch.zeros(len(texts), dtype=torch.float64)


def question(model: GatedModel, batch: Batch, features: Features) -> tuple[Tensor, ...]:
    """Ids [B, W] int64 and mask [B, W] bool, of the question encoder's tokenizer."""
    return model.text.tokenize(batch.texts)


def glance(model: GatedModel, batch: Batch, features: Features) -> tuple[Tensor, ...]:
    """The encoded glance [B, C, h, w] and its mask [B, h, w] bool, false in padding."""
    cells = model.pyramid.cells(batch.size)[:, model.pyramid.glance]
    maps = features.maps[model.pyramid.glance]
    grid = [torch.arange(n, device=maps.device) for n in maps.shape[-2:]]
    rows = grid[0][None, :, None] < cells[:, 0, None, None]
    columns = grid[1][None, None, :] < cells[:, 1, None, None]
    return maps.detach()[batch.image_of].float(), (rows & columns)[batch.image_of]


def pixels(model: GatedModel, batch: Batch, features: Features) -> tuple[Tensor, ...]:
    """The glance's pixels [B, 3, H, W] in 0..1 and their mask [B, H, W] bool, false in padding."""
    level = features.levels[-1] if features.levels else batch.glance
    if level is None:
        raise UserError(
            "a signal reads pixels, and cached maps hold none; allowed: data.cache=null, or another signal"
        )
    valid = model.pyramid.pixels(batch.size)[:, model.pyramid.glance]
    side = torch.arange(level.shape[-1], device=level.device)
    inside = (side[None, :, None] < valid[:, 0, None, None]) & (side[None, None, :] < valid[:, 1, None, None])
    return level[batch.image_of], inside[batch.image_of]


def first_token(model: GatedModel, batch: Batch, features: Features) -> tuple[Tensor, ...]:
    """Logits [B, V] of the answer's first token after the glance alone."""
    logits = model.first_token(batch, features)
    assert logits is not None, "the model has this source"
    return (logits,)


SOURCES = {"question": question, "glance": glance, "pixels": pixels, "first_token": first_token}
"""What signals are computed from -> how a model gives it for a batch whose glance is encoded."""


def signals_of(model: GatedModel, names: Collection[str] | None = None) -> dict[str, Signal]:
    """The model's signals by name: those asked for, or all that it has the source for. Raises UserError for
    one that it has not."""
    for name in names or ():
        if SIGNALS[name].source not in model.sources:
            raise UserError(
                f"signal {name!r} is computed from {SIGNALS[name].source}, which this model does not show; "
                f"allowed: {', '.join(n for n in SIGNALS if SIGNALS[n].source in model.sources)}"
            )
    wanted = SIGNALS if names is None else names
    return {name: SIGNALS[name](model) for name in wanted if SIGNALS[name].source in model.sources}


@torch.no_grad()
def read(
    signals: Mapping[str, Signal], model: GatedModel, batch: Batch, features: Features
) -> dict[str, Tensor]:
    """Every tensor of the signals, [B, ...], of a batch whose glance is encoded. They go where the model
    is."""
    sources = {name: SOURCES[name](model, batch, features) for name in {s.source for s in signals.values()}}
    found: dict[str, Tensor] = {}
    for signal in signals.values():
        found |= zip(signal.shapes, signal.to(model.device)(*sources[signal.source]), strict=True)
    return found


def shapes_of(signals: Mapping[str, Signal]) -> dict[str, Shape]:
    """Name of each tensor -> the shape of one row."""
    return {name: shape for signal in signals.values() for name, shape in signal.shapes.items()}
