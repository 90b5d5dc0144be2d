"""A client of OpenAI's chat completions: many requests at a time, repeated where the server stumbles.

What a server says of one request costs that request. Only a server that answers nothing, or refuses the key
or the address, ends it all.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyrskip.errors import UserError

if TYPE_CHECKING:
    import httpx

    from pyrskip.models.vlm.journal import Journal

# too many requests, and a server that is starting, restarting or behind a proxy that is
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504, 529)
REFUSES_ALL = (401, 403, 404)
"""A wrong key or address. Another 4xx is of one request, such as a picture that the server cannot take."""
LONGEST_WAIT = 30.0
STREAMS: tuple[dict[str, Any], ...] = (
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True},
    {},
)
"""Ways to ask for an answer piece by piece, the best first."""


@dataclass(frozen=True)
class Request:
    """body: of a chat completion, without how it is sent. kept: the tiles whose pictures it holds, where its
    answer is wanted; None where only its tokens are. scored: of how many tokens at the prompt's end the
    log-probabilities are wanted."""

    body: Mapping[str, Any]
    kept: tuple[int, ...] | None = None
    scored: int | None = None

    @cached_property
    def key(self) -> str:
        """A digest of what is asked, wherever it is sent to."""
        content = json.dumps([self.body, self.scored], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Reply:
    """text: the answer, None where none was wanted. tokens: of the prompt, None where the server does not
    count. first, total: seconds to the first piece of the answer, None where it came in one, and to its end.
    logprobs: those that were wanted, in nats."""

    text: str | None
    tokens: int | None
    first: float | None
    total: float
    logprobs: tuple[float, ...] | None = None


class NoAnswerError(Exception):
    """Nothing that can be read came back. wait: seconds that the server asks for. once: it is of the request,
    and asking again once is enough."""

    def __init__(self, reason: str, wait: float | None = None, once: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.once = wait, once


class Client:
    """url: up to and with /v1. key: the environment variable that holds the API key, '' for none. parallel:
    requests at a time; timeout: seconds without a byte; retries: of a request. greeting: a body that any
    server that is up answers.

    journal: replies that are there already, and where others are kept; None to keep none.
    """

    def __init__(
        self, url: str, key: str, parallel: int, timeout: float, retries: int, greeting: Mapping[str, Any]
    ) -> None:
        self.address = f"{url.rstrip('/')}/chat/completions"
        self.key, self.parallel, self.timeout, self.retries = key, parallel, timeout, retries
        self.greeting = Request(greeting)
        self.journal: Journal | None = None

    @cached_property
    def http(self) -> "httpx.Client":
        try:
            import httpx
        except ImportError as error:
            raise UserError("model=remote needs the extra: pip install 'pyrskip[remote]'") from error
        for name in ("httpx", "httpcore"):  # a line a request
            logging.getLogger(name).setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {os.environ[self.key]}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.parallel)
        return httpx.Client(timeout=self.timeout, headers=headers, limits=limits)

    @cached_property
    def stream(self) -> dict[str, Any]:
        """How the server can be asked for an answer piece by piece, with its count of tokens at the end.

        Raises UserError where it takes no request at all, with what it says.
        """
        said: Reply | UserError = UserError("")
        for way in STREAMS:
            said = self._send(self.greeting, way)
            if isinstance(said, Reply) and said.tokens is not None:
                return way
        if isinstance(said, UserError):
            raise UserError(
                f"{said}; allowed: in model.remote.extra fields that this server takes, with null for one to "
                "leave out, and model.remote.tokens_key"
            )
        return {}

    def ask(self, requests: Sequence[Request]) -> list[Reply | UserError]:
        """The replies, in the requests' order; an error for one that the server refuses or cannot answer.

        Raises UserError where it answers nothing, or refuses everything.
        """
        journal = self.journal
        found: dict[str, Reply | UserError] = {}
        missing: dict[str, Request] = {}
        for request in requests:
            if journal is not None and request.key in journal.replies:
                found[request.key] = journal.replies[request.key]
            else:
                missing[request.key] = request
        if missing:
            stream = self.stream
            ended: list[UserError] = []

            def one(request: Request) -> Reply | UserError:
                if ended:
                    raise ended[0]
                try:
                    reply = self._send(request, stream if request.kept is not None else {})
                except UserError as error:
                    ended.append(error)
                    raise
                if isinstance(reply, Reply) and journal is not None:
                    journal.add(request, reply)
                return reply

            pool = ThreadPoolExecutor(self.parallel)
            try:
                found |= zip(missing, pool.map(one, missing.values()), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)
                if journal is not None:
                    journal.sync()
        return [found[request.key] for request in requests]

    def _send(self, request: Request, stream: Mapping[str, Any]) -> Reply | UserError:
        import httpx

        tries = 0
        while True:
            tries += 1
            try:
                return self._post(request, stream)
            except httpx.RequestError as error:
                fault = NoAnswerError(f"{type(error).__name__}: {error}")
            except NoAnswerError as error:
                fault = error
            if tries > (min(self.retries, 1) if fault.once else self.retries):
                break
            wait = 0.5 * 2 ** (tries - 1) if fault.wait is None else fault.wait
            time.sleep(min(LONGEST_WAIT, wait))
        if fault.once:
            return UserError(f"{self.address} refused a request with {fault}")
        said = f"{self.address} gave no answer in {tries} tries ({fault})"
        if request is self.greeting:
            raise UserError(
                f"model.remote.url: {said}; what was answered is kept, so run the same command again once "
                "the server is up"
            )
        self._send(self.greeting, {})  # raises where the server is down
        return UserError(said)

    def _post(self, request: Request, stream: Mapping[str, Any]) -> Reply:
        """Raises NoAnswerError, and UserError where the server refuses everything."""
        started = time.monotonic()
        with self.http.stream("POST", self.address, json={**request.body, **stream}) as reply:
            status = reply.status_code
            if status != 200:
                reply.read()
                fault = f"status {status}: {' '.join(reply.text.split())[:300]}"
                if status in TRY_AGAIN or status >= 500:
                    raise NoAnswerError(fault, _seconds(reply.headers.get("retry-after", "")))
                if status in REFUSES_ALL or status < 400:
                    raise UserError(f"{self.address} refused a request with {fault}")
                raise NoAnswerError(fault, once=True)
            first = None
            try:
                if reply.headers.get("content-type", "").startswith("text/event-stream"):
                    content, first = _gathered(reply.iter_lines())
                else:
                    reply.read()
                    content = reply.json()
                text, tokens, logprobs = _read(content, request)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise NoAnswerError(
                    f"another form than OpenAI's chat completions, {type(error).__name__}: {error}"
                ) from error
        total = time.monotonic() - started
        return Reply(text, tokens, None if first is None else first - started, total, logprobs)


def _read(content: Any, request: Request) -> tuple[str | None, int | None, tuple[float, ...] | None]:
    text = content["choices"][0]["message"]["content"]
    counted = (content.get("usage") or {}).get("prompt_tokens")
    tokens = None if counted is None else int(counted)
    logprobs = None
    if request.scored is not None:
        # a dictionary a token, of the token itself and perhaps of likelier ones behind it
        logprobs = tuple(
            float(next(iter(entry.values()))["logprob"])
            for entry in content["prompt_logprobs"][-request.scored :]
        )
    if request.kept is None:
        return None, tokens, logprobs
    if not isinstance(text, str):
        raise TypeError("the answer is no text")
    return text.strip(), tokens, logprobs


def _gathered(lines: Iterable[str]) -> tuple[dict[str, Any], float | None]:
    """Events of a stream as one completion, and when its first piece of text came. Raises ValueError where
    it breaks off."""
    pieces: list[str] = []
    usage, ended, first = None, False, None
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            ended = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise ValueError(f"the stream says {event['error']}")
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                first = first or time.monotonic()
                pieces.append(piece)
            ended = ended or choice.get("finish_reason") is not None
    if not ended:
        raise ValueError("the stream breaks off")
    return {"choices": [{"message": {"content": "".join(pieces)}}], "usage": usage}, first


def _seconds(after: str) -> float | None:
    """Of a Retry-After header; None where it holds no number of them."""
    try:
        seconds = float(after)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
