"""What a third-party language model costs, measured on the model itself: its config need not be understood.

The FLOPs of reading a prompt of n tokens are a quadratic in n, whatever the layers are, as long as attention
is the only thing that compares tokens with each other: fixed + token n + pair n^2. Three prompts tell it.
What a token costs that is written behind a cache, and the cache itself, grow with what is in the cache; two
prompts tell both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyrskip.cost import Convention, fused_kernels_off, measured_flops
from pyrskip.errors import UserError
from pyrskip.models.vlm.watching import Watching

LENGTHS = (16, 32, 64)
"""Tokens of the prompts that are measured: short, so that a sliding window does not show."""


@dataclass(frozen=True)
class LanguageCost:
    """FLOPs of a prompt of n tokens: fixed + token n + pair n^2; of a token that is written behind n: step +
    step_token n. values, values_token: of the cache, at no token and for each.

    Where visual tokens are read by cross-attention, and are none of the n: further FLOPs of each token, of
    layers that run only if there is a picture and for each picture, and values of the cache for each picture.
    """

    fixed: float
    token: float
    pair: float
    step: float
    step_token: float
    values: float
    values_token: float
    cross_layers: float = 0.0
    cross_picture: float = 0.0
    cross_values: float = 0.0

    def flops(self, context: Tensor, pictures: Tensor, answer: int, convention: Convention) -> Tensor:
        """FLOPs (or MACs) of a prompt of `context` tokens with so many pictures, and of `answer` tokens
        written after it one by one. [...] int64 each -> [...] float64."""
        n, k, m = context.double(), pictures.double(), float(answer)
        pairs = n * n if convention.attention == "full" else n * (n + 1) / 2
        flops = self.fixed + n * self.token + pairs * self.pair
        flops = flops + m * self.step + (n * m + m * (m - 1) / 2) * self.step_token
        flops = flops + (n + m) * (self.cross_layers * (k > 0) + self.cross_picture * k)
        return flops * convention.per_mac / 2

    def cache(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        """Values in the cache of so many tokens and pictures. [...] int64 each -> [...] float64."""
        return self.values + self.values_token * tokens.double() + self.cross_values * pictures.double()


@dataclass(frozen=True)
class LayerCost:
    """Of one layer, what grows with the tokens n that it reads: FLOPs token n + pair n^2 of a prompt, and
    step_token n of a token that is written behind; values_token n of its cache. queries: width of all heads'
    queries."""

    token: float
    pair: float
    step_token: float
    values_token: float
    queries: int

    def flops(self, context: Tensor, answer: int, convention: Convention) -> Tensor:
        """As `LanguageCost.flops`."""
        n = context.double()
        pairs = n * n if convention.attention == "full" else n * (n + 1) / 2
        flops = n * self.token + pairs * self.pair + n * (answer * self.step_token)
        return flops * convention.per_mac / 2


def measure_layers(model: Any, layers: Sequence[nn.Module], token: int) -> list[LayerCost]:
    """Of each of a language model's layers. token: of ordinary text. Raises UserError where one's attention
    cannot be read."""
    few, some, many = (_layers_run(model, layers, token, n) for n in LENGTHS)
    with torch.no_grad(), Watching(layers) as watching:
        model(**text(model, token, LENGTHS[0]), use_cache=False)
    costs = []
    for i, layer in enumerate(layers):
        prompt = _quadratic(*(of[i][0] for of in (few, some, many)))[1:]
        step, values = (_line(few[i][kind], some[i][kind])[1] for kind in (1, 2))
        if layer not in watching.calls:
            raise UserError(
                f"layer {i + 1} of the language model runs another attention than torch's "
                "scaled_dot_product_attention, so a pruner between layers cannot read it; allowed: one in "
                "front of the language model (docs/peers.md)"
            )
        q = watching.calls[layer][-1].q
        costs.append(LayerCost(*prompt, step, values, q.shape[1] * q.shape[3]))
    return costs


@torch.no_grad()
def _layers_run(
    model: Any, layers: Sequence[nn.Module], token: int, tokens: int
) -> list[tuple[int, int, int]]:
    """Of each layer: FLOPs of a prompt of so many tokens, and of a token behind it; and values of the
    cache of both."""
    spent: dict[nn.Module, list[int]] = {layer: [] for layer in layers}
    start: list[int] = []
    hooks = []

    def begin(layer: nn.Module, _: Any) -> None:
        start.append(counter.get_total_flops())

    def end(layer: nn.Module, *_: Any) -> None:
        spent[layer].append(counter.get_total_flops() - start.pop())

    counter = FlopCounterMode(display=False)
    for layer in layers:
        hooks += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
    prompt = text(model, token, tokens)
    try:
        with fused_kernels_off(), counter:
            written = model.generate(**prompt, **_written(2, token), return_dict_in_generate=True)
    finally:
        for hook in hooks:
            hook.remove()
    cached = [_values(layer) for layer in written.past_key_values.layers]
    return [(spent[layer][0], spent[layer][1], values) for layer, values in zip(layers, cached, strict=True)]


def measure_language(model: Any, token: int) -> LanguageCost:
    """Of a model's language model, its output head at one position included. token: of ordinary text."""
    prompt = _quadratic(*(prompt_flops(model, text(model, token, n)) for n in LENGTHS))
    step = _line(*(step_flops(model, token, n) for n in LENGTHS[:2]))
    return LanguageCost(
        *prompt, *step, *_line(*(cached_values(model, text(model, token, n)) for n in LENGTHS[:2]))
    )


def _quadratic(a: float, b: float, c: float) -> tuple[float, float, float]:
    """What there is at no token, for each, and for each pair, from what there is at LENGTHS."""
    x, y, z = LENGTHS
    pair = ((c - b) / (z - y) - (b - a) / (y - x)) / (z - x)
    slope = (b - a) / (y - x) - pair * (x + y)
    return a - slope * x - pair * x * x, slope, pair


def _line(few: float, many: float) -> tuple[float, float]:
    """What there is at no token, and for each, from what there is at the first two of LENGTHS."""
    each = (many - few) / (LENGTHS[1] - LENGTHS[0])
    return few - each * LENGTHS[0], each


def text(model: Any, token: int, tokens: int) -> dict[str, Any]:
    """Inputs of a prompt that is one token over and over."""
    ids = torch.full((1, tokens), token, device=model.get_input_embeddings().weight.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prompt_flops(model: Any, inputs: dict[str, Any]) -> int:
    """Measured FLOPs of a prompt, and of the output head at its last position."""
    return measured_flops(last_logits(model, inputs))


def last_logits(model: Any, inputs: dict[str, Any], positions: int = 1) -> Callable[[], Any]:
    """A run of the model that gives logits at the last positions alone, where it can give them alone."""
    last = {"logits_to_keep": positions} if "logits_to_keep" in signature(model.forward).parameters else {}
    return lambda: model(**inputs, **last, use_cache=False)


def step_flops(model: Any, token: int, tokens: int) -> int:
    """Measured FLOPs of one token written behind so many, and of the output head: what a second token of an
    answer adds to the first."""

    def written(number: int) -> int:
        inputs = text(model, token, tokens)
        return measured_flops(lambda: model.generate(**inputs, **_written(number, token)))

    return written(2) - written(1)


def _written(number: int, token: int) -> dict[str, Any]:
    """Arguments of `generate` that has it write so many tokens."""
    limits = {"max_new_tokens": number, "min_new_tokens": number, "pad_token_id": token}
    return {**limits, "do_sample": False, "num_beams": 1}


@torch.no_grad()
def cached_values(model: Any, inputs: dict[str, Any]) -> int:
    """How many numbers the cache of a prompt holds."""
    return sum(_values(layer) for layer in model(**inputs, use_cache=True).past_key_values.layers)


def _values(layer: Any) -> int:
    """Of a layer of a cache."""
    kept = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(values.numel() for values in kept if isinstance(values, Tensor))
