"""A web server of a directory's files, with the faults that servers have."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Site:
    """ranges: whether it knows them. dies: names of files whose transfers break off half-way. down: names
    that are errors.

    asked: method, name and bytes sent of each request, for all that reads it.
    """

    url: str = ""
    ranges: bool = True
    dies: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def served(directory: Path) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).strip("/")
            path = directory / name
            if name in site.down:
                self.send_error(503)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if site.ranges else None
            total = len(content)
            if asked:
                content = content[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(content) - 1}/{total}"
                )
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                sent = content[: len(content) // 2] if name in site.dies else content
                site.asked.append((name, len(sent)))
                self.wfile.write(sent)
                if name in site.dies:
                    self.close_connection = True

        do_HEAD = do_GET  # noqa: N815 - as the base class names it

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512  # a batch comes at once

    server = Server(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
