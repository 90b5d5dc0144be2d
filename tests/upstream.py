"""A server of OpenAI's chat interface that a gateway stands before: it keeps what it was sent, byte for byte,
and replies what a test says. And the gateway as clients have it, on a port."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select
from socket import MSG_PEEK
from threading import Event, Thread
from typing import Any

import uvicorn

SAID = json.dumps({"choices": [{"message": {"role": "assistant", "content": "red"}}]}).encode()
EVENTS = [
    b'data: {"choices": [{"delta": {"content": "r\xc3\xa9d"}}]}\n\n',
    b": ping\n\n",
    b"data: [DONE]\n\n",
]


@dataclass(frozen=True)
class Got:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def messages(self) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = json.loads(self.body)["messages"]
        return said

    def urls(self) -> list[str]:
        """Of all pictures, in their order."""
        parts = [part for message in self.messages() for part in message["content"] if isinstance(part, dict)]
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


@dataclass
class Upstream:
    """status, headers, chunks: of every reply; breaks: it has no end. rest: what is waited for before all but
    the first chunk, or before all of the reply where not `first`; left: whether a client has gone then."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    chunks: Sequence[bytes] = (SAID,)
    streams: bool = False
    breaks: bool = False
    rest: Event | None = None
    first: bool = True
    left: Event = field(default_factory=Event)


@contextmanager
def upstream() -> Iterator[Upstream]:
    server = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # names as HTTP has them, whatever their case
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.got.append(Got(self.command, self.path, headers, body))
            if not server.first:
                self.wait()
            self.send_response(server.status)
            for name, value in server.headers.items():
                self.send_header(name, value)
            if server.streams:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(sum(map(len, server.chunks))))
            self.end_headers()
            for number, chunk in enumerate(server.chunks):
                if number and server.first:
                    self.wait()
                self.wfile.write(
                    f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" if server.streams else chunk
                )
                self.wfile.flush()
            if server.breaks:
                self.close_connection = True
            elif server.streams:
                self.wfile.write(b"0\r\n\r\n")

        def wait(self) -> None:
            """Until the rest may go, or the client does."""
            while server.rest is not None and not server.rest.wait(0.02):
                ready, _, _ = select([self.connection], [], [], 0)
                if ready and not self.connection.recv(1, MSG_PEEK):
                    server.left.set()
                    return

        do_GET = do_POST = do_DELETE = reply  # noqa: N815 - as the base class names them

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{running.server_port}"
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An application on a port of its own, for what a client in the same process cannot see."""
    service = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = Thread(target=service.run, daemon=True)
    thread.start()
    while not service.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{service.servers[0].sockets[0].getsockname()[1]}"
    finally:
        service.should_exit = True
        thread.join()
