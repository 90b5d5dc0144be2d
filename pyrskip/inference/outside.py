"""What a gate alone knows of the model that it decides for: how many tokens it gives a picture and a
question, and what that costs it. Plain data, evaluated by numpy.

Axes: N sizes, T tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyrskip.errors import UserError
from pyrskip.words import LOOKED_AT

Kind = Literal["fixed", "pixels", "table"]
Counted = Literal["tokenizer", "bytes"]


@dataclass(frozen=True)
class BySize:
    """A number of every picture of (rows, columns) pixels: tokens, or FLOPs.

    kind 'fixed': `more`; 'pixels': `each` for every begun square of `side` pixels, and `more`; 'table': that
    of a list. runs[of_rows[rows - 1]] are then the pairs (first of so many columns, number), ascending from 1
    column; 0: the model takes no such picture, nor one that is larger than the table.
    """

    kind: Kind
    more: float = 0
    each: float = 0
    side: int = 1
    of_rows: tuple[int, ...] = ()
    columns: int = 0
    runs: tuple[tuple[tuple[int, float], ...], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.side < 1:
            raise ValueError(f"kind={self.kind!r}, side={self.side}: allowed: {', '.join(get_args(Kind))}")
        if self.kind == "table" and (
            self.columns < 1
            or not self.runs
            or not all(0 <= number < len(self.runs) for number in self.of_rows)
            or not all(run and run[0][0] == 1 for run in self.runs)
        ):
            raise ValueError("a table does not cover its sizes")

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> "BySize":
        runs = tuple(tuple((int(first), value) for first, value in run) for run in plain.get("runs", ()))
        return cls(**plain | {"of_rows": tuple(plain.get("of_rows", ())), "runs": runs})

    @classmethod
    def table(cls, values: NDArray[Any]) -> "BySize":
        """Of all sizes up to [rows, columns], from values [rows, columns]."""
        distinct, of_rows = np.unique(values, axis=0, return_inverse=True)
        runs = tuple(
            tuple((int(at) + 1, row[at].item()) for at in np.flatnonzero(np.diff(row, prepend=row[0] - 1)))
            for row in distinct
        )
        numbers = tuple(of_rows.reshape(-1).tolist())
        return cls("table", of_rows=numbers, columns=values.shape[1], runs=runs)

    def __call__(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        """size [..., 2] int64, rows and columns, 0 where there is no picture -> [...] float64, 0 there.

        Raises UserError for a size that the model does not take.
        """
        number = self.known(size)
        unknown = size.all(-1) & (number == 0) & (self.kind == "table")
        if unknown.any():
            tall, wide = size[unknown][0].tolist()
            raise UserError(f"the model takes no picture of {wide} x {tall} pixels")
        return number

    def known(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same, 0 for a size that the model does not take."""
        if self.kind == "fixed":
            value = np.full(size.shape[:-1], float(self.more))
        elif self.kind == "pixels":
            value = self.each * (-(-size // self.side)).prod(-1) + self.more
        else:
            beyond = (size > self._dense.shape).any(-1)
            rows, columns = np.moveaxis(np.minimum(size, self._dense.shape).clip(min=1) - 1, -1, 0)
            value = self._dense[rows, columns] * ~beyond
        number: NDArray[np.float64] = value * size.all(-1)
        return number

    @cached_property
    def _dense(self) -> NDArray[np.float64]:
        rows = np.zeros((len(self.runs), self.columns))
        for row, run in zip(rows, self.runs, strict=True):
            for first, value in run:
                row[first - 1 :] = value
        dense: NDArray[np.float64] = rows[np.array(self.of_rows)]
        return dense


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt beside its pictures: `beside`, and those of the question. counted: by the model's
    own 'tokenizer', or as every begun `per_token` of its 'bytes' and `more`."""

    counted: Counted
    beside: int
    more: int = 0
    per_token: int = 4

    def __post_init__(self) -> None:
        if self.counted not in get_args(Counted) or self.per_token < 1:
            raise ValueError(
                f"counted={self.counted!r}, per_token={self.per_token}: allowed: "
                f"{', '.join(get_args(Counted))}, at least 1"
            )

    @property
    def tokenized(self) -> bool:
        return self.counted == "tokenizer"

    def __call__(self, question: str, tokenizer: Tokenizer | None) -> int:
        """tokenizer: of the model, where it is what counts."""
        if self.tokenized:
            assert tokenizer is not None
            return self.beside + len(tokenizer.encode(question[-LOOKED_AT:], add_special_tokens=False))
        return self.beside - -(len(question.encode(errors="replace")) + self.more) // self.per_token


@dataclass(frozen=True)
class Pictures:
    """tokens: visual ones of a picture; places: tokens of the prompt that it takes, with those around it;
    encode: FLOPs of encoding it."""

    tokens: BySize
    places: BySize
    encode: BySize

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> "Pictures":
        return cls(*(BySize.parse(plain[of.name]) for of in fields(cls)))


@dataclass(frozen=True)
class Outside:
    """tokens, places, encode: of the picture of a kept tile, as of `Pictures`; context: a, b, c of the FLOPs
    a + b n + c n^2 of reading n tokens and answering; prompt: tokens beside the pictures'. name: what the
    model is called.

    cross: of a model whose cross-attention reads visual tokens, a, b, m of the further FLOPs (a + b k) (n +
    m) of k pictures, 0 of none. lone: of a picture that is the only one of its prompt, where the model takes
    that in another way than one beside others.
    """

    name: str
    tokens: BySize
    encode: BySize
    context: tuple[float, float, float]
    prompt: Prompt
    places: BySize
    cross: tuple[float, float, float] | None = None
    lone: Pictures | None = None

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> "Outside":
        """Raises KeyError, TypeError or ValueError for what is none."""
        a, b, c = map(float, plain["context"])
        cross = plain["cross"]
        if cross is not None:
            layers, picture, answer = map(float, cross)
            cross = layers, picture, answer
        return cls(
            str(plain["name"]),
            BySize.parse(plain["tokens"]),
            BySize.parse(plain["encode"]),
            (a, b, c),
            Prompt(**plain["prompt"]),
            BySize.parse(plain["places"]),
            cross,
            None if plain.get("lone") is None else Pictures.parse(plain["lone"]),
        )

    def visual(self, size: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Visual tokens of every tile of a decision. size [N, T, 2] of all tiles, keep [N, T] -> [N, T]."""
        return self._of(lambda pictures: pictures.tokens, size, keep & size.all(-1))

    def _of(
        self,
        number: Callable[["Outside | Pictures"], BySize],
        size: NDArray[np.int64],
        keep: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """A number of every kept tile's picture, beside others or lone, [N, T]."""
        found = number(self)(size)
        if self.lone is not None:
            found = np.where(keep.sum(-1, keepdims=True) == 1, number(self.lone)(size), found)
        return found * keep

    def flops(
        self, size: NDArray[np.int64], keep: NDArray[np.bool_], words: NDArray[np.int64] | int
    ) -> NDArray[np.float64]:
        """Of an answer. size [N, T, 2] of all tiles, keep [N, T], words [N]: tokens of the prompt beside
        pictures -> [N]."""
        keep = keep & size.all(-1)
        places = self._of(lambda pictures: pictures.places, size, keep)
        encode = self._of(lambda pictures: pictures.encode, size, keep)
        n, k = places.sum(-1) + words, keep.sum(-1)
        a, b, c = self.context
        layers, picture, answer = self.cross or (0.0, 0.0, 0.0)
        flops: NDArray[np.float64] = a + b * n + c * n * n + encode.sum(-1)
        flops += (layers * (k > 0) + picture * k) * (n + answer)
        return flops
