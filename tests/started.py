"""Servers of others, each as a process of its own."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


@contextmanager
def started(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path, seconds: int
) -> Iterator[str]:
    """The address of an OpenAI-style server that is well; it is ended afterwards. command: takes --host and
    --port behind it; log: for what it says; seconds: that it may take to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as said:
        server = subprocess.Popen(words, env=os.environ | environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        for _ in range(5 * seconds):
            assert server.poll() is None, log.read_text()[-4000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            pytest.fail(f"no server after {seconds} seconds: {log.read_text()[-4000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()
