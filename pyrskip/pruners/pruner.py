"""Pruners: which of the visual tokens that were encoded the language model reads, registered by name.

Axes: U sets of visual tokens, N visual tokens, K of them that stay, D width, W question words.

A gate decides before anything is encoded, a pruner behind the projector, or between layers of the language
model (`inside.py`). What it keeps of a row is a function of that row's real tokens alone, so that an answer
depends neither on batch mates nor on padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.identity import read_where
from pyrskip.registry import Registry

PRUNERS: "Registry[type[Pruner]]" = Registry("pruner.name", "docs/extending-models.md")
NONE = "none"
"""The name of a config without a pruner."""


@dataclass(frozen=True)
class PrunerConfig:
    """name: a registered pruner, or 'none'. ratio: the share of a question's visual tokens that stays, in
    (0, 1]. tokens: instead of a ratio, how many of them stay, all where there are no more; 0: by the
    ratio."""

    name: str = NONE
    ratio: float = 1.0
    # a budget that is not given is no part of what identifies a run
    tokens: int = field(default=0, metadata=read_where("tokens", range(1, 1 << 62)))

    def __post_init__(self) -> None:
        if self.name != NONE and self.name not in PRUNERS:
            raise PRUNERS.unknown(self.name, (NONE,))
        if not 0 < self.ratio <= 1:
            raise UserError(f"pruner.ratio={self.ratio}: allowed: above 0, at most 1")
        if self.tokens < 0 or (self.tokens and self.ratio < 1):
            raise UserError(
                f"pruner.tokens={self.tokens} with pruner.ratio={self.ratio:g}: allowed: at least 1 with "
                "pruner.ratio=1, or 0"
            )
        if self.name == NONE and (self.ratio < 1 or self.tokens):
            raise UserError(
                f"pruner.ratio={self.ratio}, tokens={self.tokens} with pruner.name={NONE}, which keeps every "
                f"token; allowed: 1 and 0, or pruner.name of {', '.join(PRUNERS)}"
            )

    def __str__(self) -> str:
        """What it comes to, in words: its name, its ratio, and what else is set."""
        own = (f for f in fields(self) if f.name not in ("name", "ratio"))
        changed = (f"{f.name}={getattr(self, f.name)}" for f in own if getattr(self, f.name) != f.default)
        return " ".join((self.name, f"{self.ratio:g}", *changed))


@dataclass(frozen=True)
class Prunable:
    """What a pruner sees. tokens [U, N, D], finest level first and the glance last; real [U, N] bool: the
    others are padding, behind the real ones; tile [U, N] int64: which one each token is from. beside: what
    the pruner needs, by name, as `BESIDE` has it."""

    tokens: Tensor
    real: Tensor
    tile: Tensor
    beside: Mapping[str, tuple[Tensor, ...]]

    def row(self, row: int) -> tuple[Tensor, Tensor]:
        """A row's real tokens [n, D] in float64, and their tiles [n]."""
        count = int(self.real[row].sum())
        return self.tokens[row, :count].double(), self.tile[row, :count]


BESIDE = {
    "text": "(words [U, W, D] of the question, embedded; which of them are real [U, W] bool)",
    "salience": "(how much of the encoder's attention a token receives [U, N], or what stands for it,)",
    "attention": "(attention of text on visual tokens at a layer [U, R, N], heads averaged; which rows R of "
    "text are real [U, R] bool)",
}
"""What models may show beside the tokens, by name."""


@dataclass(frozen=True)
class Kept:
    """The tokens that stay: tokens [U, K, D], real [U, K] bool, the others padding behind them; place [U, K]
    int64: which of the N tokens each is, or is merged into, in their order."""

    tokens: Tensor
    real: Tensor
    place: Tensor

    @classmethod
    def of(cls, seen: Prunable, keep: Tensor) -> "Kept":
        """The tokens of keep [U, N] bool, in their order."""
        keep = keep & seen.real
        count = keep.sum(-1)
        longest = int(count.amax()) if len(count) else 0
        place = keep.int().argsort(dim=-1, descending=True, stable=True)[:, :longest]
        tokens = seen.tokens.gather(1, place[..., None].expand(-1, -1, seen.tokens.shape[-1]))
        real = torch.arange(longest, device=count.device) < count[:, None]
        return cls(tokens, real, place)

    @classmethod
    def stacked(cls, rows: Sequence[tuple[Tensor, Tensor]], like: Prunable) -> "Kept":
        """Each row's tokens [k, D] and places [k], padded to the longest."""
        longest = max((len(places) for _, places in rows), default=0)
        tokens = like.tokens.new_zeros(len(rows), longest, like.tokens.shape[-1])
        place = like.tile.new_zeros(len(rows), longest)
        for i, (of_row, places) in enumerate(rows):
            tokens[i, : len(places)], place[i, : len(places)] = of_row.to(tokens.dtype), places
        count = torch.tensor([len(places) for _, places in rows], device=place.device)
        return cls(tokens, torch.arange(longest, device=place.device) < count[:, None], place)


class Pruner(ABC):
    """config_class: what it is configured by. needs: what it reads beside the tokens, names of BESIDE that a
    model shows. blind: it looks at no token, a baseline of those that do."""

    config_class: ClassVar[type[PrunerConfig]] = PrunerConfig
    needs: ClassVar[tuple[str, ...]] = ()
    blind: ClassVar[bool] = False

    def __init__(self, config: PrunerConfig) -> None:
        self.config = config

    @classmethod  # noqa: B027  (most have nothing to check)
    def check(cls, config: PrunerConfig, layers: int) -> None:
        """Raise UserError for what a language model of so many layers cannot do. Nothing by default."""

    @abstractmethod
    def prune(self, seen: Prunable) -> Kept:
        """What the language model's first layer reads: of each row's real tokens, or of what they are merged
        into, as many as `read` says."""

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Matrix products of pruning so many tokens for a question of so many words, in FLOPs, of the shape
        of tokens, float64. None by default."""
        return torch.zeros_like(tokens, dtype=torch.float64)

    def stays(self, tokens: Tensor) -> Tensor:
        """How many of so many tokens stay, int64 of any shape: the ratio of them, rounded up, or as many as
        the budget says."""
        if self.config.tokens:
            return tokens.long().clamp(max=self.config.tokens)
        return rounded_up(tokens.double() * self.config.ratio)

    def read(self, tokens: Tensor, layers: int) -> list[Tensor]:
        """How many of so many visual tokens each layer of the language model reads."""
        return [self.stays(tokens)] * layers

    def highest(self, score: Tensor, seen: Prunable) -> Tensor:
        """The tokens of the highest scores [U, N] float, as many as stay; of equal scores the first."""
        return rank(score, seen.real) < self.stays(seen.real.sum(-1))[:, None]


class KeepingPruner(Pruner):
    """A pruner that keeps tokens as they are."""

    def prune(self, seen: Prunable) -> Kept:
        return Kept.of(seen, self.keep(seen))

    @abstractmethod
    def keep(self, seen: Prunable) -> Tensor:
        """The tokens that stay, [U, N] bool: of each row's real ones as many as `stays` says."""

    def by_row(self, seen: Prunable, pick: Callable[[int, int], Tensor]) -> Tensor:
        """`keep` row by row. pick: (row, how many of its tokens stay, at least 1) -> their places, int64."""
        keep = torch.zeros_like(seen.real)
        for row, count in enumerate(self.stays(seen.real.sum(-1)).tolist()):
            if count:
                keep[row, pick(row, count)] = True
        return keep


def rank(score: Tensor, real: Tensor) -> Tensor:
    """The place [U, N] of each of the real tokens by its score [U, N], the highest first, of equal scores the
    first; padding behind them."""
    order = score.masked_fill(~real, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def rounded_up(tokens: Tensor) -> Tensor:
    """float64 -> int64; a share that is a little over a whole number in floats does not round up."""
    return (tokens - 1e-6).ceil().long()


def spread(score: Tensor, real: Tensor) -> Tensor:
    """Scores [..., N] of the real tokens from 0, the least of a row, to 1, its highest; 0 where all are
    equal."""
    low = score.masked_fill(~real, float("inf")).amin(-1, keepdim=True)
    high = score.masked_fill(~real, float("-inf")).amax(-1, keepdim=True)
    return torch.where(real & (high > low), (score - low) / (high - low), 0.0)


def unit(vectors: Tensor) -> Tensor:
    """Of length 1, in float64, so that what is chosen by likeness is not chosen by rounding; no length stays
    none."""
    return F.normalize(vectors.double(), dim=-1)


def pruner_config(name: str) -> type[PrunerConfig]:
    """The config of a pruner; an unknown one is left to that to refuse."""
    return PRUNERS[name].config_class if name in PRUNERS else PrunerConfig


def check_pruner(config: PrunerConfig, model: str, shows: Collection[str] | None, layers: int | None) -> None:
    """Refuse a pruner that reads what the model does not show, or prunes behind layers that its language
    model does not have. shows: what it does beside the tokens; None: not even those. layers: None
    where they are not known yet."""
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
    if layers is not None:
        PRUNERS[config.name].check(config, layers)


def build_pruner(config: PrunerConfig) -> Pruner | None:
    """None where every token stays."""
    if config.name == NONE or (config.ratio == 1 and not config.tokens):
        return None
    return PRUNERS[config.name](config)
