"""Claims about the service: the right answer, the right status for what is wrong, and it keeps serving."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from starlette.testclient import TestClient

import pyrskip
from pyrskip.gates.gate import Gate
from pyrskip.inference import Engine, Request
from pyrskip.models.native import NativeModel
from pyrskip.serving.batcher import Batcher, BusyError
from pyrskip.serving.limits import Limits
from pyrskip.serving.serve import create_app
from tests.models import TEXTS

LIMITS = Limits(batch=4, waiting=6, timeout=600.0, max_bytes=50_000)


def png(side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


IMAGE = png()
GOOD = {"image": base64.b64encode(IMAGE).decode(), "question": TEXTS[0], "price": 0.1}


@pytest.fixture(scope="session")
def engine(exported: tuple[Path, NativeModel, Gate]) -> Engine:
    return pyrskip.load(exported[0], "onnx", threads=1)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(engine, LIMITS)) as client:
        yield client


class SlowEngine(Engine):
    """Takes its time unless it is `free`, and breaks on one question. entered: since it has been used."""

    seconds = 0.2

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.free, self.entered = Event(), Event()

    def decide(self, rows: Any, seen: Any) -> Any:
        self.entered.set()
        self.free.wait(self.seconds)
        if any(self.tokenizer.decode(row.words).strip() == "break" for row in rows):
            raise RuntimeError("broken inside")
        return super().decide(rows, seen)


@pytest.fixture
def slow(engine: Engine) -> SlowEngine:
    return SlowEngine(engine.spec, engine.tokenizer, engine.query_tokenizer, engine.backend, engine.digest)


@asynccontextmanager
async def running(engine: Engine, most: int = 4, waiting: int = 6) -> Any:
    batcher = Batcher(engine, most, waiting)
    batcher.start()
    yield batcher
    await batcher.close()


def ask(text: str = TEXTS[0]) -> Request:
    return Request(IMAGE, text, price=0.1)


def test_a_lone_question_is_read_while_its_image_is_opened(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(engine, "read_ahead", read.append)

    async def three() -> None:
        async with running(engine) as batcher:
            for asked in (("what ?",), ("a shape ?", "is it red ?"), ("blue ?",)):
                await asyncio.sleep(0.01)  # until it has nothing to do
                await asyncio.gather(*(batcher.submit(ask(text), engine.answer_rows) for text in asked))

    asyncio.run(three())
    assert read == ["what ?", "a shape ?", "blue ?"], "those that come together are read together"


def test_the_service_answers_as_the_engine_does(client: TestClient, engine: Engine) -> None:
    wanted = engine.answer(IMAGE, TEXTS[0], price=0.1)
    got = client.post("/answer", json=GOOD)
    assert got.status_code == 200
    assert got.json()["answer"] == wanted.text
    assert got.json()["tiles"] == list(wanted.selection.tiles)
    selected = client.post("/select", json=GOOD)
    assert selected.json() == {k: v for k, v in got.json().items() if k != "answer"}


def test_the_service_takes_a_guaranteed_retention(client: TestClient) -> None:
    asked = {key: value for key, value in GOOD.items() if key != "price"} | {"retention": 0.98}
    assert client.post("/select", json=asked).json()["price"] == 0.02


def test_the_service_plays_a_fixed_selection_where_that_is_safe(client: TestClient) -> None:
    told = client.post("/select", json=GOOD | {"price": 2.0, "safe": True}).json()
    assert (told["confidence"], sum(n > 0 for n in told["tiles"])) == (1.0, 1)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"image": "!!"}, 422, "image"),
        ({"image": base64.b64encode(b"no image").decode()}, 422, "cannot be read as PNG"),
        ({"image": GOOD["image"][:40]}, 422, "cannot be read as PNG"),
        ({"image": ""}, 422, "image"),
        ({"question": ""}, 422, "question"),
        ({"question": "  "}, 422, "empty"),
        ({"question": "A. {0}\nB. {0}".format("word " * 60)}, 422, "allowed: 48"),
        ({"question": 7}, 422, "question"),
        ({"price": -1}, 422, "price"),
        ({"price": "cheap"}, 422, "price"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": 2.5}, 422, "max_tokens"),
        ({"retention": 0.98}, 422, "allowed: retention alone"),
        ({"safe": True, "max_tokens": 9}, 422, "allowed: safe=True with a price"),
        ({"retention": 0.5, "price": None}, 422, "retention=0.5 is not guaranteed"),
        ({"colour": 1}, 422, "colour"),
        ({"image": "A" * 60_000}, 413, "more than 50000 bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/select", "/answer"])
def test_bad_requests_have_their_status_and_a_sentence(
    client: TestClient, path: str, change: dict[str, Any], status: int, says: str
) -> None:
    refused = client.post(path, json=GOOD | change)
    assert refused.status_code == status
    assert says in refused.json()["error"]
    assert client.post(path, json=GOOD).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"image": NaN}'])
def test_a_body_that_is_no_json_is_refused(client: TestClient, body: bytes) -> None:
    refused = client.post("/answer", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert isinstance(refused.json()["error"], str)


def test_a_body_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    refused = client.post("/answer", content=(b"x" * 10_000 for _ in range(20)))
    assert refused.status_code == 413


def test_a_body_far_too_large_is_not_read(client: TestClient) -> None:
    refused = client.post("/answer", content=b"x", headers={"Content-Length": str(10**12)})
    assert refused.status_code == 413


def test_a_service_with_a_key_asks_for_it(engine: Engine) -> None:
    with TestClient(create_app(engine, replace(LIMITS, key="secret"))) as client:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            refused = client.post("/answer", json=GOOD, headers=headers)
            assert refused.status_code == 401
            assert "does not bear this service's key" in refused.json()["error"]
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        assert (
            client.post("/answer", json=GOOD, headers={"Authorization": "Bearer secret"}).status_code == 200
        )


def test_other_paths_and_methods_are_told(client: TestClient) -> None:
    assert client.get("/answer").status_code == 405
    assert client.post("/nothing").status_code == 404
    assert client.get("/health").json()["status"] == "ok"


def test_metrics_count_what_happened(engine: Engine) -> None:
    with TestClient(create_app(engine, LIMITS)) as client:
        client.post("/answer", json=GOOD)
        client.post("/answer", json=GOOD | {"price": -1})
        client.get("/some/path")
        told = client.get("/metrics").text
    assert 'pyrskip_requests_total{path="/answer",status="200"} 1.0' in told
    assert 'pyrskip_requests_total{path="/answer",status="422"} 1.0' in told
    assert 'path="other",status="404"' in told
    assert "pyrskip_batch_requests_sum 1.0" in told
    assert "process_resident_memory_bytes" in told


def test_requests_are_run_together_and_answered_apart(slow: SlowEngine) -> None:
    sizes: list[int] = []

    async def both() -> list[Any]:
        async with running(slow) as batcher:
            batcher.observe = lambda n, seconds: sizes.append(n)
            runs = [slow.answer_rows if i % 2 == 0 else slow.select_rows for i in range(len(TEXTS) + 1)]
            asked = zip((*TEXTS, ""), runs, strict=True)
            futures = [batcher.submit(ask(text), run) for text, run in asked]
            return await asyncio.gather(*futures, return_exceptions=True)

    *good, bad = asyncio.run(both())
    assert max(sizes) > 1
    assert [getattr(r, "text", None) is not None for r in good] == [True, False, True, False]
    for text, result in zip(TEXTS, good, strict=True):
        wanted = Engine.answer(slow, IMAGE, text, price=0.1)
        assert result in (wanted, wanted.selection)
    assert "empty" in str(bad)


def test_no_request_waits_for_an_image_that_came_behind_it(
    slow: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = Event()

    def prepare_one(request: Request, opened: Any) -> Any:
        assert request.question == TEXTS[0] or opens.wait(60)
        return Engine.prepare_one(slow, request, opened)

    monkeypatch.setattr(slow, "prepare_one", prepare_one)

    async def two() -> None:
        async with running(slow) as batcher:
            first, second = (batcher.submit(ask(text), slow.select_rows) for text in TEXTS[:2])
            await first
            early = not second.done()
            opens.set()
            await second
        assert early

    asyncio.run(two())


def test_a_request_that_breaks_the_engine_breaks_alone(slow: SlowEngine) -> None:
    slow.seconds = 0.0

    async def three() -> list[Any]:
        async with running(slow) as batcher:
            futures = [batcher.submit(ask(text), slow.answer_rows) for text in (TEXTS[0], "break", TEXTS[1])]
            return await asyncio.gather(*futures, return_exceptions=True)

    first, broken, last = asyncio.run(three())
    assert first.selection.tokens > 0
    assert last.selection.tokens > 0
    assert isinstance(broken, RuntimeError)


def test_a_broken_engine_is_a_500_and_the_next_request_is_served(slow: SlowEngine) -> None:
    slow.seconds = 0.0
    with TestClient(create_app(slow, LIMITS), raise_server_exceptions=False) as client:
        broken = client.post("/answer", json=GOOD | {"question": "break"})
        assert broken.status_code == 500
        assert "inside" not in broken.text
        assert client.post("/answer", json=GOOD).status_code == 200


def test_more_than_may_wait_are_told_so(slow: SlowEngine) -> None:
    async def many() -> int:
        refused = 0
        async with running(slow, waiting=3) as batcher:
            for _ in range(5):
                try:
                    batcher.submit(ask(), slow.select_rows)
                except BusyError:
                    refused += 1
        return refused

    assert asyncio.run(many()) == 2


def test_a_request_that_was_given_up_is_never_computed(slow: SlowEngine) -> None:
    ran: list[int] = []
    slow.seconds = 60.0

    async def give_up() -> None:
        async with running(slow, most=1) as batcher:
            batcher.observe = lambda n, seconds: ran.append(n)
            first, second = (batcher.submit(ask(), slow.select_rows) for _ in range(2))
            await asyncio.to_thread(slow.entered.wait)
            second.cancel()
            slow.free.set()
            await first

    asyncio.run(give_up())
    assert ran == [1]


def test_closing_answers_what_waits_and_takes_nothing_new(slow: SlowEngine) -> None:
    async def close() -> list[Any]:
        async with running(slow) as batcher:
            futures = [batcher.submit(ask(), slow.answer_rows) for _ in range(5)]
        with pytest.raises(BusyError):
            batcher.submit(ask(), slow.answer_rows)
        return [future.result() for future in futures]

    assert len(asyncio.run(close())) == 5


def test_what_takes_too_long_is_a_504(slow: SlowEngine) -> None:
    slow.seconds = 60.0
    with TestClient(create_app(slow, replace(LIMITS, timeout=0.5))) as client:
        assert client.post("/answer", json=GOOD).status_code == 504
        slow.free.set()
        # a busy machine may need more than one go at half a second
        assert any(client.post("/answer", json=GOOD).status_code == 200 for _ in range(100))


@pytest.mark.slow
def test_the_openapi_document_holds(engine: Engine) -> None:
    """Requests made from the document, good and bad: no crash, and only answers that the document knows."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(engine, replace(LIMITS, waiting=128)))
    # a document can say that a text is base64, but not that it is an image: good requests by the document may
    # be refused
    beyond = [positive_data_acceptance]

    paths = set()
    for operation in schema.get_all_operations():
        strategies = [
            operation.ok().as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(strategies))
        def holds(case: schemathesis.Case) -> None:
            paths.add(case.path)
            case.call_and_validate(excluded_checks=beyond)

        holds()
    assert paths == {"/select", "/answer", "/health", "/metrics"}


@pytest.mark.slow
def test_a_stopped_service_answers_what_came_in(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    """The command itself: it serves, survives clients that go away and senders that stall, and ends well on
    SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from pyrskip.cli import main; main()",
        "serve",
        f"model={exported[0]}",
        f"port={port}",
    ]
    process = subprocess.Popen(
        [*command, "timeout=10"], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = json.dumps(GOOD).encode()
        head = (
            "POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            f"{len(body)}\r\n\r\n"
        )
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(head.encode() + body)
        with socket.create_connection(("127.0.0.1", port)) as stalled:
            stalled.sendall(b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in stalled.recv(100)
        assert httpx.post(f"{address}/answer", json=GOOD).status_code == 200
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
        for connection in waiting:
            connection.sendall(head.encode() + body[:-1])
        assert httpx.get(f"{address}/health").status_code == 200  # so those that came before have begun
        for connection in waiting:
            connection.sendall(body[-1:])
        process.send_signal(signal.SIGTERM)
        replies = [connection.makefile("rb").read() for connection in waiting]
        assert all(reply.startswith(b"HTTP/1.1 200") and b'"answer"' in reply for reply in replies)
        assert process.wait(600) == 0
    finally:
        process.kill()
        process.wait()
