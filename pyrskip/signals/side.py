"""Signal `side`: which side of the picture the question names."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from torch import Tensor

from pyrskip.gates.skipping import SIDES
from pyrskip.models.tiers import GatedModel
from pyrskip.signals.signal import SIGNALS, Signal


@SIGNALS.register("side")
class Side(Signal):
    """side [B, 4] float32: 1 where the question names the left, right, top or bottom, as `skip:side` reads it
    (`pyrskip.gates.skipping`): not where it names the opposite too, for then it asks which it is. Whole words
    are found, in lower case, capitalised or in capitals, among the tokens that the query encoder reads."""

    per = "text"
    source = "question"

    def __init__(self, model: GatedModel) -> None:
        super().__init__(model)
        self.shapes = {"side": (len(SIDES),)}
        tokenizer = model.text.tokenizer
        written = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
        goes_on, own = r"\w", tokenizer.model
        if isinstance(own, WordPiece):
            goes_on = own.continuing_subword_prefix
        elif isinstance(own, WordLevel):
            goes_on = r"(?!)"
        self.goes_on: Tensor  # [V] bool: with the word that is before it, where that ends in a letter
        self.register_buffer("goes_on", _where(goes_on, written), persistent=False)
        self.ends: Tensor  # [V] bool: in a letter
        self.register_buffer("ends", _where(r".*\w$", written), persistent=False)
        self.patterns = [
            sorted({p for word in words.split("|") for p in _patterns(word, tokenizer)}) for words in SIDES
        ]
        axis = torch.tensor([of[0] for of in SIDES.values()])
        self.across: Tensor  # [4, 4] float: whether two sides are of the same axis
        self.register_buffer("across", (axis[:, None] == axis).float(), persistent=False)

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        ids, mask = source
        goes_on, ends = self.goes_on[ids] & mask, self.ends[ids] & mask
        ids = ids.where(mask, -1)
        begun = ~(goes_on & F.pad(ends, (1, 0))[:, :-1])
        found = []
        for patterns in self.patterns:
            there = torch.zeros_like(mask)
            for pattern in patterns:
                same = begun
                for place, token in enumerate(pattern):
                    same = same & (_ahead(ids, place, -1) == token)
                there = there | (
                    same & ~(_ahead(ends, len(pattern) - 1, False) & _ahead(goes_on, len(pattern), False))
                )
            found.append(there.any(-1))
        named = torch.stack(found, dim=-1).float()
        return (named * (named @ self.across == 1),)

    def flops(self, model: GatedModel, texts: Sequence[str], size: Tensor) -> Tensor:
        """A comparison and a conjunction for each token of each pattern, at each word."""
        tokens = sum(len(pattern) for patterns in self.patterns for pattern in patterns)
        words = model.text.tokenize(texts)[1].sum(-1).double().cpu()
        return 2 * tokens * words * model.convention.per_mac / 2


def _where(pattern: str, written: Sequence[str]) -> Tensor:
    return torch.tensor([re.match(pattern, token, re.ASCII) is not None for token in written])


def _patterns(word: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """The tokens that a word may be, behind a space and behind something else; none where it is unknown."""
    found, unknown = set(), getattr(tokenizer.model, "unk_token", None)
    for written in (word, word.capitalize(), word.upper()):
        for text, start in ((written, 0), (f"-{written}", 1)):
            of = tokenizer.encode(text, add_special_tokens=False)
            tokens = zip(of.ids, of.tokens, of.offsets, of.attention_mask, strict=True)
            own = [(token, name) for token, name, (begin, _), real in tokens if real and begin >= start]
            if unknown not in [name for _, name in own]:
                found.add(tuple(token for token, _ in own))
    return found


def _ahead(values: Tensor, places: int, end: int | bool) -> Tensor:
    """What stands so many places further on, [B, W]; `end` behind the last."""
    return F.pad(values, (0, places), value=end)[:, places:]
