"""Two ranks in processes of their own, for tests of what several ranks do."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What work(rank) returns on either: tensors and plain values. Trainers take them for ranks that a
    launcher has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_run, (work, port, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def _run(rank: int, work: Callable[[int], Any], port: int, folder: Path) -> None:
    names = {
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    torch.save(work(rank), folder / f"rank-{rank}.pt")
