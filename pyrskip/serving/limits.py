"""Limits of a service: who may ask, how large a body may be and how long it may take, held before anything
reads it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from time import perf_counter

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/health",)
"""Paths that need no key: whoever restarts what is not well may have none."""
GONE = 499
"""The status that is counted where a client went away before its answer."""
LINGER = 8
"""How many times max_bytes are read of a body that is too large; of one that is larger still the connection
is closed."""


@dataclass(frozen=True)
class Limits:
    """batch, waiting: requests; timeout: seconds; max_bytes: of a body; key: that a request must bear, ''
    for none."""

    batch: int = 16
    waiting: int = 128
    timeout: float = 30.0
    max_bytes: int = 8_000_000
    key: str = field(default="", repr=False)


class Bounded:
    """Reads a request's whole body within the limits of size and time. count(path, status, seconds): called
    of every reply."""

    def __init__(self, app: ASGIApp, limits: Limits, count: Callable[[str, int, float], None]) -> None:
        self.app, self.limits, self.count = app, limits, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = perf_counter()
        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            if body is None:
                return
            start = perf_counter()
            await self.app(scope, _replay(body, receive), counted)
        except _RefusedError as refused:
            headers = {"Connection": "close"}
            if refused.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            response = JSONResponse({"error": refused.sentence}, refused.status, headers)
            await response(scope, receive, counted)
        finally:
            self.count(scope["path"], status, perf_counter() - start)

    def _check_key(self, scope: Scope) -> None:
        key = self.limits.key
        if not key or scope["path"] in OPEN:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not compare_digest(given.strip(), key.encode()):
            raise _RefusedError(401, "the request does not bear this service's key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """None where the client has gone. A body that is too large is read to its end, and dropped, before it
        is refused: most clients look for an answer only then, and would take a closed connection for a lost
        request."""
        most = self.limits.max_bytes
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length) if length.isdigit() else 0
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.timeout):
                while size <= LINGER * most and declared <= LINGER * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    parts.append(message.get("body", b""))
                    if size > most:
                        parts.clear()
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise _RefusedError(
                408, f"the request was not sent within {self.limits.timeout:g} seconds"
            ) from None
        if size > most or declared > most:
            raise _RefusedError(413, f"the request has more than {most} bytes")
        return b"".join(parts)


class _RefusedError(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        self.status, self.sentence = status, sentence


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever comes after it: that the client has gone."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
