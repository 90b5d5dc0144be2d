"""`pyrskip serve`: an HTTP service of one export.

POST /select and /answer take {"image": base64, "question": text, "price"?: number, "max_tokens"?: number,
"retention"?: number, "safe"?: true}; GET /health says whether it takes requests, GET /metrics speaks
Prometheus. Every error is {"error": sentence} with the status that fits it: 400 no text, 408 too slow a
sender, 413 too large, 422 bad input, 503 full or shutting down, 504 not done in time.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from pyrskip.errors import UserError
from pyrskip.inference import load
from pyrskip.inference.batcher import Batcher, BusyError
from pyrskip.inference.engine import Answer, Engine, Selection
from pyrskip.inference.engine import Request as Question
from pyrskip.inference.keys import Keys
from pyrskip.inference.limits import GONE, Bounded, Limits
from pyrskip.picture import FORMATS

USAGE = """usage: pyrskip serve model=<export> [key=value ...]

  model=<directory or hub id>
  host=127.0.0.1  port=8000
  backend=onnx|torch    default: onnx
  threads=<number>      of one operator
  batch=16              most requests that are run together
  waiting=128           most requests that wait; more are told 503
  timeout=30            seconds until a request is told 504, and for those that are being answered when the
                        service is stopped
  max_bytes=8000000     of a request's body; more is told 413

example: pyrskip serve model=exports/easy_vqa port=8000"""


class Ask(BaseModel):
    """A question on an image."""

    model_config = ConfigDict(extra="forbid")
    image: Annotated[Base64Bytes, Field(min_length=1, description=f"{', '.join(FORMATS)}, in base64")]
    question: Annotated[str, Field(min_length=1)]
    price: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="what relative cost 1 is worth")
    ] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, le=2**53, strict=True, description="most visual tokens")
    ] = None
    retention: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="of full's score, one that the export guarantees; alone"
        ),
    ] = None
    safe: Annotated[
        bool, Field(description="a fixed selection at prices where the gate is not above those")
    ] = False


class Selected(BaseModel):
    """What was looked at. cost is relative to the mean full pyramid; cut: tokens of the question that were
    too many to be read."""

    levels: list[int]
    tokens: int
    tiles: list[int]
    cost: float
    flops: float
    confidence: float
    price: float
    cut: int


class Answered(Selected):
    answer: str


class Health(BaseModel):
    status: str
    export: str


class Error(BaseModel):
    error: str


class Metrics:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("pyrskip_requests", "Requests by outcome", ("path", "status"), **kept)
        seconds = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
        self.seconds = Histogram(
            "pyrskip_request_seconds", "From the whole body to the answer", ("path",), buckets=seconds, **kept
        )
        self.batch = Histogram(
            "pyrskip_batch_requests", "Requests run together", buckets=(1, 2, 4, 8, 16, 32, 64), **kept
        )
        self.engine = Counter("pyrskip_engine_seconds", "Time in the model and its gate", **kept)
        self.waiting = Gauge("pyrskip_waiting_requests", "Requests that wait for the engine", **kept)
        self.tokens = Counter("pyrskip_visual_tokens", "Visual tokens that were looked at", **kept)
        self.cost = Counter("pyrskip_relative_cost", "Sum of relative costs", **kept)

    def replied(self, path: str, status: int, seconds: float) -> None:
        # any other path is one, or whoever asks for thousands of them fills the memory
        path = path if path in ("/select", "/answer", "/health", "/metrics") else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def ran(self, requests: int, seconds: float) -> None:
        self.batch.observe(requests)
        self.engine.inc(seconds)


def create_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The service as an ASGI application."""
    limits = limits or Limits()
    metrics = Metrics()
    batcher: Batcher | None = None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(engine, limits.batch, limits.waiting, metrics.ran)
        metrics.waiting.set_function(lambda: len(batcher.jobs) if batcher else 0)
        batcher.start()
        yield
        await batcher.close()

    app = FastAPI(title="pyrskip", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Bounded, limits=limits, count=metrics.replied)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    codes = {
        400: "no text",
        408: "too slow a sender",
        413: "too large",
        422: "bad input",
        503: "full or stopping",
        504: "not done in time",
    }
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": Error, "description": text} for code, text in codes.items()
    }

    async def ask(body: Ask, request: Request, answer: bool) -> Answer | Selection | None:
        """None where the client has gone."""
        if batcher is None:
            raise HTTPException(503, "the service is starting")
        try:
            dial = body.price, body.max_tokens, body.retention, body.safe
            asked = Question(body.image, body.question, *dial)
            result = batcher.submit(asked, answer)
        except BusyError:
            raise HTTPException(
                503, "too many requests wait; try again later", {"Retry-After": "1"}
            ) from None
        gone = asyncio.ensure_future(request.receive())
        either: set[asyncio.Future[Any]] = {result, gone}
        try:
            await asyncio.wait(either, timeout=limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                return None
            raise HTTPException(504, f"not answered within {limits.timeout:g} seconds")
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        finally:
            result.cancel()
            gone.cancel()

    def told(selection: Selection) -> dict[str, Any]:
        metrics.tokens.inc(selection.tokens)
        metrics.cost.inc(selection.cost)
        return vars(selection)

    @app.post("/select", response_model=Selected, responses=errors)
    async def select(body: Ask, request: Request) -> Response:
        """What to look at."""
        result = await ask(body, request, answer=False)
        return JSONResponse(told(result)) if isinstance(result, Selection) else Response(status_code=GONE)

    @app.post("/answer", response_model=Answered, responses=errors)
    async def answer(body: Ask, request: Request) -> Response:
        """The answer, and what was looked at for it."""
        result = await ask(body, request, answer=True)
        if not isinstance(result, Answer):
            return Response(status_code=GONE)
        return JSONResponse({"answer": result.text, **told(result.selection)})

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "stopping"}})
    async def health() -> Response:
        """Whether requests are taken."""
        ready = batcher is not None and not batcher.closing
        return JSONResponse(
            {"status": "ok" if ready else "stopping", "export": engine.digest}, 200 if ready else 503
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def tell() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed on this request; its log says more"}, 500)


def run(given: dict[str, str]) -> None:
    """The command: serve until it is stopped, and answer what came in before that."""
    keys = Keys(
        given, ("model", "host", "port", "backend", "threads", "batch", "waiting", "timeout", "max_bytes")
    )
    limits = Limits(
        batch=keys.whole("batch", default=16),
        waiting=keys.whole("waiting", default=128),
        timeout=keys.whole("timeout", default=30),
        max_bytes=keys.whole("max_bytes", default=8_000_000),
    )
    port = keys.whole("port", default=8000)
    if port > 65535:
        raise UserError(f"port={port}: allowed: 1 to 65535")
    engine = load(keys.text("model"), keys.text("backend", "onnx"), threads=keys.whole("threads"))
    # uvicorn ends well and then raises the signal that stopped it again, for whoever handled it before
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    uvicorn.run(
        create_app(engine, limits),
        host=keys.text("host", "127.0.0.1"),
        port=port,
        access_log=False,
        timeout_graceful_shutdown=int(limits.timeout),
    )
