"""The part of a third-party model that looks at pictures, run once a picture.

`forward` and `generate` of the transformers library take what towers made of pictures in place of the
pictures (`mm_encoder_outputs`), for the models that have it. So a picture is encoded alone, once, and what
was made of several is put together for each prompt that holds them.
"""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

GIVEN = "mm_encoder_outputs"
LAYERS = "deepstack_features"
"""A field of one entry a layer, where other fields have one a picture."""
FIELDS = ("last_hidden_state", "pooler_output", LAYERS)


def encodes_once(model: Any) -> bool:
    """Whether a model takes what its tower made of pictures in place of the pictures."""
    return GIVEN in signature(model.forward).parameters and hasattr(model.base_model, "get_image_features")


@torch.no_grad()
def encode(model: Any, inputs: dict[str, Any]) -> Any:
    """`look`, without gradients."""
    return look(model, inputs)


def look(model: Any, inputs: dict[str, Any]) -> Any:
    """What the tower and the projector make of the pictures of these inputs."""
    features = model.base_model.get_image_features
    taken = [name for name in signature(features).parameters if name in inputs]
    return features(**{name: inputs[name] for name in taken}, return_dict=True)


def tokens_of(made: Any) -> Tensor:
    """The visual tokens [V, D] in what was made of pictures, in their order."""
    seen = made.last_hidden_state if made.pooler_output is None else made.pooler_output
    parts = [seen] if isinstance(seen, Tensor) else seen
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def given(inputs: dict[str, Any], encoded: Sequence[Any]) -> dict[str, Any]:
    """The inputs without pixels, and with what was made of each picture, in the order of the prompt."""
    rest = {name: value for name, value in inputs.items() if not name.startswith("pixel_")}
    return rest | {GIVEN: {"image": joined(encoded)}} if encoded else rest


def joined(encoded: Sequence[Any]) -> Any:
    """One output of several pictures from one of each."""
    whole = copy.copy(encoded[0])
    for name in FIELDS:
        parts = [getattr(one, name, None) for one in encoded]
        if parts[0] is not None:
            # layers of different pictures belong together
            whole[name] = (
                [_join(layer) for layer in zip(*parts, strict=True)] if name == LAYERS else _join(parts)
            )
    return whole


def _join(parts: Sequence[Any]) -> Any:
    """Tensors one behind the other; None of those that do not fit, which no model reads then."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts)) if len({part.shape[1:] for part in parts}) == 1 else None
    return tuple(piece for part in parts for piece in part)
