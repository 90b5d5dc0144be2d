"""What HTTP services share: one decider that is asked in batches, errors as sentences, metrics for
Prometheus, the keys of their commands, and how they run and stop."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

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
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pyrskip.errors import UserError
from pyrskip.inference.decider import Decider
from pyrskip.inference.keys import Keys
from pyrskip.serving.batcher import Batcher
from pyrskip.serving.limits import Bounded, Limits

SERVICE_KEYS = ("host", "port", "batch", "waiting", "timeout", "max_bytes", "key")
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What /metrics tells of any service. paths: that are counted by name."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = (*paths, "/health", "/metrics")
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self.counter("pyrskip_requests", "Requests by outcome", "path", "status")
        self.seconds = self.histogram("pyrskip_request_seconds", "From the whole body to the end", "path")
        self.batch = self.histogram("pyrskip_batch_requests", "Requests run together", buckets=BATCHES)
        self.engine = self.counter("pyrskip_engine_seconds", "Time in the model and its gate")
        self.waiting = Gauge(
            "pyrskip_waiting_requests", "Requests that wait for the engine", registry=self.registry
        )

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def replied(self, path: str, status: int, seconds: float) -> None:
        # any other path is one, or whoever asks for thousands of them fills the memory
        path = path if path in self.paths else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def ran(self, requests: int, seconds: float) -> None:
        self.batch.observe(requests)
        self.engine.inc(seconds)


class Health(BaseModel):
    status: str
    export: str


class Service:
    """An application within limits, whose errors are {"error": sentence}, with GET /health and /metrics, and
    a decider whose requests are batched while it runs. close: called when it has ended."""

    def __init__(
        self,
        decider: Decider,
        limits: Limits,
        metrics: Metrics,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.decider, self.limits, self.metrics, self.close = decider, limits, metrics, close
        self.running: Batcher | None = None
        app = FastAPI(title="pyrskip", version="1", lifespan=self._live, docs_url=None, redoc_url=None)
        app.add_middleware(Bounded, limits=limits, count=metrics.replied)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(HTTPException, _refused)
        app.add_exception_handler(Exception, _broken)
        app.get(
            "/health", response_model=Health, responses={503: {"model": Health, "description": "stopping"}}
        )(self.health)
        text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
        app.get("/metrics", response_class=Response, responses={200: text})(self.tell)
        self.app = app

    @property
    def batcher(self) -> Batcher:
        if self.running is None:
            raise HTTPException(503, "the service is starting")
        return self.running

    async def health(self) -> Response:
        """Whether requests are taken."""
        ready = self.running is not None and not self.running.closing
        state = {"status": "ok" if ready else "stopping", "export": self.decider.digest}
        return JSONResponse(state, 200 if ready else 503)

    async def tell(self) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @asynccontextmanager
    async def _live(self, app: FastAPI) -> AsyncIterator[None]:
        batcher = Batcher(self.decider, self.limits.batch, self.limits.waiting, self.metrics.ran)
        self.metrics.waiting.set_function(lambda: len(batcher.jobs))
        batcher.start()
        self.running = batcher
        yield
        await batcher.close()
        if self.close is not None:
            await self.close()


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


def limits_of(keys: Keys, max_bytes: int) -> Limits:
    """The limits that a command line gives. max_bytes: by default."""
    return Limits(
        batch=keys.whole("batch", default=16),
        waiting=keys.whole("waiting", default=128),
        timeout=keys.whole("timeout", default=30),
        max_bytes=keys.whole("max_bytes", default=max_bytes),
        key=secret(keys, "key"),
    )


def secret(keys: Keys, name: str) -> str:
    """What is in the environment variable that a key names; '' where none is named. Raises UserError where it
    is not set."""
    variable = keys.text(name, "")
    if variable and not os.environ.get(variable):
        raise UserError(
            f"{name}={variable} is no environment variable that is set; allowed: one that holds the key"
        )
    return os.environ[variable] if variable else ""


def check_port(keys: Keys) -> None:
    if keys.whole("port", default=8000) > 65535:
        raise UserError(f"port={keys.text('port')}: allowed: 1 to 65535")


def run_service(app: FastAPI, keys: Keys, grace: float, **more: Any) -> None:
    """Serve until the process is stopped, and answer what came in before that within `grace` seconds."""
    # uvicorn ends well and then raises the signal that stopped it again, for whoever handled it before
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    uvicorn.run(
        app,
        host=keys.text("host", "127.0.0.1"),
        port=keys.whole("port", default=8000),
        access_log=False,
        timeout_graceful_shutdown=int(grace),
        **more,
    )
