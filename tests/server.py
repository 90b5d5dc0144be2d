"""An OpenAI-style server on this machine that answers by a function, for tests of remote models."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Reply = Callable[[str, list[bytes]], str | int]
"""(text, pictures as PNG) -> the answer, or the status of a refusal."""


@dataclass
class Server:
    """reply: how it answers. requests: bodies of all requests; statuses: of the next replies, before it
    answers at all."""

    reply: Reply
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    usage: int | None = None
    raw: bytes | None = None

    def pictures(self) -> list[int]:
        """How many pictures each request held."""
        return [len(content(request)[1]) for request in self.requests]


def content(request: dict[str, Any]) -> tuple[str, list[bytes]]:
    """The text and the pictures of a request."""
    (message,) = request["messages"]
    text, pictures = "", []
    for part in message["content"]:
        if part["type"] == "text":
            text = part["text"]
        else:
            head, data = part["image_url"]["url"].split(",", 1)
            assert head == "data:image/png;base64"
            pictures.append(base64.b64decode(data))
    return text, pictures


@contextmanager
def serve(reply: Reply) -> Iterator[Server]:
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers = dict(self.headers)
            status = server.statuses.pop(0) if server.statuses else 200
            said: dict[str, Any] = {"error": "busy"}
            if self.path != "/v1/chat/completions":
                status = 404
            if status == 200:
                server.requests.append(body)
                answer = server.reply(*content(body))
                status = answer if isinstance(answer, int) else 200
                said = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                if server.usage is not None:
                    said["usage"] = {"prompt_tokens": server.usage}
            payload = server.raw if server.raw is not None and status == 200 else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{running.server_port}/v1"
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
