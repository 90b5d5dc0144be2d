"""Claims about the gateway: what it sends on and what it gives back, that it opens where it fails, and that a
key reaches whom it is for alone."""

import base64
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

import pyrskip
from pyrskip.errors import UserError
from pyrskip.gates.gate import Gate
from pyrskip.inference import GateAlone, load_engine
from pyrskip.inference.processor import data_url
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.serving.gateway import CHAT, GatewayConfig, create_app
from pyrskip.serving.limits import Limits
from pyrskip.serving.rewriting import Cache, Dial, Sent
from tests.models import TEXTS
from tests.test_cli import refused
from tests.upstream import EVENTS, SAID, Upstream, running, upstream

LIMITS = Limits(batch=4, waiting=8, timeout=600.0, max_bytes=200_000)
KEY = "sk-never-to-be-seen"


def png(width: int = 40, height: int = 20, orientation: int | None = None) -> bytes:
    image = Image.effect_noise((width, height), 90).convert("RGB")
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def part(address: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}} | more


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def asked(*content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}]} | more


PICTURE = url(png())
BODY = asked(part(PICTURE), text(TEXTS[0]), temperature=0)


@pytest.fixture(scope="module")
def gate(alone: tuple[Path, ServedModel, Gate]) -> GateAlone:
    loaded = pyrskip.load(alone[0], "torch")
    assert isinstance(loaded, GateAlone)
    return loaded


@pytest.fixture
def server() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


def through(gate: GateAlone, server: Upstream, limits: Limits = LIMITS, **config: Any) -> TestClient:
    return TestClient(create_app(gate, GatewayConfig(server.url, **config), limits))


@pytest.fixture
def client(gate: GateAlone, server: Upstream) -> Iterator[TestClient]:
    with through(gate, server) as client:
        yield client


def told(client: TestClient, name: str) -> float:
    (value,) = re.findall(rf"(?m)^{re.escape(name)} (\S+)$", client.get("/metrics").text)
    return float(value)


def test_a_picture_is_replaced_by_what_the_gate_keeps_of_it(
    client: TestClient, server: Upstream, gate: GateAlone
) -> None:
    wanted = gate.decide(base64.b64decode(PICTURE.split(",")[1]), TEXTS[0])
    reply = client.post(CHAT, json=BODY)
    assert reply.status_code == 200 and reply.content == SAID
    (got,) = server.got
    shown = [Image.open(io.BytesIO(base64.b64decode(u.split(",")[1]))) for u in got.urls()]
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in wanted.pictures]
    assert got.messages()[0]["content"][-1] == text(TEXTS[0])
    assert json.loads(got.body).keys() == BODY.keys() and json.loads(got.body)["temperature"] == 0
    own = {k.removeprefix("x-pyrskip-"): v for k, v in reply.headers.items() if k.startswith("x-pyrskip-")}
    assert own.pop("ms")
    assert own == {
        "decision": ",".join(map(str, wanted.selection.levels)),
        "tokens": str(wanted.selection.tokens),
        "saved": str(wanted.saved),
    }


def test_a_picture_is_sent_upright_and_without_its_exif(client: TestClient, server: Upstream) -> None:
    client.post(CHAT, json=asked(part(url(png(64, 32, orientation=6))), text(TEXTS[0])))
    shown = [Image.open(io.BytesIO(base64.b64decode(u.split(",")[1]))) for u in server.got[0].urls()]
    assert shown[0].size == (8, 16) and not any(p.getexif() for p in shown)


def test_what_a_servers_cache_goes_by_is_dropped_and_what_it_reads_is_kept(
    client: TestClient, server: Upstream
) -> None:
    given = {"type": "image_url", "uuid": "a", "image_url": {"url": PICTURE, "detail": "low", "uuid": "a"}}
    client.post(CHAT, json=asked(given, text(TEXTS[0])))
    parts = [p for p in server.got[0].messages()[0]["content"] if p["type"] == "image_url"]
    assert parts and all(set(p) == {"type", "image_url"} for p in parts)
    assert all(set(p["image_url"]) == {"url", "detail"} and p["image_url"]["detail"] == "low" for p in parts)


def test_every_picture_is_decided_on_its_own_and_by_its_own_turn(
    client: TestClient, server: Upstream, gate: GateAlone
) -> None:
    other = png(64)
    first = {"role": "user", "content": [part(PICTURE), text(TEXTS[0]), part(url(other))]}
    answer = {"role": "assistant", "content": "red"}
    second = {"role": "user", "content": [text(TEXTS[1]), part(url(other))]}
    client.post(CHAT, json={"model": "tiny", "messages": [{"role": "system", "content": "Be brief."}, first]})
    client.post(CHAT, json={"model": "tiny", "messages": [first, answer, second]})
    third = {"role": "user", "content": "?"}
    client.post(CHAT, json={"model": "tiny", "messages": [first, answer, second, answer, third]})
    one, two, three = server.got
    assert one.messages()[1] == two.messages()[0] == three.messages()[0]
    assert two.messages()[2] == three.messages()[2] and three.messages()[4]["content"] == "?"
    wanted = [
        gate.decide(base64.b64decode(PICTURE.split(",")[1]), TEXTS[0]),
        gate.decide(other, TEXTS[0]),
        gate.decide(other, TEXTS[1]),
    ]
    assert two.urls() == [data_url(picture) for of in wanted for picture in of.pictures]
    assert two.body == json.dumps(json.loads(two.body)).encode()
    assert three.body.startswith(two.body[: two.body.rindex(b"}]")])


def test_what_was_sent_of_a_turn_does_not_depend_on_the_cache(gate: GateAlone, server: Upstream) -> None:
    for most in (0, 10**9):
        with through(gate, server, cache_bytes=most) as client:
            for _ in range(2):
                client.post(CHAT, json=BODY)
    assert len({got.body for got in server.got}) == 1


def test_the_cache_holds_no_more_than_its_bytes() -> None:
    cache = Cache(100)
    for number in range(10):
        cache.put(bytes([number]), Sent(("x" * 30,), (0,), 1, 1))
        cache.get(b"\0")
    assert set(cache.kept) == {b"\0", b"\x08", b"\x09"} and cache.size == 90
    cache.put(b"large", Sent(("x" * 101,), (0,), 1, 1))
    assert cache.size == 0 and not cache.kept


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([part("https://example.com/a.png"), text(TEXTS[0])], "url"),
        ([part(PICTURE)], "question"),
        ([part(PICTURE), text("  ")], "question"),
        ([part(url(b"no image")), text(TEXTS[0])], "image"),
        ([part(PICTURE[:-400]), text(TEXTS[0])], "image"),
        ([part("data:image/png;base64,!"), text(TEXTS[0])], "image"),
        ([part("data:image/png,abc"), text(TEXTS[0])], "form"),
        ([{"type": "image_url", "image_url": None, "uuid": "seen"}, text(TEXTS[0])], "form"),
        ([{"type": "image_url", "image_url": {"url": None}}, text(TEXTS[0])], "form"),
    ],
)
def test_what_cannot_be_decided_goes_through_byte_for_byte(
    content: list[Any], reason: str, client: TestClient, server: Upstream
) -> None:
    body = json.dumps(asked(*content), indent=3).encode()
    reply = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200 and server.got[0].body == body
    assert reply.headers["x-pyrskip-decision"] == f"unchanged ({reason})"
    assert told(client, f'pyrskip_pictures_total{{outcome="{reason}"}}') == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"messages": 7}',
        b'{"messages": [7, {"role": "user"}, {"role": "user", "content": [7, {"type": "image_url"}]}]}',
        json.dumps(asked(text("hello"))).encode(),
        json.dumps({"messages": [{"role": "assistant", "content": [part(PICTURE), text("?")]}]}).encode(),
    ],
)
def test_a_body_without_a_picture_to_decide_on_is_the_upstreams_affair(
    body: bytes, client: TestClient, server: Upstream
) -> None:
    server.status = 400
    assert client.post(CHAT, content=body).status_code == 400
    assert server.got[0].body == body


def test_one_picture_that_cannot_be_read_takes_no_other_with_it(client: TestClient, server: Upstream) -> None:
    reply = client.post(CHAT, json=asked(part(url(b"no image")), part(PICTURE), text(TEXTS[0])))
    assert reply.headers["x-pyrskip-decision"].startswith("unchanged (image); ")
    assert server.got[0].urls()[0] == url(b"no image") and PICTURE not in server.got[0].urls()


def test_a_fault_in_the_gate_opens_it(
    client: TestClient, server: Upstream, gate: GateAlone, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def breaks(rows: Any) -> Any:
        raise RuntimeError("secret words")

    monkeypatch.setattr(gate.decider, "replace_rows", breaks)
    reply = client.post(CHAT, json=BODY)
    assert reply.status_code == 200 and server.got[0].urls() == [PICTURE]
    assert reply.headers["x-pyrskip-decision"] == "unchanged (error)"
    assert "RuntimeError" in caplog.text and "secret words" not in caplog.text


def test_too_many_and_too_slow_decisions_open_it(
    gate: GateAlone, server: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = gate.decider.replace_rows

    def slow(rows: Any) -> Any:
        time.sleep(0.3)
        return replace(rows)

    monkeypatch.setattr(gate.decider, "replace_rows", slow)
    with through(gate, server, Limits(batch=1, waiting=1, timeout=0.1)) as client:
        reply = client.post(CHAT, json=asked(*(part(url(png(30 + i))) for i in range(3)), text(TEXTS[0])))
    assert reply.status_code == 200 and len(server.got[0].urls()) == 3
    assert sorted(re.findall(r"\((\w+)\)", reply.headers["x-pyrskip-decision"])) == ["busy", "busy", "slow"]


def test_a_request_may_turn_the_dial(client: TestClient, server: Upstream, gate: GateAlone) -> None:
    image, seen = png(64, 64), set()
    body = asked(part(url(image)), text(TEXTS[0]))
    for name, value, dial in (
        ("price", "5", {"price": 5.0}),
        ("price", "0", {"price": 0.0}),
        ("max-tokens", "2", {"max_tokens": 2}),
        ("retention", "0.98", {"retention": 0.98}),
    ):
        reply = client.post(CHAT, json=body, headers={f"x-pyrskip-{name}": value})
        wanted = gate.decide(image, TEXTS[0], **dial)
        assert reply.headers["x-pyrskip-tokens"] == str(wanted.selection.tokens)
        assert len(server.got[-1].urls()) == len(wanted.pictures)
        assert not any(header.startswith("x-pyrskip") for header in server.got[-1].headers)
        seen.add(wanted.selection.tokens)
    assert len(seen) > 1, "the decisions are to differ"


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"x-pyrskip-price": "cheap"}, "x-pyrskip-price: 'cheap' is no number"),
        ({"x-pyrskip-price": "-1"}, "out of this gate's range"),
        ({"x-pyrskip-price": "nan"}, "is no number"),
        ({"x-pyrskip-max-tokens": "2.5"}, "allowed: whole numbers"),
        ({"x-pyrskip-max-tokens": "0"}, "max_tokens=0"),
        ({"x-pyrskip-retention": "0.5"}, "is not guaranteed by this export"),
        ({"x-pyrskip-retention": "0.98", "x-pyrskip-price": "1"}, "allowed: retention alone"),
    ],
)
def test_a_dial_that_the_gate_does_not_have_is_told(
    headers: dict[str, str], says: str, client: TestClient, server: Upstream
) -> None:
    reply = client.post(CHAT, json=BODY, headers=headers)
    assert reply.status_code == 422 and says in reply.json()["error"] and not server.got


def test_the_commands_dial_is_of_requests_that_say_nothing_else(gate: GateAlone, server: Upstream) -> None:
    image = base64.b64decode(PICTURE.split(",")[1])
    with through(gate, server, dial=Dial(max_tokens=1)) as client:
        tokens = [
            client.post(CHAT, json=BODY, headers=headers).headers["x-pyrskip-tokens"]
            for headers in ({}, {"x-pyrskip-price": "0"})
        ]
    wanted = gate.decide(image, TEXTS[0], max_tokens=1), gate.decide(image, TEXTS[0], price=0.0)
    assert tokens == [str(of.selection.tokens) for of in wanted]
    assert wanted[0].selection.levels == (2,)


def test_extra_fields_go_where_a_picture_was_replaced_and_nothing_of_the_name_is(
    gate: GateAlone, server: Upstream
) -> None:
    with through(gate, server, extra={"mm_processor_kwargs": {"min_pixels": 1}, "temperature": 1}) as client:
        client.post(CHAT, json=BODY)
        client.post(CHAT, json=asked(text("hello")))
    one, two = (json.loads(got.body) for got in server.got)
    assert one["mm_processor_kwargs"] == {"min_pixels": 1} and one["temperature"] == 0
    assert two == asked(text("hello"))


@pytest.mark.parametrize("events", [EVENTS, [b"\x00\xff" * 5000, b"", b"x"]])
def test_a_stream_comes_back_byte_for_byte(events: list[bytes], client: TestClient, server: Upstream) -> None:
    server.chunks, server.streams = [e for e in events if e], True
    server.headers = {"Content-Type": "text/event-stream", "Content-Encoding": "identity", "X-Own": "1"}
    reply = client.post(CHAT, json=BODY | {"stream": True})
    assert reply.content == b"".join(events)
    assert reply.headers["content-type"] == "text/event-stream" and reply.headers["x-own"] == "1"
    assert "x-pyrskip-ms" in reply.headers


def test_a_stream_comes_back_as_it_comes_and_shows_where_it_breaks_off(
    gate: GateAlone, server: Upstream
) -> None:
    server.chunks, server.streams, server.headers = EVENTS, True, {"Content-Type": "text/event-stream"}
    server.rest = Event()
    with running(create_app(gate, GatewayConfig(server.url), LIMITS)) as address:
        with httpx.stream("POST", address + CHAT, json=BODY, timeout=60) as reply:
            chunks = reply.iter_raw()
            assert next(chunks) == EVENTS[0]
            server.rest.set()
            assert b"".join(chunks) == b"".join(EVENTS[1:])
        server.breaks = True
        with (
            httpx.stream("POST", address + CHAT, json=BODY, timeout=60) as reply,
            pytest.raises(httpx.HTTPError),
        ):
            reply.read()
        assert 'kind="broken"} 1.0' in httpx.get(f"{address}/metrics").text


def test_an_upstream_is_left_when_the_client_has_gone(gate: GateAlone, server: Upstream) -> None:
    server.rest, server.first = Event(), False
    with running(create_app(gate, GatewayConfig(server.url), LIMITS)) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + CHAT, json=BODY, timeout=httpx.Timeout(60, read=0.3))
        assert server.left.wait(60)
        assert 'status="499"} 1.0' in httpx.get(f"{address}/metrics").text


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_the_upstreams_errors_are_the_clients_to_see(
    status: int, client: TestClient, server: Upstream
) -> None:
    server.status, server.chunks = status, [b'{"error": {"message": "no"}}']
    server.headers = {"Content-Type": "application/json", "Retry-After": "0.5"}
    reply = client.post(CHAT, json=BODY)
    assert (reply.status_code, reply.content) == (status, server.chunks[0])
    assert reply.headers["retry-after"] == "0.5" and "x-pyrskip-decision" in reply.headers


def test_an_upstream_that_is_down_or_silent_is_told_in_a_sentence(gate: GateAlone, server: Upstream) -> None:
    with TestClient(create_app(gate, GatewayConfig("http://127.0.0.1:9"), LIMITS)) as client:
        reply = client.post(CHAT, json=BODY)
        assert reply.status_code == 502
        assert reply.json() == {"error": "the upstream cannot be reached (ConnectError)"}
        assert told(client, 'pyrskip_upstream_faults_total{kind="down"}') == 1
    server.rest, server.first = Event(), False
    with through(gate, server, upstream_timeout=0.1) as client:
        reply = client.post(CHAT, json=BODY)
        assert reply.status_code == 504 and "gave no answer in time" in reply.json()["error"]


def test_every_other_path_under_v1_is_passed_on_as_it_is(client: TestClient, server: Upstream) -> None:
    server.headers |= {"Set-Cookie": "a=b"}
    assert client.get("/v1/models?x=%2F&y=a+b", headers={"Accept-Encoding": "identity"}).content == SAID
    client.cookies.clear()
    client.post("/v1/responses", content=b"\x00raw", headers={"X-Own": "1"})
    client.cookies.clear()
    client.delete("/v1/files/a%2Fb")
    models, responses, files = server.got
    assert (models.method, models.path) == ("GET", "/v1/models?x=%2F&y=a+b")
    assert models.headers["accept-encoding"] == "identity" and "content-length" not in models.headers
    assert (responses.path, responses.body, responses.headers["x-own"]) == ("/v1/responses", b"\x00raw", "1")
    assert (files.method, files.path) == ("DELETE", "/v1/files/a%2Fb") and "cookie" not in files.headers
    for path in ("/", "/metric", "/v2/models", "/v1/%2e%2e/health"):
        assert client.get(path).status_code == 404
    assert len(server.got) == 3


@pytest.mark.parametrize("address", ["", "/", "/v1", "/v1/"])
def test_an_address_of_the_upstream_may_end_with_v1(address: str, gate: GateAlone, server: Upstream) -> None:
    with TestClient(create_app(gate, GatewayConfig(server.url + address), LIMITS)) as client:
        client.get("/v1/models")
    assert server.got[0].path == "/v1/models"


def test_the_clients_key_reaches_the_upstream_and_no_log(
    client: TestClient, server: Upstream, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    bearer = {"Authorization": f"Bearer {KEY}"}
    client.post(CHAT, json=BODY, headers=bearer)
    server.status = 500
    client.post(CHAT, json=BODY | {"n": 2}, headers=bearer)
    client.post(CHAT, json=BODY, headers=bearer | {"x-pyrskip-price": "cheap"})
    assert [got.headers["authorization"] for got in server.got] == [bearer["Authorization"]] * 2
    own = [r for r in caplog.records if r.name.startswith(("pyrskip", "uvicorn", "httpx", "root"))]
    assert not any(KEY in r.getMessage() for r in own) and KEY not in "".join(capfd.readouterr())
    assert KEY not in client.get("/metrics").text


def test_a_gateway_with_a_key_of_its_own_asks_for_it_and_keeps_it(gate: GateAlone, server: Upstream) -> None:
    limits = Limits(timeout=600.0, key=KEY)
    for config, passed in ({}, None), ({"upstream_key": "theirs"}, "Bearer theirs"):
        with through(gate, server, limits, **config) as client:
            for headers in {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}:
                reply = client.post(CHAT, json=BODY, headers=headers)
                assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert not server.got
            assert client.get("/metrics").status_code == 401 and client.get("/health").status_code == 200
            client.post(CHAT, json=BODY, headers={"Authorization": f"bearer {KEY}"})
            assert server.got.pop().headers.get("authorization") == passed
    assert KEY not in repr(limits)


def test_a_body_over_the_limit_is_refused(client: TestClient, server: Upstream) -> None:
    reply = client.post(CHAT, content=b"x" * 300_000)
    assert reply.status_code == 413 and not server.got


def test_metrics_count_what_was_saved(client: TestClient, gate: GateAlone) -> None:
    wanted = gate.decide(base64.b64decode(PICTURE.split(",")[1]), TEXTS[0])
    for _ in range(2):
        client.post(CHAT, json=asked(part(PICTURE), part("http://a/b.png"), text(TEXTS[0])))
    assert told(client, f'pyrskip_requests_total{{path="{CHAT}",status="200"}}') == 2
    assert told(client, 'pyrskip_pictures_total{outcome="replaced"}') == 2
    assert told(client, 'pyrskip_pictures_total{outcome="url"}') == 2
    assert told(client, "pyrskip_visual_tokens_total") == 2 * wanted.selection.tokens
    whole = told(client, "pyrskip_visual_tokens_whole_total")
    assert whole == 2 * (wanted.selection.tokens + wanted.saved)
    assert told(client, "pyrskip_own_seconds_count") == 2
    assert client.get("/health").json() == {"status": "ok", "export": gate.digest}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ((), "bundle= is missing|upstream= is missing"),
        (("upstream=http://a", "bundle=nowhere"), "nowhere is no directory"),
        (("upstream=ftp://a", "bundle=b"), "upstream=ftp://a is no address"),
        (("upstream=http://[", "bundle=b"), r"upstream=http://\[ is no address"),
        (("upstream=http://a", "bundle=b", "extra=[]"), r"extra=\[\] is no JSON object"),
        (("upstream=http://a", "bundle=b", "key=NOT_SET_ANYWHERE"), "key=NOT_SET_ANYWHERE is no environment"),
        (("upstream=http://a", "bundle=b", "port=99999"), "port=99999"),
        (("upstream=http://a", "bundle=b", "colour=1"), "colour= is unknown"),
        (("upstream=http://a", "bundle=b", "run=r"), "run= and bundle= both name a gate"),
        (("upstream=http://a", "run=nowhere"), "nowhere"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    keys: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(says, refused(capsys, "gateway", *keys))


def test_each_kind_of_export_is_refused_where_the_other_belongs(
    alone: tuple[Path, ServedModel, Gate],
    exported: tuple[Path, NativeModel, Gate],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = refused(capsys, "gateway", f"bundle={exported[0]}", "upstream=http://a")
    assert "holds the model that its gate decides for; allowed: a gate alone" in whole
    with pytest.raises(UserError, match="is a gate alone, and the model that answers runs elsewhere"):
        load_engine(str(alone[0]), "torch", None)


@pytest.mark.slow
def test_a_stopped_gateway_finishes_what_came_in(
    alone: tuple[Path, ServedModel, Gate], server: Upstream
) -> None:
    """The command itself, with a key: on SIGTERM it ends once the reply under way has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "gateway",
        f"bundle={alone[0]}",
        "backend=torch",
        f"upstream={server.url}",
        f"port={port}",
        "key=OWN",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from pyrskip.cli import main; main()", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OWN": KEY},
    )
    address, bearer = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
    server.rest, server.first = Event(), False
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        replies: list[httpx.Response] = []
        asking = Thread(
            target=lambda: replies.append(httpx.post(address + CHAT, json=BODY, headers=bearer, timeout=60))
        )
        asking.start()
        while not server.got:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        server.rest.set()
        asking.join()
        assert replies[0].content == SAID and process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
