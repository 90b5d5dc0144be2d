"""A model that somebody else trained and serves, as a gate sees it: a black box, and encoders of the gate's
own.

Axes: B questions, T tiles. The black box answers and says what that costs. It shows nothing of its inside, so
the gate looks at the glance through an image encoder and at the question through a sentence encoder, and pays
for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrskip.cost import Cost
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import read_where
from pyrskip.models.native import CostConfig, NativeModel, PyramidConfig
from pyrskip.models.text import MiniLmText, TextConfig, TextEncoder
from pyrskip.models.tiers import Features
from pyrskip.models.tiles import encode_flops, encode_tiles
from pyrskip.models.vision import VisionConfig, VisionEncoder
from pyrskip.models.vlm.hf import HfConfig, HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.pruners import Pruner
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

BOXES: dict[str, Callable[[Any, Pyramid, CostConfig], HfVlm | RemoteModel]] = {
    "hf": HfVlm.from_pretrained,
    "remote": RemoteModel,
}
"""Name -> the black box of the config under that name, a pyramid and what counts."""
MODELS = ("native", *BOXES)


@dataclass(frozen=True)
class AnswererConfig:
    """Which model answers. name: 'native' (trained here), 'hf' (of the transformers library) or 'remote'
    (behind a server).

    hf, remote: read where the name says so.
    """

    name: str = "native"
    hf: HfConfig = field(default_factory=HfConfig, metadata=read_where("name", ("hf",)))
    remote: RemoteConfig = field(default_factory=RemoteConfig, metadata=read_where("name", ("remote",)))

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise unknown_name("model.name", self.name, MODELS)

    @property
    def served(self) -> bool:
        return self.name in BOXES

    @property
    def own(self) -> HfConfig | RemoteConfig:
        """The config of a served model."""
        assert self.served
        config: HfConfig | RemoteConfig = getattr(self, self.name)
        return config

    @property
    def sources(self) -> frozenset[str]:
        """What the model shows that signals are computed from."""
        return ServedModel.sources if self.served else NativeModel.sources

    @property
    def prunable(self) -> frozenset[str] | None:
        """What pruners may read beside visual tokens; None where the model does not show those."""
        return self.own.prunable if self.served else NativeModel.prunable

    @property
    def probable(self) -> bool:
        """Whether it tells the probability of a given answer."""
        return not self.served or self.own.probability


class ServedModel(nn.Module):
    """A `GatedModel` (pyrskip.models.tiers) around a black box. Only tiles that are asked for reach the black
    box, the glance alone reaches `vision`."""

    sources = frozenset({"question", "glance", "pixels"})

    def __init__(self, box: HfVlm | RemoteModel, vision: VisionEncoder, text: MiniLmText) -> None:
        super().__init__()
        self.box, self.vision = box, vision
        self.text: TextEncoder = text
        self.pyramid, self.reference, self.convention, self.at_once = (
            box.pyramid,
            box.reference,
            box.convention,
            box.at_once,
        )
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.vision.mean.device

    @property
    def encoded(self) -> int:
        return self.vision.encoded + self.box.encoded

    @property
    def pruner(self) -> Pruner | None:
        """Of the black box."""
        return self.box.pruner

    @pruner.setter
    def pruner(self, pruner: Pruner | None) -> None:
        self.box.pruner = pruner

    @property
    def as_run(self) -> HfVlm | None:
        """The model as its users run it, a box of one tile; None where that is `reference`, a selection."""
        return self.box.as_run

    def encode(self, batch: Batch, keep: Tensor) -> Features:
        return encode_tiles(self.vision, self.pyramid, batch, keep)

    def look(self, batch: Batch, features: Features, tokens: Tensor) -> Features:
        return features  # the box looks for itself

    def write(self, batch: Batch, features: Features, tokens: Tensor) -> list[str]:
        return self.box.answer(batch, tokens)

    def glance_flops(self, size: Tensor) -> Tensor:
        return encode_flops(self.vision, self.pyramid, size)[:, self.pyramid.glance]

    def first_token(self, batch: Batch, features: Features) -> None:
        return None

    def first_token_flops(self, texts: Sequence[str], size: Tensor) -> Tensor:
        return torch.zeros(len(texts), dtype=torch.float64)

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        return self.box.realise(asked, size)

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        return self.box.cost(realised, size, prompt_tokens)

    def prompt_tokens(self, batch: Batch) -> Tensor:
        return self.box.prompt_tokens(batch)

    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        return self.box.answer(batch, asked)

    def loglik(self, batch: Batch, asked: Tensor) -> Tensor | None:
        return self.box.loglik(batch, asked)


def check_served(config: AnswererConfig, vision: VisionConfig, text: TextConfig) -> None:
    """Refuse what a gate for a served model cannot be trained with, without loading anything."""
    config.own.check()
    if text.name == "embedding":
        raise UserError(
            f"text.name=embedding reads the native model's words, and model.name={config.name} has none to "
            "show; allowed: text=minilm"
        )
    if vision.weights == "none" or not vision.frozen:
        raise UserError(
            f"vision.weights={vision.weights}, frozen={vision.frozen}: the gate of a served model looks "
            "through an encoder that nothing trains; allowed: pretrained weights, frozen=true"
        )


def build_served(
    config: AnswererConfig, pyramid: PyramidConfig, vision: VisionConfig, text: TextConfig, cost: CostConfig
) -> ServedModel:
    """The configured black box and the gate's encoders. Raises UserError where one cannot be loaded."""
    check_served(config, vision, text)
    sight = VisionEncoder(vision)
    geometry = Pyramid(pyramid.size, pyramid.levels, sight.stride, tuple(pyramid.grid))
    return ServedModel(BOXES[config.name](config.own, geometry, cost), sight, MiniLmText(text.path))
