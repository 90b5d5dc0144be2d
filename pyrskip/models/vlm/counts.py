"""How many tokens of a prompt pictures and words have: by the model's processor, or as its server counts.

Nothing is typed, and nothing assumed: the two are held against each other where both can be asked, and
pictures must add up, since a tile has a number of tokens of its own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from pyrskip.errors import UserError
from pyrskip.models.vlm.client import Client, Reply, Request
from pyrskip.models.vlm.tokens import ProcessorTokens, Size

PROBE = "?"
"""The question beside a picture that is sent to be counted."""
TOLERANCE = 0.02
"""Two pictures may have so much more or less together than one by one, as where a line's end is shared."""
Ask = Callable[[Sequence[Size], str], Request]
"""Sizes of pictures that nothing is on, and a text -> the request that is counted."""


class Counts(Protocol):
    def pictures(self, sizes: Sequence[Size]) -> list[int]:
        """What a picture of each size adds to a prompt; 0 for one that cannot be asked about."""
        ...

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of a prompt without pictures, the chat template's included."""
        ...


class ServerTokens:
    """The differences of a server's `usage.prompt_tokens`, a request a size and a text. heard: texts whose
    number is known; added: sizes of which is."""

    def __init__(self, client: Client, ask: Ask, heard: dict[str, int], added: dict[Size, int]) -> None:
        self.client, self.ask, self.heard, self._added = client, ask, heard, added

    def pictures(self, sizes: Sequence[Size]) -> list[int]:
        if new := sorted(set(sizes) - self._added.keys()):
            (words,) = self.texts([PROBE])
            replies = self.client.ask([self.ask([size], PROBE) for size in new])
            for size, reply in zip(new, replies, strict=True):
                if isinstance(reply, Reply):  # else it is asked about again when it comes again
                    self._added[size] = _counted(reply) - words
        return [self._added.get(size, 0) for size in sizes]

    def texts(self, texts: Sequence[str]) -> list[int]:
        if new := sorted(set(texts) - self.heard.keys()):
            for text, reply in zip(new, self.client.ask([self.ask((), text) for text in new]), strict=True):
                self.heard[text] = _counted(reply)
        return [self.heard[text] for text in texts]


def counts_of(
    client: Client,
    ask: Ask,
    processor: ProcessorTokens | None,
    sizes: tuple[Size, Size],
    heard: dict[str, int],
) -> Counts:
    """The processor's where there is one, else the server's; asked about pictures of two sizes before they
    are believed.

    Raises UserError where they differ, where two pictures do not add up, and where neither counts.
    """
    probes: list[Sequence[Size]] = [(), sizes[:1], sizes[1:], sizes]
    replies = client.ask([ask(some, PROBE) for some in probes])
    for reply in replies:
        if isinstance(reply, UserError):
            raise reply
    counted = [reply.tokens for reply in replies if isinstance(reply, Reply)]
    if None in counted and processor is None:
        raise UserError(
            f"model.remote.url: {client.address} does not count prompt tokens (usage), so nothing says what "
            "a picture costs; allowed: model.remote.processor=<a folder with the model's processor>"
        )
    by_server = None if None in counted else [(n or 0) - (counted[0] or 0) for n in counted[1:]]
    added = by_server or []
    if processor is not None:
        added = [*processor.pictures(sizes), processor.together(sizes)]
        if by_server is not None and by_server != added:
            raise UserError(
                f"model.remote.processor: for pictures of {_named(sizes[0])}, {_named(sizes[1])} and both "
                f"the processor writes {added[0]}, {added[1]} and {added[2]} tokens, and the server counts "
                f"{by_server[0]}, {by_server[1]} and {by_server[2]}; allowed: the folder of the model that "
                "is served, with its limits, or '' to have the server count"
            )
    one_by_one = added[0] + added[1]
    if abs(added[2] - one_by_one) > TOLERANCE * one_by_one:
        raise UserError(
            f"model.remote.model: pictures of {_named(sizes[0])} and {_named(sizes[1])} have {added[0]} and "
            f"{added[1]} tokens alone and {added[2]} together, so a tile has no number of its own; allowed: "
            "a model whose pictures add up"
        )
    if processor is not None:
        return processor
    heard[PROBE] = counted[0] or 0
    return ServerTokens(client, ask, heard, dict(zip(sizes, added, strict=False)))


def _counted(reply: Reply | UserError) -> int:
    if isinstance(reply, UserError):
        raise reply
    if reply.tokens is None:
        raise UserError("the server did not count a request's prompt tokens, though it counted others")
    return reply.tokens


def _named(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
