"""An OpenAI-style server on this machine that answers by a function, for tests of remote models.

It counts tokens, streams, and has log-probabilities of prompts where it is told to. What it is made to do
wrong it does to requests that hold a question, not to those that count tokens.
"""

import base64
import hashlib
import io
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from PIL import Image

from pyrskip.models.vlm.counts import PROBE

Reply = Callable[[str, list[bytes]], str | int]
"""(text, pictures as PNG) -> the answer, or the status of a refusal."""
TEMPLATE = 20


def count(text: str, pictures: list[bytes]) -> int:
    """Tokens of a prompt: a square of 8 pixels a side each, a quarter of the text's bytes, and the
    template's."""
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    return sum(-(-w // 8) * -(-h // 8) for w, h in sizes) + TEMPLATE - -len(text.encode()) // 4


@dataclass
class Server:
    """reply: how it answers. requests: bodies of all requests that hold a question, probes: of the others;
    statuses: of the next replies, before it answers at all; fate: what becomes of the n-th request: 'ok',
    'garbage', 'null', 'close', or a status; doomed: what always becomes of one with these pictures. after: a
    status's Retry-After.
    """

    reply: Reply
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    fate: Callable[[int], str] = lambda n: "ok"
    doomed: Callable[[list[bytes]], str] = lambda pictures: "ok"
    after: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    count: Callable[[str, list[bytes]], int | None] = count
    raw: bytes | None = None
    streams: bool = False
    scores: bool = False
    seen: int = 0

    def pictures(self) -> list[int]:
        """How many pictures each request held."""
        return [len(content(request)[1]) for request in self.requests]


def content(request: dict[str, Any]) -> tuple[str, list[bytes]]:
    """The text and the pictures of a request."""
    text, pictures = "", []
    for part in request["messages"][0]["content"]:
        if part["type"] == "text":
            text = part["text"]
        else:
            head, data = part["image_url"]["url"].split(",", 1)
            assert head == "data:image/png;base64"
            pictures.append(base64.b64decode(data))
    return text, pictures


def prompt_logprobs(request: dict[str, Any], tokens: int) -> list[dict[str, Any] | None]:
    """Of a prompt whose last message is an answer: a token a letter, then its end and a line's, each as
    likely as a digest of the request's pictures and the letter says."""
    pictures = content(request)[1]
    answer = request["messages"][1]["content"]
    ended = not request["continue_final_message"]
    shown = hashlib.sha256(b"".join(pictures)).hexdigest()
    letters = [*answer, *(("<end>", "\n") if ended else ())]
    told = [
        -(int(hashlib.sha256((shown + letter).encode()).hexdigest(), 16) % 100) / 100 for letter in letters
    ]
    return [None, *[{"1": {"logprob": -9.0}}] * (tokens - 1), *[{"2": {"logprob": value}} for value in told]]


def events(said: dict[str, Any]) -> bytes:
    """A completion as a stream: a piece a letter."""
    answer = said["choices"][0]["message"]["content"]
    pieces: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": letter}, "finish_reason": None}]} for letter in answer
    ]
    pieces.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    pieces.append({"choices": [], "usage": said.get("usage")})
    lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


@contextmanager
def serve(reply: Reply) -> Iterator[Server]:
    server, lock = Server(reply), Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers = dict(self.headers)
            if self.path != "/v1/chat/completions":
                self.tell(404, {"error": "no such path"})
                return
            text, pictures = content(body)
            if text == PROBE:
                server.probes.append(body)
                self.complete(body, "ok", text, pictures)
                return
            with lock:
                server.seen += 1
                doomed = server.doomed(pictures)
                fate = server.fate(server.seen) if doomed == "ok" else doomed
                status = server.statuses.pop(0) if server.statuses else 200
            if fate.isdigit():
                status = int(fate)
            if fate == "close":
                # at once, and with what was received unread
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if status != 200:
                self.tell(status, {"error": "busy"})
                return
            server.requests.append(body)
            answer = server.reply(text, pictures)
            if isinstance(answer, int):
                self.tell(answer, {"error": "busy"})
            elif server.raw is not None or fate == "garbage":
                self.send(200, server.raw or b'{"choices": [{"mess')
            else:
                self.complete(body, None if fate == "null" else answer, text, pictures)

        def complete(
            self, body: dict[str, Any], answer: str | None, text: str, pictures: list[bytes]
        ) -> None:
            said: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
            tokens = server.count(text, pictures)
            if "prompt_logprobs" in body:
                if not server.scores:
                    self.tell(422, {"error": "unknown field: prompt_logprobs"})
                    return
                assert tokens is not None
                said["prompt_logprobs"] = prompt_logprobs(body, tokens)
                tokens = len(said["prompt_logprobs"])
            if tokens is not None:
                said["usage"] = {"prompt_tokens": tokens}
            if server.streams and body.get("stream") and answer is not None:
                self.send(200, events(said), "text/event-stream")
            else:
                self.tell(200, said)

        def tell(self, status: int, said: dict[str, Any]) -> None:
            self.send(status, json.dumps(said).encode())

        def send(self, status: int, payload: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            if server.after and status != 200:
                self.send_header("Retry-After", server.after)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass  # a client that was killed

    running = Listener(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{running.server_port}/v1"
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
