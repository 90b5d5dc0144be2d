"""What a model must be able to do, in tiers, so that anything can answer.

Axes: B questions, T tiles, N visual tokens, D width, I images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrskip.cost import Convention, Cost
from pyrskip.errors import UserError
from pyrskip.models.text import TextEncoder
from pyrskip.models.vision import VisionEncoder
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch


@dataclass(frozen=True)
class Features:
    """Encoded tiles of a batch's images. maps: one [I, C, rows, columns] a tile, zero where not encoded;
    encoded [I, T] bool, on the CPU; levels: the images' pixels [I, 3, S / 2^l, S / 2^l] in 0..1, for what is
    encoded later; none where maps are cached. received: of an encoder that attends, one [I, rows, columns] a
    tile, how much attention its cells receive; none where maps are cached."""

    maps: tuple[Tensor, ...]
    encoded: Tensor
    levels: tuple[Tensor, ...] = ()
    received: tuple[Tensor, ...] = ()


class RefusedError(UserError):
    """A model refuses some questions, and would again. answers: of every question, an error for one that is
    refused."""

    def __init__(self, answers: Sequence[str | UserError]) -> None:
        super().__init__(next(str(answer) for answer in answers if isinstance(answer, UserError)))
        self.answers = answers


class BlackBox(Protocol):
    """Enough for rollouts, offline learning and evaluation. reference [T] bool: its selection as used without
    pyrskip."""

    pyramid: Pyramid
    reference: Tensor
    convention: Convention

    @property
    def encoded(self) -> int:
        """How many tiles it has been given: in a call each tile once, however many questions ask for it."""
        ...

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """Tokens that a decision really gives. asked [..., T], size [..., 2] image rows and columns -> [...,
        T] int64."""
        ...

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """What a realised decision costs, without a gate and what encodes its query.

        realised [B, ..., T], size [B, 2], prompt_tokens [B] -> [B, ...] each.
        """
        ...

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """Text tokens of each question's prompt, [B] int64."""
        ...

    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Answers under the decision asked [B, T]; a tile that nobody asks for is not computed. Raises
        RefusedError, with the other answers, where the model refuses some questions."""
        ...

    def loglik(self, batch: Batch, asked: Tensor) -> Tensor | None:
        """Log-likelihood of each question's first accepted answer, [B] <= 0; None where the model does not
        tell."""
        ...


class GatedModel(BlackBox, Protocol):
    """A model that a gate can decide for: what the gate looks through is there as well.

    sources: what signals may be computed from, names of pyrskip.signals.SOURCES.
    """

    sources: frozenset[str]
    vision: VisionEncoder
    text: TextEncoder

    @property
    def device(self) -> torch.device: ...

    def encode(self, batch: Batch, keep: Tensor) -> Features:
        """Encode the tiles that any question of an image keeps. keep [B, T] bool."""
        ...

    def look(self, batch: Batch, features: Features, tokens: Tensor) -> Features:
        """What is needed to answer under a decision [B, T], with what `features` hold already."""
        ...

    def write(self, batch: Batch, features: Features, tokens: Tensor) -> list[str]:
        """Greedy answers under a decision [B, T] that has been looked at."""
        ...

    def glance_flops(self, size: Tensor) -> Tensor:
        """What a look at the glance costs beside the answer. size [B, 2] -> [B] float64."""
        ...

    def first_token(self, batch: Batch, features: Features) -> Tensor | None:
        """Logits [B, V] of the answer's first token after the glance alone, which is encoded; None where the
        model does not show them."""
        ...

    def first_token_flops(self, texts: Sequence[str], size: Tensor) -> Tensor:
        """FLOPs of `first_token`, in the cost model's unit. size [B, 2] of each text's image -> [B]
        float64."""
        ...
