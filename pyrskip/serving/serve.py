"""`pyrskip serve`: an HTTP service of one export.

POST /select and /answer take {"image": base64, "question": text, "price"?: number, "max_tokens"?: number,
"retention"?: number, "safe"?: true}; GET /health says whether it takes requests, GET /metrics speaks
Prometheus. Every error is {"error": sentence} with the status that fits it: 400 no text, 401 without its key,
408 too slow a sender, 413 too large, 422 bad input, 503 full or shutting down, 504 not done in time.
"""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from pyrskip.errors import UserError
from pyrskip.inference import load_engine
from pyrskip.inference.decider import Request as Question
from pyrskip.inference.decider import Selection
from pyrskip.inference.engine import Answer, Engine
from pyrskip.inference.keys import Keys
from pyrskip.picture import FORMATS
from pyrskip.serving.batcher import BusyError
from pyrskip.serving.limits import GONE, Limits
from pyrskip.serving.service import SERVICE_KEYS, Metrics, Service, check_port, limits_of, run_service

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
  key=<variable>        the environment variable with the key that requests must bear; default: none

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


class Error(BaseModel):
    error: str


class AnswerMetrics(Metrics):
    """What /metrics tells."""

    def __init__(self) -> None:
        super().__init__(("/select", "/answer"))
        self.tokens = self.counter("pyrskip_visual_tokens", "Visual tokens that were looked at")
        self.cost = self.counter("pyrskip_relative_cost", "Sum of relative costs")


def create_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The service as an ASGI application."""
    limits = limits or Limits()
    metrics = AnswerMetrics()
    service = Service(engine, limits, metrics)
    app = service.app
    codes = {
        400: "no text",
        401: "without the service's key",
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
        dial = body.price, body.max_tokens, body.retention, body.safe
        question = Question(body.image, body.question, *dial)
        try:
            result = service.batcher.submit(question, engine.answer_rows if answer else engine.select_rows)
        except BusyError:
            raise HTTPException(
                503, "too many requests wait; try again later", {"Retry-After": "1"}
            ) from None
        gone = asyncio.ensure_future(request.receive())
        either: set[asyncio.Future[Any]] = {result, gone}
        try:
            await asyncio.wait(either, timeout=limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                found: Answer | Selection = result.result()
                return found
            if gone.done():
                return None
            raise HTTPException(504, f"not answered within {limits.timeout:g} seconds")
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        finally:
            result.cancel()
            gone.cancel()

    def described(selection: Selection) -> dict[str, Any]:
        metrics.tokens.inc(selection.tokens)
        metrics.cost.inc(selection.cost)
        return vars(selection)

    @app.post("/select", response_model=Selected, responses=errors)
    async def select(body: Ask, request: Request) -> Response:
        """What to look at."""
        result = await ask(body, request, answer=False)
        return (
            JSONResponse(described(result)) if isinstance(result, Selection) else Response(status_code=GONE)
        )

    @app.post("/answer", response_model=Answered, responses=errors)
    async def answer(body: Ask, request: Request) -> Response:
        """The answer, and what was looked at for it."""
        result = await ask(body, request, answer=True)
        if not isinstance(result, Answer):
            return Response(status_code=GONE)
        return JSONResponse({"answer": result.text, **described(result.selection)})

    return app


def run(given: dict[str, str]) -> None:
    """The command: serve until it is stopped, and answer what came in before that."""
    keys = Keys(given, ("model", "backend", "threads", *SERVICE_KEYS))
    limits = limits_of(keys, max_bytes=8_000_000)
    check_port(keys)
    engine = load_engine(keys.text("model"), keys.text("backend", "onnx"), keys.whole("threads"))
    run_service(create_app(engine, limits), keys, limits.timeout)
