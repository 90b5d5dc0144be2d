"""Pruning between layers of the language model: visual tokens leave when its first layers have read them.

Axes: B questions, N visual tokens, R rows of text, W question words.

Attention is recomputed from a layer's queries and keys, of the rows of text that the pruner asks for alone,
so that the layer itself runs whatever attention is fast.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.pruners.pruner import Kept, Prunable, Pruner, PrunerConfig


@dataclass(frozen=True)
class InsideConfig(PrunerConfig):
    """layers: behind how many layers each step prunes, in order; null: where the paper has them, scaled to
    the language model's depth, behind the first at the earliest. Of steps behind one layer the last
    counts."""

    layers: tuple[int, ...] | None = None


class InsidePruner(Pruner):
    """places: after how many layers each step prunes in the paper's model, of `depth` layers. rows: whose
    attention it reads: the last token's of the prompt, or that of the question's words."""

    config_class = InsideConfig
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    places: ClassVar[tuple[int, ...]] = ()
    depth: ClassVar[int] = 32
    rows: ClassVar[Literal["last", "words"]] = "last"

    @classmethod
    def check(cls, config: PrunerConfig, layers: int) -> None:
        assert isinstance(config, InsideConfig)
        if layers < 2:
            raise UserError(
                f"pruner.name={config.name} prunes between layers, and the language model has {layers}; "
                "allowed: at least 2"
            )
        given = config.layers
        if given is None:
            return
        ordered = len(given) == len(cls.places) and list(given) == sorted(given)
        if not ordered or not 0 < given[0] <= given[-1] < layers:
            raise UserError(
                f"pruner.layers={list(given)} with a language model of {layers} layers: allowed: null, or "
                f"{len(cls.places)} from 1 to {layers - 1}, in order"
            )

    def steps(self, layers: int) -> dict[int, int]:
        """After how many of so many layers which step prunes: layers run -> the step's number."""
        assert isinstance(self.config, InsideConfig)
        scaled = (min(max(round(at * layers / self.depth), 1), layers - 1) for at in self.places)
        return {at: step for step, at in enumerate(self.config.layers or scaled)}

    def prune(self, seen: Prunable) -> Kept:
        place = torch.arange(seen.real.shape[1], device=seen.real.device)
        return Kept(seen.tokens, seen.real, place.expand_as(seen.real))  # the first layer reads all

    def begin(self, seen: Prunable) -> Mapping[str, tuple[Tensor, ...]]:
        """What steps read beside attention, from the tokens before the first layer. Nothing by default."""
        return {}

    @abstractmethod
    def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
        """What stays behind a step: of each row's tokens as many as `left` says. whole [B]: how many tokens
        each question had at first."""

    def left(self, number: int, before: Tensor, whole: Tensor) -> Tensor:
        """How many tokens are left behind a step that finds so many, of as many as there were at first."""
        return self.stays(whole)

    def read(self, tokens: Tensor, layers: int) -> list[Tensor]:
        found, steps = [tokens.long()], self.steps(layers)
        for run in range(1, layers):
            found.append(self.left(steps[run], found[-1], tokens) if run in steps else found[-1])
        return found

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        """Of attention."""
        beside = torch.ones_like(words) if language.cross else words + 1
        return self.attended(tokens, words, beside, language.layers, language.width)

    def attended(self, tokens: Tensor, words: Tensor, beside: Tensor, layers: int, width: int) -> Tensor:
        """FLOPs of attention: rows times keys, at every step. beside: keys that are no visual tokens; width:
        of all heads' queries."""
        read, steps = self.read(tokens, layers), self.steps(layers)
        rows = words.double() if self.rows == "words" else 1.0
        keys = sum((read[run - 1].double() + beside for run in steps), torch.zeros(()))
        return 2.0 * width * rows * keys * (tokens > 0)


@dataclass(frozen=True)
class Narrowing:
    """A pruner inside a language model, while it reads. steps: layers run -> the step's number; tile [B, N]
    of the tokens that are there; whole [B]: how many each question had at first; begun: of `begin`."""

    pruner: InsidePruner
    steps: Mapping[int, int]
    tile: Tensor
    whole: Tensor
    begun: Mapping[str, tuple[Tensor, ...]]

    def after(self, run: int, tokens: Tensor, real: Tensor, attention: Tensor, rows: Tensor) -> "Narrowed":
        """What stays when so many layers have run. tokens [B, N, D] as they are there, real [B, N] bool;
        attention [B, R, N] of text rows [B, R] bool."""
        beside = {**self.begun, "attention": (attention, rows)}
        number = self.steps[run]
        kept = self.pruner.step(number, Prunable(tokens, real, self.tile, beside), self.whole)
        left = self.pruner.left(number, real.sum(-1), self.whole)
        if not kept.real.sum(-1).equal(left):
            raise UserError(
                f"{type(self.pruner).__name__}.step leaves {kept.real.sum(-1).tolist()} tokens; allowed: as "
                "many as its left says, for so many are paid"
            )
        return Narrowed(
            kept.tokens, kept.real, kept.place, replace(self, tile=self.tile.gather(1, kept.place))
        )


@dataclass(frozen=True)
class Narrowed:
    """The tokens [B, K, D] that the next layers read, which of them are real [B, K] bool, the places [B, K]
    int64 that they had among those before, and what prunes them next."""

    tokens: Tensor
    real: Tensor
    place: Tensor
    next: Narrowing
