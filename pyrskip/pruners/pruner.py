"""Pruners: which of the visual tokens that were encoded the language model reads, registered by name.

Axes: U sets of visual tokens, N visual tokens, D width.

A gate decides before anything is encoded, a pruner behind the projector. What it keeps of a row is a function
of that row's real tokens alone, so that an answer depends neither on batch mates nor on padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.registry import Registry

PRUNERS: "Registry[type[Pruner]]" = Registry("pruner.name")
NONE = "none"
"""The name of a config without a pruner."""


@dataclass(frozen=True)
class PrunerConfig:
    """name: a registered pruner, or 'none'. ratio: the share of a question's visual tokens that stays, in
    (0, 1]."""

    name: str = NONE
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.name != NONE and self.name not in PRUNERS:
            raise PRUNERS.unknown(self.name, (NONE,))
        if not 0 < self.ratio <= 1:
            raise UserError(f"pruner.ratio={self.ratio}: allowed: above 0, at most 1")
        if self.name == NONE and self.ratio < 1:
            raise UserError(
                f"pruner.ratio={self.ratio} with pruner.name={NONE}, which keeps every token; allowed: 1, or "
                f"pruner.name of {', '.join(PRUNERS)}"
            )


@dataclass(frozen=True)
class Prunable:
    """What a pruner sees. tokens [U, N, D], finest level first and the glance last; real [U, N] bool: the
    others are padding; tile [U, N] int64: which one each token is from. beside: what the pruner needs, by
    name, such as text: (words [U, W, D], which of them are real [U, W] bool)."""

    tokens: Tensor
    real: Tensor
    tile: Tensor
    beside: Mapping[str, tuple[Tensor, ...]]


class Pruner(ABC):
    """needs: what it reads beside the tokens, names that a model shows, such as text."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    @abstractmethod
    def keep(self, seen: Prunable) -> Tensor:
        """The tokens that stay, [U, N] bool: of each row's real ones as many as `stays` says."""

    def flops(self, tokens: Tensor, width: int) -> Tensor:
        """What pruning so many tokens of this width costs, of the shape of tokens, float64. None by
        default."""
        return torch.zeros_like(tokens, dtype=torch.float64)

    def stays(self, tokens: Tensor) -> Tensor:
        """How many of so many tokens stay, int64 of any shape: the ratio of them, rounded up."""
        # a share that is a little over a whole number in floats must not round up
        return (tokens.double() * self.ratio - 1e-6).ceil().long()

    def highest(self, score: Tensor, seen: Prunable) -> Tensor:
        """The tokens of the highest scores [U, N] float, as many as stay; of equal scores the first."""
        order = score.masked_fill(~seen.real, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter(1, order, places)
        return rank < self.stays(seen.real.sum(-1))[:, None]


def check_pruner(config: PrunerConfig, model: str, shows: Collection[str] | None) -> None:
    """Refuse a pruner that reads what the model does not show. shows: what it does beside the tokens; None:
    not even those."""
    if config.name == NONE:
        return
    if shows is None:
        raise UserError(
            f"pruner.name={config.name} with model.name={model}, whose visual tokens cannot be reached; "
            f"allowed: {NONE}"
        )
    missing = [name for name in PRUNERS[config.name].needs if name not in shows]
    if missing:
        fit = [name for name, pruner in PRUNERS.items() if set(pruner.needs) <= set(shows)]
        raise UserError(
            f"pruner.name={config.name} reads {', '.join(missing)}, which model.name={model} does not have: "
            f"it has tokens, {', '.join(sorted(shows))}; allowed: {', '.join((NONE, *fit))}"
        )


def build_pruner(config: PrunerConfig) -> Pruner | None:
    """None where every token stays."""
    return PRUNERS[config.name](config.ratio) if config.name != NONE and config.ratio < 1 else None
