"""Chat requests whose pictures are decided on: what is sent in their place.

Each picture is decided on its own, from itself and the text of its own turn, so that what was sent of an
earlier turn is sent again, byte for byte, and the caches of the server behind hold. Whatever cannot be
decided stays as it was, with the reason.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Literal

from pyrskip.errors import UserError
from pyrskip.inference import GateAlone, Replacement
from pyrskip.inference.decider import Request
from pyrskip.inference.processor import data_url
from pyrskip.serving.batcher import Batcher, BusyError

Unchanged = Literal["url", "form", "question", "image", "busy", "slow", "error"]
"""Why a picture stays as it was: named by an address, in another form than a data URL in base64, without a
text in its turn; an image that cannot be read, or that the model does not take; too many that wait, a
decision that took too long, a fault of the gateway's own."""

LOG = logging.getLogger("pyrskip.gateway")


@dataclass(frozen=True)
class Dial:
    """What a request asks of the gate: see pyrskip.inference.Request."""

    price: float | None = None
    max_tokens: int | None = None
    retention: float | None = None


@dataclass(frozen=True)
class Sent:
    """What goes in a picture's place: data URLs; the levels kept, the model's tokens, and those of the
    picture as one."""

    urls: tuple[str, ...]
    levels: tuple[int, ...]
    tokens: int
    whole: int


@dataclass(frozen=True)
class Rewritten:
    """body: the request to forward; pictures: in their order, what became of each."""

    body: bytes
    pictures: list[Sent | Unchanged]


@dataclass(frozen=True)
class _Place:
    """A picture's part of a message's content, and the text of that message."""

    content: list[Any]
    part: dict[str, Any]
    question: str


class Rewriter:
    """timeout: seconds that a decision may take; cached: bytes of decisions that are kept; extra: fields of a
    request whose pictures were replaced, where it has none of the name."""

    def __init__(self, gate: GateAlone, timeout: float, cached: int, extra: dict[str, Any]) -> None:
        self.gate, self.timeout, self.extra = gate, timeout, extra
        self.cache = Cache(cached)

    async def rewrite(self, raw: bytes, dial: Dial, batcher: Batcher) -> Rewritten:
        """Raises UserError for a dial that the gate does not take, and for nothing else."""
        self.gate.decider.check_dial(dial.price, dial.max_tokens, dial.retention)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return Rewritten(raw, [])
        places = list(_places(body))
        found = await asyncio.gather(*(self._decide(place, dial, batcher) for place in places))
        mark = token_hex()
        urls: list[str] = []
        for place, sent in zip(places, found, strict=True):
            if isinstance(sent, Sent):
                at = next(i for i, part in enumerate(place.content) if part is place.part)
                place.content[at : at + 1] = [_part(place.part, mark)] * len(sent.urls)
                urls += sent.urls
        if not any(isinstance(sent, Sent) for sent in found):
            return Rewritten(raw, found)
        try:
            first, *others = json.dumps(self.extra | body).split(mark)
        except RecursionError:  # read, but nested too deeply to be written
            return Rewritten(raw, ["error"] * len(found))
        # JSON's writer looks at every character: the pictures, which need no escape, are put in behind it
        parts = (part for pair in zip(urls, others, strict=True) for part in pair)
        return Rewritten("".join((first, *parts)).encode(), found)

    async def _decide(self, place: _Place, dial: Dial, batcher: Batcher) -> Sent | Unchanged:
        picture = place.part["image_url"]
        url = picture.get("url") if isinstance(picture, dict) else None
        if not isinstance(url, str):
            return "form"
        if not url.startswith("data:"):
            return "url"
        if not place.question.strip():
            return "question"
        key = _digest(url, place.question, dial)
        known = self.cache.get(key)
        if known is not None:
            return known
        head, _, data = url.partition(",")
        if not head.endswith(";base64"):
            return "form"
        try:
            image = base64.b64decode(data)
            asked = Request(image, place.question, dial.price, dial.max_tokens, dial.retention)
            async with asyncio.timeout(self.timeout):
                kept = await batcher.submit(asked, self.gate.decider.replace_rows)
                # not by the helpers, where it would wait behind every picture that is to be opened
                sent = await asyncio.to_thread(_sent, kept)
        except (UserError, binascii.Error, ValueError):
            return "image"
        except BusyError:
            return "busy"
        except TimeoutError:
            return "slow"
        except Exception as error:
            # its words may be a request's; the kind is what helps
            LOG.warning("a decision failed, and its picture goes unchanged: %s", type(error).__name__)
            return "error"
        self.cache.put(key, sent)
        return sent


def _sent(of: Replacement) -> Sent:
    return Sent(
        tuple(map(data_url, of.pictures)),
        of.selection.levels,
        of.selection.tokens,
        of.selection.tokens + of.saved,
    )


class Cache:
    """The latest decisions, of at most so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.kept: OrderedDict[bytes, Sent] = OrderedDict()

    def get(self, key: bytes) -> Sent | None:
        sent = self.kept.get(key)
        if sent is not None:
            self.kept.move_to_end(key)
        return sent

    def put(self, key: bytes, sent: Sent) -> None:
        if key in self.kept:
            return
        self.kept[key] = sent
        self.size += _bytes(sent)
        while self.size > self.most:
            _, oldest = self.kept.popitem(last=False)
            self.size -= _bytes(oldest)


def _bytes(sent: Sent) -> int:
    return sum(map(len, sent.urls))


def _digest(url: str, question: str, dial: Dial) -> bytes:
    parts = json.dumps([question, dial.price, dial.max_tokens, dial.retention]).encode()
    return hashlib.sha256(hashlib.sha256(url.encode(errors="replace")).digest() + parts).digest()


def _places(body: Any) -> Iterator[_Place]:
    """The pictures of the users' turns, whatever else a body holds."""
    messages = body.get("messages") if isinstance(body, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list) or message.get("role") != "user":
            continue
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        question = "\n".join(text for text in texts if isinstance(text, str))
        yield from (
            _Place(content, part, question)
            for part in parts
            if part.get("type") == "image_url" and "image_url" in part
        )


def _part(part: dict[str, Any], url: str) -> dict[str, Any]:
    """Another picture in a part. It has no uuid: servers take pictures of one uuid for the same."""
    picture = {key: value for key, value in part["image_url"].items() if key != "uuid"}
    return {key: value for key, value in part.items() if key != "uuid"} | {
        "image_url": picture | {"url": url}
    }
