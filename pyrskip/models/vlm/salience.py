"""How much of a tower's attention the visual tokens of a third-party model receive.

Axes: P pieces of a picture, S cells of a piece, C cells of all pieces, V visual tokens.

No family's tower is known here. Which layer is read, and which of its cells go into which token, is what
the gradient of the tokens says: of the last layer that they depend on, each cell goes into one token or none.
What mixes cells behind that layer, or has no attention of torch's, is refused.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pyrskip.errors import UserError
from pyrskip.models.vlm.prompts import Size
from pyrskip.models.vlm.towers import look, tokens_of
from pyrskip.models.vlm.watching import Call, Watching

SAME = 1e-2
"""How far a cell's gradients may be apart, of their length, that are the same but for rounding."""
CLASS = ("class_embedding", "cls_token", "class_token")
"""What towers call the embedding of a token that stands for the picture."""


class Salience:
    """Of one model. Raises UserError, when it is asked for the first time, where its tower has none."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        language = {*model.get_decoder().modules()}
        self.names = {m: n for n, m in model.named_modules() if m not in language}
        self.has_class = any(n.endswith(CLASS) for n, _ in model.named_parameters())
        self.attention: nn.Module | None = None
        self.places: dict[Size, Tensor] = {}

    def prepare(self, size: Size, inputs: dict[str, Any]) -> None:
        """Find which cells go into which tokens of pictures of this size, [C] int64; -1: into none."""
        if size not in self.places:
            with torch.enable_grad():
                self.places[size] = self._places(inputs)

    @torch.no_grad()
    def encode(self, size: Size, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """What the tower and the projector make of a picture, and the attention [V] that the cells of each of
        its tokens receive on average: from the class token of their piece, or else from all cells that go
        into a token; of heads the mean."""
        self.prepare(size, inputs)
        assert self.attention is not None
        with Watching([self.attention]) as watching:
            made = look(self.model, inputs)
        place, start, received = self.places[size], 0, []
        for call in watching.calls[self.attention]:
            end = start + len(call.q) * call.q.shape[2]
            received.append(self._received(call, place[start:end].view(len(call.q), -1)))
            start = end
        cells, seen = torch.cat(received), place >= 0
        count = len(tokens_of(made))
        number = torch.bincount(place[seen], minlength=count)
        total = cells.new_zeros(count).index_add(0, place[seen], cells[seen])
        return made, total / number.clamp(min=1)

    def _received(self, call: Call, place: Tensor) -> Tensor:
        """Attention that cells [P, S] receive, [C]."""
        looks = place >= 0
        outside = (~looks).all(0)
        if self.has_class and int(outside.sum()) == 1:
            looks = outside.expand_as(looks)
        each = [call.of(piece).shares(rows.nonzero()[:, 0]).mean(1)[0] for piece, rows in enumerate(looks)]
        return torch.cat(each)

    def _places(self, inputs: dict[str, Any]) -> Tensor:
        with torch.no_grad(), Watching(self.names) as watching:
            count = len(tokens_of(look(self.model, inputs)))
        layers = {self._layer(module): module for module in watching.calls}
        for layer, attention in reversed(layers.items()):
            if layer is None:
                continue
            gradients = self._gradients(layer, inputs, count)
            if gradients is None:
                continue
            whole, bits = gradients
            size = whole.norm(dim=-1)
            alike = torch.stack([(of - whole).norm(dim=-1) <= SAME * size for of in bits])
            none = torch.stack([of.norm(dim=-1) <= SAME * size for of in bits])
            place = sum(
                (set_.long() << bit for bit, set_ in enumerate(alike)),
                torch.zeros_like(size, dtype=torch.int64),
            )
            if not (alike | none).all():
                raise self._refusal("what is behind it mixes its cells")
            self.attention = attention
            return torch.where(size > 0, place - 1, -1)
        raise self._refusal("nothing in it is torch's scaled_dot_product_attention")

    def _gradients(
        self, layer: nn.Module, inputs: dict[str, Any], count: int
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Of the tokens by a layer's cells [C, width]: of all, and of those in whose number, from 1, each bit
        is set; None where they do not depend on it."""
        leaves: list[Tensor] = []

        def cut(module: nn.Module, args: Any, out: Any) -> Any:
            first = out[0] if isinstance(out, tuple) else out
            leaves.append(first.detach().requires_grad_())
            return (leaves[0], *out[1:]) if isinstance(out, tuple) else leaves[0]

        hook = layer.register_forward_hook(cut, prepend=True)  # before the library notes what layers give
        try:
            tokens = tokens_of(look(self.model, inputs))
        finally:
            hook.remove()
        if not tokens.requires_grad:
            return None
        weight = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(0)).to(tokens)
        number = torch.arange(1, count + 1, device=tokens.device)
        chosen = [torch.ones_like(number)]
        chosen += [number >> bit & 1 for bit in range(count.bit_length())]
        found = [
            torch.autograd.grad((tokens @ weight * of).sum(), leaves[0], retain_graph=True)[0]
            for of in chosen
        ]
        flat = [of.reshape(-1, of.shape[-1]).float() for of in found]
        return flat[0], flat[1:]

    def _layer(self, attention: nn.Module) -> nn.Module | None:
        """The layer that an attention module is in: the innermost that has a number."""
        parts = self.names[attention].split(".")
        while parts and not parts[-1].isdigit():
            parts.pop()
        return self.model.get_submodule(".".join(parts)) if parts else None

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"pruner.name={self.name} reads salience, which cannot be told of the tower of model family "
            f"{self.model.config.model_type!r}: {reason}; allowed: a pruner that reads none (docs/peers.md)"
        )
