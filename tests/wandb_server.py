"""As much of a W&B server as its client needs to upload runs: what was uploaded can be looked at, and runs
deleted."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"


@dataclass
class Server:
    """files: run id -> file -> line number -> line. deleted: ids that the server refuses."""

    url: str = ""
    files: dict[str, dict[str, dict[int, str]]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def history(self, run: str) -> list[dict[str, Any]]:
        lines = self.files[run].get(HISTORY, {})
        return [json.loads(lines[i]) for i in sorted(lines)]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The reply to a GraphQL operation."""
        run = str(variables.get("name"))
        project = {"id": "p", "name": "pyrskip", "entity": {"id": "e", "name": "someone"}}
        if "upsertBucket" in query:
            new = run not in self.files
            self.files.setdefault(run, {})
            return {
                "upsertBucket": {
                    "bucket": {"id": run, "name": run, "project": project, "historyLineCount": 0},
                    "inserted": new,
                }
            }
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": self._resumed(run) if run in self.files else None}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": []}}
        if "viewer" in query:
            return {
                "viewer": {
                    "id": "v",
                    "entity": "someone",
                    "username": "someone",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        return {"serverInfo": {"features": []}}

    def _resumed(self, run: str) -> dict[str, Any]:
        def tail(name: str) -> str:
            lines = self.files[run].get(name, {})
            return json.dumps([lines[max(lines)]] if lines else [])

        counts = {
            f"{k}LineCount": len(self.files[run].get(n, {}))
            for k, n in (("history", HISTORY), ("events", EVENTS))
        }
        tails = {
            "historyTail": tail(HISTORY),
            "eventsTail": tail(EVENTS),
            "summaryMetrics": "{}",
            "config": "{}",
        }
        # without t in its config a run counts as never begun
        return {
            "id": run,
            "name": run,
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": '{"t": 1}',
            **counts,
            **tails,
        }


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server on this machine, until the block ends."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.loads(
                gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body or b"{}"
            )
            if "/file_stream" in self.path:
                files = state.files.setdefault(self.path.split("/")[-2], {})
                for name, part in (content.get("files") or {}).items():
                    lines = files.setdefault(name, {})
                    lines.update({part["offset"] + i: line for i, line in enumerate(part["content"])})
                self.reply(200, {"limits": {}})
            elif "query" in content:
                variables = content.get("variables") or {}
                if "upsertBucket" in content["query"] and variables.get("name") in state.deleted:
                    message = (
                        f"run {variables['name']} was previously created and deleted; try a new run name"
                    )
                    self.reply(409, {"errors": [{"message": message}]})
                else:
                    self.reply(200, {"data": state.answer(content["query"], variables)})
            else:
                self.reply(200, {})

        do_PUT = do_GET = do_POST  # noqa: N815

        def reply(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
