"""Visual tokens leave between the layers of a third-party model's language model.

Axes: B rows, Q tokens of the prompts and answers before the first layer, K of them that a layer reads, V
visual tokens of a row.

Layers are any of the transformers library that read one sequence with full attention: from the first step on
each is given the hidden states, positions and mask of the tokens that are left. What text attends to is
computed from the queries and keys of the layer in front of a step.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrskip.models.vlm.watching import Watching
from pyrskip.pruners import InsidePruner, Narrowing

Given = dict[str, Any]
"""Arguments of a layer by name."""


@dataclass
class Reading:
    """A row while it is read. places [V]: of its visual tokens in the sequence, by tile; words: tokens of its
    question."""

    narrowing: Narrowing
    places: Tensor
    words: int


class Narrowed:
    """The layers of a language model behind a pruner between them. behind: how many tokens of a prompt follow
    its question."""

    def __init__(self, layers: Sequence[nn.Module], pruner: InsidePruner, behind: int) -> None:
        self.layers, self.pruner, self.behind = layers, pruner, behind
        self.steps: Mapping[int, int] = pruner.steps(len(layers))
        self.watching = Watching([layers[run - 1] for run in self.steps])
        self.rows: list[Reading] = []
        self.tail = self.written = 0
        self.real = torch.empty(0)
        # by layer: which of the Q tokens it reads, and which of these are real
        self.left: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        first = min(self.steps)
        hooks = [
            layer.register_forward_pre_hook(partial(self._before, run), with_kwargs=True)
            for run, layer in enumerate(self.layers)
            if run >= first
        ]
        try:
            with self.watching:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, rows: list[Reading], real: Tensor, tail: int) -> None:
        """Prompts are read anew. real [B, Q] bool; tail: how many of the Q are an answer's."""
        self.rows, self.real, self.tail, self.written, self.left = rows, real, tail, 0, {}
        self.watching.calls.clear()

    def go_on(self, written: int) -> None:
        """So many tokens of an answer follow behind the caches."""
        self.written += written
        self.watching.calls.clear()

    def _before(self, run: int, layer: nn.Module, args: Any, given: Given) -> tuple[Any, Given]:
        if self.written:
            return args, given | {"attention_mask": self._mask_behind(run, given.get("attention_mask"))}
        hidden = args[0]
        if run in self.steps:
            hidden = self._narrow(run, hidden)
        else:
            self.left[run] = self.left[run - 1]
        left, real = self.left[run]
        narrow = given | {"attention_mask": _mask(given.get("attention_mask"), left, real)}
        if given.get("position_ids") is not None:
            narrow["position_ids"] = _some(given["position_ids"][..., None], left)[..., 0]
        if given.get("position_embeddings") is not None:
            narrow["position_embeddings"] = tuple(_some(of, left) for of in given["position_embeddings"])
        return (hidden, *args[1:]), narrow

    def _narrow(self, run: int, hidden: Tensor) -> Tensor:
        """hidden [B, K, D] in front of a step -> behind it."""
        call, length = self.watching.calls[self.layers[run - 1]][-1], hidden.shape[1]
        every = torch.arange(length, device=hidden.device)
        left, real = self.left.get(run - 1, (every.expand(len(hidden), -1), self.real))
        keep, hidden = real.clone(), hidden.clone()
        keep[:, length - self.tail :] = True
        for row, of in enumerate(self.rows):
            end = length - self.tail
            text = every[end - 1 : end]
            if self.pruner.rows == "words":
                text = every[end - self.behind - of.words : end - self.behind]
            seen = real[row] & (every <= text[:, None])
            attention = call.of(row).shares(text, seen[None])[..., of.places]
            tokens = hidden[row, of.places][None]
            ones = torch.ones(1, max(len(text), len(of.places)), dtype=torch.bool, device=hidden.device)
            kept = of.narrowing.after(run, tokens, ones[:, : len(of.places)], attention, ones[:, : len(text)])
            stays = of.places[kept.place[0]]
            keep[row, of.places] = False
            keep[row, stays] = True
            hidden[row, stays] = kept.tokens[0]
            of.narrowing, of.places = kept.next, stays
        index, stay = left_aligned(keep)
        self.left[run] = left.gather(1, index), stay
        place = keep.cumsum(-1) - 1 + (index.shape[1] - keep.sum(-1, keepdim=True))
        for row, of in enumerate(self.rows):
            of.places = place[row, of.places]
        return _some(hidden, index)

    def _mask_behind(self, run: int, mask: Tensor | None) -> Tensor | None:
        """Of tokens of an answer, [B, 1, 1, K + written]."""
        left, real = self.left[run]
        if mask is None and bool(real.all()):
            return None
        tail = torch.arange(self.real.shape[1], self.real.shape[1] + self.written, device=left.device)
        left = torch.cat([left, tail.expand(len(left), -1)], dim=1)
        real = torch.cat([real, real.new_ones(len(real), self.written)], dim=1)
        if mask is None:
            return real[:, None, None]
        return _closed(mask.gather(3, left[:, None, None].expand(*mask.shape[:3], -1)), real)


def left_aligned(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Which places [B, K] int64 hold the tokens of keep [B, N] bool, in their order and padded on the left,
    and which are such tokens [B, K]."""
    index = keep.int().argsort(dim=1, stable=True)[:, -int(keep.sum(-1).amax()) :]
    return index, keep.gather(1, index)


def _some(of_token: Tensor, left: Tensor) -> Tensor:
    """[..., B or 1, Q, D] -> those of left [B, K], [..., B, K, D]."""
    whole = of_token.expand(*of_token.shape[:-3], len(left), *of_token.shape[-2:])
    index = left[..., None].expand(*whole.shape[:-2], left.shape[1], whole.shape[-1])
    return whole.gather(-2, index)


def _mask(mask: Tensor | None, left: Tensor, real: Tensor) -> Tensor | None:
    """[B, 1, Q, Q], or None of what is causal -> [B, 1, K, K]."""
    if mask is None:
        if bool(real.all()):
            return None
        number = torch.arange(left.shape[1], device=left.device)
        return (real[:, None] & (number <= number[:, None]))[:, None]
    mask = mask.expand(len(left), -1, -1, -1)
    mask = mask.gather(2, left[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    return _closed(mask.gather(3, left[:, None, None].expand(*mask.shape[:3], -1)), real)


def _closed(mask: Tensor, real: Tensor) -> Tensor:
    """Of what is not real no key, in masks of bools or of what is added to scores."""
    if mask.dtype == torch.bool:
        return mask & real[:, None, None]
    return mask.masked_fill(~real[:, None, None], torch.finfo(mask.dtype).min)
