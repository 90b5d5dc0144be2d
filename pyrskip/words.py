"""What a language model reads of a question that has more tokens than it takes: the options, and the end."""

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from pyrskip.errors import UserError
from pyrskip.multiple_choice import options

LOOKED_AT = 1 << 16
"""Characters, the last ones of a question, that are looked at at all."""


class LongOptionsError(UserError):
    """A question lists options of more tokens than a model reads."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(
            f"the question's options have {tokens} tokens; allowed: {most} (language.max_words of its model)"
        )
        self.tokens = tokens


def encoded(texts: Sequence[str], tokenizer: Tokenizer) -> list[Encoding]:
    """Questions' tokens, all of them."""
    seen = [text[-LOOKED_AT:] for text in texts]
    # the batch calls hand rows to threads, which costs more than one row does
    found: list[Encoding] = [tokenizer.encode(seen[0])] if len(seen) == 1 else tokenizer.encode_batch(seen)
    return found


def read(question: str, tokens: Encoding, most: int) -> list[int]:
    """The ids that are read: all of them where there are at most `most`; else those of the options that the
    question lists, and of the others the last.

    Raises LongOptionsError where the options alone have more.
    """
    ids: list[int] = tokens.ids
    if len(ids) <= most:
        return ids
    listed = options(question[-LOOKED_AT:])
    start, stop = (listed[0].start, listed[-1].stop) if listed else (0, 0)
    kept = [start < last and first < stop for first, last in tokens.offsets]
    room = most - sum(kept)
    if room < 0:
        raise LongOptionsError(sum(kept), most)
    for place in reversed(range(len(ids))):
        if room and not kept[place]:
            kept[place], room = True, room - 1
    return [token for token, of in zip(ids, kept, strict=True) if of]
