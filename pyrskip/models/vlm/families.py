"""Families of vision-language models of the transformers library: one row each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrskip.registry import Registry


@dataclass(frozen=True)
class Family:
    """What HfVlm must know of models of one `model_type` beside their config and their processor.

    towers, languages: model types of the vision towers and the language models that it knows. Such a tower
    takes pictures of one size and gives each the same number of tokens, and such a language model has gated
    MLPs of the sizes that its config names. features: (model, pixels [U, 3, H, W]) -> projected tokens
    [U, N, D].
    """

    towers: tuple[str, ...]
    languages: tuple[str, ...]
    features: Callable[[Any, Tensor], Tensor]


FAMILIES: Registry[Family] = Registry("model family")


def pooled(model: Any, pixels: Tensor) -> Tensor:
    """Image features that the model gives as one [N, D] a picture."""
    return torch.stack(tuple(model.get_image_features(pixels, return_dict=True).pooler_output))


FAMILIES.register(
    "llava",
    Family(
        towers=("clip_vision_model", "siglip_vision_model"),
        languages=("llama", "mistral", "qwen2"),
        features=pooled,
    ),
)
