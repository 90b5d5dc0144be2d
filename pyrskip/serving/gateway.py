"""`pyrskip gateway`: a proxy in front of a server of OpenAI's chat interface, which decides what of each
picture is sent on.

POST /v1/chat/completions replaces each picture that a user's turn holds as a data URL by the pictures that a
gate keeps of it; every other path under /v1 is passed on as it is. Replies are passed back byte for byte, as
they come, with x-pyrskip-* headers. What cannot be decided goes through unchanged, and is counted.
"""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from pyrskip.errors import UserError
from pyrskip.inference import GateAlone, load
from pyrskip.inference.keys import Keys
from pyrskip.serving.limits import GONE, Limits
from pyrskip.serving.rewriting import Dial, Rewriter, Rewritten, Sent, Unchanged
from pyrskip.serving.service import SERVICE_KEYS, Metrics, Service, check_port, limits_of, run_service, secret

USAGE = """usage: pyrskip gateway bundle=<export> upstream=<address> [key=value ...]

  bundle=<directory or hub id>   an export of a gate alone
  run=<directory>                in its place a finished run, whose gate is exported to <directory>/export
  upstream=http://host:port      the server that answers, with or without /v1
  host=127.0.0.1  port=8000
  price=<number>  max_tokens=<tokens>  of requests that say nothing else in x-pyrskip-price,
                                 x-pyrskip-max-tokens or x-pyrskip-retention
  retention=<share>              of full's score, one that the export guarantees; in place of the two
  extra=<JSON object>            fields of requests whose pictures were replaced, where they have none of the
                                 name; default: none, for servers refuse what they do not know
  key=<variable>                 the environment variable with the key that requests must bear; default: none,
                                 and their Authorization goes to the upstream
  upstream_key=<variable>        the environment variable with the key that the upstream is given
  backend=onnx|torch             default: onnx
  threads=<number>               of one operator
  batch=16                       most pictures that are decided on together
  waiting=128                    most pictures that wait; more go unchanged
  timeout=30                     seconds until a slow sender is told 408, and a picture goes undecided
  upstream_timeout=600           seconds that the upstream may be silent; and for requests under way when the
                                 gateway is stopped
  connections=512                most requests that are at the upstream at a time
  max_bytes=64000000             of a request's body; more is told 413
  cache_bytes=64000000           of decisions that are kept

example: pyrskip gateway bundle=exports/my_gate upstream=http://localhost:8001 port=8000"""

CHAT = "/v1/chat/completions"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
OWN = "x-pyrskip-"
KEEPS_ALIVE = 2.0
"""Seconds that an idle connection is kept: less than servers do, which else close it as a request comes."""
HOPS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which are not passed on."""


@dataclass(frozen=True)
class GatewayConfig:
    """upstream: the server's address, without /v1. dial: of requests that say nothing else. extra: fields of
    requests whose pictures were replaced. upstream_key: what the server is given in place of the clients'
    Authorization, '' for none. upstream_timeout: seconds of silence; connections: at a time; cache_bytes: of
    decisions."""

    upstream: str
    dial: Dial = field(default_factory=Dial)
    extra: Mapping[str, Any] = field(default_factory=dict)
    upstream_key: str = field(default="", repr=False)
    upstream_timeout: float = 600.0
    connections: int = 512
    cache_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        try:
            host = urlsplit(self.upstream).hostname
        except ValueError:
            host = None
        if not self.upstream.startswith(("http://", "https://")) or not host:
            raise UserError(
                f"upstream={self.upstream} is no address; allowed: http://<host>:<port>, or https://"
            )
        object.__setattr__(self, "upstream", self.upstream.rstrip("/").removesuffix("/v1"))


class GatewayMetrics(Metrics):
    def __init__(self) -> None:
        super().__init__((CHAT, "/v1/models"))
        self.pictures = self.counter(
            "pyrskip_pictures", "Pictures that were replaced, and why others were not", "outcome"
        )
        self.tokens = self.counter("pyrskip_visual_tokens", "Visual tokens of pictures that were sent")
        self.whole = self.counter("pyrskip_visual_tokens_whole", "Visual tokens of what these replaced")
        self.faults = self.counter("pyrskip_upstream_faults", "Requests that the upstream failed", "kind")
        self.own = self.histogram("pyrskip_own_seconds", "From the whole body to its way to the upstream")

    def decided(self, rewritten: Rewritten, seconds: float) -> None:
        self.own.observe(seconds)
        for of in rewritten.pictures:
            self.pictures.labels("replaced" if isinstance(of, Sent) else of).inc()
            if isinstance(of, Sent):
                self.tokens.inc(of.tokens)
                self.whole.inc(of.whole)


class Relayed(StreamingResponse):
    """The upstream's reply, byte for byte, as it comes; the connection is given back whatever happens."""

    def __init__(self, reply: httpx.Response, own: Mapping[str, str], metrics: GatewayMetrics) -> None:
        super().__init__(self._bytes(), reply.status_code)
        self.reply, self.metrics = reply, metrics
        passed = [pair for pair in reply.headers.raw if pair[0].lower().decode("latin-1") not in HOPS]
        self.raw_headers = [*passed, *((name.encode(), value.encode()) for name, value in own.items())]

    async def _bytes(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self.reply.aiter_raw():
                yield chunk
        except httpx.HTTPError:
            # the client must see that this is not the end: the server ends the connection
            self.metrics.faults.labels("broken").inc()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.reply.aclose()


def create_app(gate: GateAlone, config: GatewayConfig, limits: Limits) -> FastAPI:
    """The gateway as an ASGI application."""
    metrics = GatewayMetrics()
    timeout = httpx.Timeout(config.upstream_timeout, connect=limits.timeout, pool=limits.timeout)
    pool = httpx.Limits(max_connections=config.connections, keepalive_expiry=KEEPS_ALIVE)
    client = httpx.AsyncClient(timeout=timeout, limits=pool)
    service = Service(gate.decider, limits, metrics, client.aclose)
    rewriter = Rewriter(gate, limits.timeout, config.cache_bytes, dict(config.extra))

    @service.app.api_route("/v1/{path:path}", methods=list(METHODS))
    async def forward(path: str, request: Request) -> Response:
        start, raw, own = perf_counter(), await request.body(), {}
        if request.method == "POST" and request.url.path == CHAT:
            try:
                dial = dial_of(request.headers, config.dial)
                rewritten = await rewriter.rewrite(raw, dial, service.batcher)
            except UserError as error:
                raise HTTPException(422, str(error)) from error
            raw, seconds = rewritten.body, perf_counter() - start
            metrics.decided(rewritten, seconds)
            own = told(rewritten, seconds)
        asked = httpx.Request(
            request.method,
            _address(config.upstream, request.scope),
            headers=_passed(request.headers, config.upstream_key, bool(limits.key)),
            content=raw,
            extensions={"timeout": timeout.as_dict()},
        )
        sending = asyncio.ensure_future(client.send(asked, stream=True))
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                return Relayed(sending.result(), own, metrics)
            return Response(status_code=GONE)
        except httpx.HTTPError as error:
            status, kind, sentence = _fault(error)
            metrics.faults.labels(kind).inc()
            raise HTTPException(status, f"{sentence} ({type(error).__name__})") from None
        finally:
            gone.cancel()
            sending.cancel()

    return service.app


def dial_of(headers: Headers, default: Dial) -> Dial:
    """What a request's headers ask of the gate, or the default where they say nothing. Raises UserError for
    what is no number."""

    def number(name: str) -> float | None:
        given = headers.get(OWN + name)
        try:
            value = None if given is None else float(given)
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise UserError(f"{OWN}{name}: {given!r} is no number; allowed: a finite number")
        return value

    price, most, retention = number("price"), number("max-tokens"), number("retention")
    if most is not None and most != int(most):
        raise UserError(f"{OWN}max-tokens: {most!r}: allowed: whole numbers of at least 1")
    if price is most is retention is None:
        return default
    return Dial(price, None if most is None else int(most), retention)


def told(rewritten: Rewritten, seconds: float) -> dict[str, str]:
    """Headers that say what was done. Of each picture the levels that are kept, or why it is unchanged."""
    sent = [of for of in rewritten.pictures if isinstance(of, Sent)]
    decision = [_said(of) for of in rewritten.pictures]
    return {
        f"{OWN}decision": "; ".join(decision) or "no picture",
        f"{OWN}tokens": str(sum(of.tokens for of in sent)),
        f"{OWN}saved": str(sum(of.whole - of.tokens for of in sent)),
        f"{OWN}ms": f"{1000 * seconds:.1f}",
    }


def _said(of: Sent | Unchanged) -> str:
    return ",".join(map(str, of.levels)) if isinstance(of, Sent) else f"unchanged ({of})"


def _address(upstream: str, scope: Scope) -> httpx.URL:
    """The request's path and query at the upstream, as they were sent. Raises HTTPException for a path that
    leaves /v1."""
    raw, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
    # a raw path may hold the query, as some servers and clients have it
    path = raw.partition(b"?")[0].decode("latin-1")
    try:
        if ".." not in scope["path"].split("/"):
            return httpx.URL(upstream + path + (f"?{query.decode('latin-1')}" if query else ""))
    except httpx.InvalidURL:
        pass
    raise HTTPException(404, "there is no such path")


def _passed(headers: Headers, upstream_key: str, guarded: bool) -> list[tuple[bytes, bytes]]:
    """The headers for the upstream. guarded: whether the client's Authorization is for the gateway."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    left_out = HOPS | named | {"host", "content-length", "expect"}
    if guarded or upstream_key:
        left_out |= {"authorization"}
    passed = [
        (name, value)
        for name, value in headers.raw
        if name.decode("latin-1") not in left_out and not name.startswith(OWN.encode())
    ]
    if upstream_key:
        passed.append((b"authorization", b"Bearer " + upstream_key.encode()))
    return passed


def _fault(error: httpx.HTTPError) -> tuple[int, str, str]:
    """The status, the kind and the sentence of an upstream that gave no reply."""
    if isinstance(error, httpx.PoolTimeout):
        return 503, "full", "too many requests are at the upstream; try again later"
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return 504, "silent", "the upstream gave no answer in time"
    return 502, "down", "the upstream cannot be reached"


def run(given: dict[str, str]) -> None:
    """The command: pass requests on until it is stopped, and finish those that came in before that."""
    dials = ("price", "max_tokens", "retention")
    more = ("extra", "upstream_key", "upstream_timeout", "connections", "cache_bytes")
    keys = Keys(given, ("bundle", "upstream", *dials, *more, "backend", "threads", *SERVICE_KEYS))
    limits = limits_of(keys, max_bytes=64_000_000)
    check_port(keys)
    config = GatewayConfig(
        upstream=keys.text("upstream"),
        dial=Dial(keys.number("price"), keys.whole("max_tokens"), keys.number("retention")),
        extra=_object(keys.text("extra", "{}")),
        upstream_key=secret(keys, "upstream_key"),
        upstream_timeout=keys.whole("upstream_timeout", default=600),
        connections=keys.whole("connections", default=512),
        cache_bytes=keys.whole("cache_bytes", 0, default=64_000_000),
    )
    bundle = keys.text("bundle")
    gate = load(bundle, keys.text("backend", "onnx"), threads=keys.whole("threads"))
    if not isinstance(gate, GateAlone):
        raise UserError(
            f"bundle={bundle} holds the model that its gate decides for; allowed: a gate alone, exported "
            "from a run with model=hf or model=remote, or pyrskip serve model=..."
        )
    gate.decider.check_dial(config.dial.price, config.dial.max_tokens, config.dial.retention)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log addresses, and keys may be in them
    app = create_app(gate, config, limits)
    run_service(app, keys, config.upstream_timeout, server_header=False, date_header=False)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f'extra={text} is no JSON object; allowed: such as {{"max_dynamic_patch": 4}}')
    return value
