"""Visual tokens leave the prompts of a third-party model.

Axes: B rows, N tokens of the prompts, V visual tokens of a row, K tokens that are left, D width.

The model's own code puts what its tower saw into the prompt. What it would hand to its language model is
taken from there, the pruner says which visual tokens stay, and the model runs on the shorter prompt, whose
tokens have the positions that they had. So nothing of a family is known here but which places of a prompt are
visual. Of features that later layers are given (Qwen3-VL), a merged token has those of its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.errors import UserError
from pyrskip.models.vlm.narrowed import Narrowed, Reading, left_aligned
from pyrskip.models.vlm.towers import GIVEN
from pyrskip.pruners import NONE, PRUNERS, InsidePruner, Kept, Narrowing, Prunable, Pruner, PrunerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Given = dict[str, Any]
"""Arguments of a model by name."""


class Shown(NamedTuple):
    """What a row shows a pruner beside its tokens. tile [V] int64: of each visual token, in the prompt's
    order; words: tokens of its question; salience [V], where the pruner reads it."""

    tile: Tensor
    words: int
    salience: Tensor | None = None


class Pruned:
    """The prompts of one pass behind a pruner. shown: of every row; image: the token at visual places;
    prompt: N, without an answer; behind: how many of a prompt's tokens follow its question."""

    def __init__(
        self, model: Any, pruner: Pruner, shown: Sequence[Shown], image: int, prompt: int, behind: int
    ) -> None:
        self.model, self.pruner, self.shown = model, pruner, shown
        self.image, self.prompt, self.behind = image, prompt, behind
        self.language: nn.Module = model.get_decoder()
        layers = layers_of(self.language)
        self.depth = len(layers)
        self.narrowed = Narrowed(layers, pruner, behind) if isinstance(pruner, InsidePruner) else None
        self._asks = False
        self._mask = torch.empty(0)
        self._further: Given = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within, the model reads shorter prompts, in `forward` and `generate`."""
        hooks = (
            self.model.register_forward_pre_hook(self._shorten, with_kwargs=True),
            self.language.register_forward_pre_hook(self._enter, with_kwargs=True),
        )
        with ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            if self.narrowed is not None:
                stack.enter_context(self.narrowed.on())
            yield

    def _shorten(self, module: nn.Module, args: Any, given: Given) -> tuple[Any, Given] | None:
        if self._asks:
            return None
        if given["input_ids"].shape[1] < self.prompt:  # a token of an answer, behind a cache
            written = given["input_ids"].shape[1]
            self._mask = F.pad(self._mask, (0, written), value=1)
            if self.narrowed is not None:
                self.narrowed.go_on(written)
            return args, given | {"attention_mask": self._mask}
        return args, self._short(given, self._handed(given))

    def _enter(self, module: nn.Module, args: Any, given: Given) -> tuple[Any, Given]:
        if self._asks:
            raise _HandedError(given)
        further, self._further = self._further, {}
        return args, given | further

    def _handed(self, given: Given) -> Given:
        """What the model would hand to its language model."""
        self._asks = True
        try:
            self.model(**given)
        except _HandedError as handed:
            return handed.given
        finally:
            self._asks = False
        raise AssertionError("the language model has not been called")

    def _short(self, given: Given, handed: Given) -> Given:
        """The model's arguments for the shorter prompts."""
        ids, embeds = given["input_ids"], handed["inputs_embeds"].clone()
        mask = given.get("attention_mask", torch.ones_like(ids))  # `generate` leaves out one that is all ones
        visual = ids == self.image
        visual[:, self.prompt :] = False
        keep = mask.bool() & ~visual
        keep[:, self.prompt :] = True  # answers, whose padding is behind them
        stays, seen = [], []
        for row, shown in enumerate(self.shown):
            order = shown.tile.argsort(stable=True)  # pruners see the finest level first
            places = visual[row].nonzero()[:, 0][order.to(ids.device)]
            seen.append(self._seen(embeds[row], places, shown, order))
            kept = self._kept(seen[row])
            stays.append(places[kept.place[0]])
            keep[row, stays[row]] = True
            embeds[row, stays[row]] = kept.tokens[0].to(embeds.dtype)
        left, real = left_aligned(keep)
        if self.narrowed is not None:
            moved = keep.cumsum(-1) - 1 + left.shape[1] - keep.sum(-1, keepdim=True)
            rows = zip(seen, stays, moved, self.shown, strict=True)
            reading = [
                Reading(self._narrowing(of), places[stay], shown.words) for of, stay, places, shown in rows
            ]
            self.narrowed.begin(reading, real, ids.shape[1] - self.prompt)

        def some(of_token: Tensor) -> Tensor:
            index = left.view(*left.shape, *[1] * (of_token.ndim - 2))
            return of_token.gather(1, index.expand(*left.shape, *of_token.shape[2:]))

        short: Given = {}
        for name, value in given.items():
            if not isinstance(value, Tensor):
                short[name] = value
            elif value.shape[:2] == ids.shape and not name.startswith("pixel_"):  # else it is of pictures
                short[name] = some(value)
        for name in ("input_ids", GIVEN):
            short.pop(name, None)
        positions = handed.get("position_ids")
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        positions = positions.expand(*positions.shape[:-2], *ids.shape)
        short["position_ids"] = positions.gather(-1, left.expand(*positions.shape[:-1], -1))
        short["inputs_embeds"] = some(embeds)
        short["attention_mask"] = self._mask = some(mask) * real
        if handed.get("per_layer_inputs") is not None:
            short["per_layer_inputs"] = some(handed["per_layer_inputs"])
        if handed.get("deepstack_visual_embeds") is not None:
            of_all, of_left = handed["visual_pos_masks"], some(handed["visual_pos_masks"]) & real
            self._further = {
                "visual_pos_masks": of_left,
                "deepstack_visual_embeds": [
                    some(torch.zeros_like(embeds).masked_scatter(of_all[..., None], of.to(embeds)))[of_left]
                    for of in handed["deepstack_visual_embeds"]
                ],
            }
        return short

    def _seen(self, embeds: Tensor, places: Tensor, shown: Shown, order: Tensor) -> Prunable:
        """A row's visual tokens. embeds [N, D]; places [V] of them, by tile; order [V], which of the prompt's
        they are."""
        end = self.prompt - self.behind
        words, tokens = embeds[None, end - shown.words : end], embeds[None, places]
        real = torch.ones(1, len(places), dtype=torch.bool, device=embeds.device)
        beside: dict[str, tuple[Tensor, ...]] = {"text": (words, real.new_ones(1, shown.words))}
        if shown.salience is not None:
            beside["salience"] = (shown.salience[None, order.to(embeds.device)],)
        return Prunable(tokens, real, shown.tile[None, order].to(embeds.device), beside)

    def _kept(self, seen: Prunable) -> Kept:
        kept = self.pruner.prune(seen)
        count, stays = kept.real.sum(-1), self.pruner.read(seen.real.sum(-1), self.depth)[0]
        if not count.equal(stays):
            raise UserError(
                f"{type(self.pruner).__name__}.prune leaves {count.tolist()} tokens; allowed: as many as its "
                "stays says, for so many are paid for"
            )
        return kept

    def _narrowing(self, seen: Prunable) -> Narrowing:
        assert isinstance(self.pruner, InsidePruner)
        steps, begun = self.pruner.steps(self.depth), self.pruner.begin(seen)
        return Narrowing(self.pruner, steps, seen.tile, seen.real.sum(-1), begun)


class _HandedError(Exception):
    """given: what a language model was called with."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given


def layers_of(language: nn.Module) -> Sequence[nn.Module]:
    """The decoder layers of a language model."""
    named = (module for name, module in language.named_modules() if name.split(".")[-1] == "layers")
    return next([*module] for module in named if isinstance(module, nn.ModuleList))


def check_pruned(pruner: PrunerConfig, config: "PreTrainedConfig", cross: bool) -> None:
    """Refuse what cannot be pruned of a family, from its config alone. cross: visual tokens are no part of
    the prompt."""
    if pruner.name == NONE:
        return
    said = f"pruner.name={pruner.name} with model family {config.model_type!r}"
    if cross:
        raise UserError(
            f"{said}, whose visual tokens are no part of the prompt: cross-attention reads them; allowed: "
            f"{NONE}"
        )
    kind, text = PRUNERS[pruner.name], config.get_text_config(decoder=True)
    depth = text.num_hidden_layers
    kind.check(pruner, depth)
    if not issubclass(kind, InsidePruner):
        return
    window = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    others = {*(getattr(text, "layer_types", None) or [window])} - {"full_attention"}
    if others:
        raise UserError(
            f"{said} prunes between layers, all of which must be of full attention, and it has layers of "
            f"{', '.join(sorted(others))}; allowed: a pruner in front of the language model (docs/peers.md)"
        )
    fed = len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
    first = min(kind(pruner).steps(depth))
    if first < fed:
        raise UserError(
            f"{said} prunes behind layer {first}, and the first {fed} layers are given visual features of "
            f"their own; allowed: pruner.layers from {fed} on"
        )
