"""Trainings that are killed at random and run again until they end: python -m tests.chaos [rounds=200]
[seed=0]

A round is a training of a gate on one rank, on two that are forked, or on two that a launcher started. Any of
its processes gets any signal at any time, up to three times. It must never hang, lose no more steps than it
may, and end with the weights of a training that was left alone. All processes are forked from this one, so
that a start takes a second.
"""

import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pyrskip.data.datamodule import StepData
from pyrskip.data.workers import SIGNALS
from pyrskip.reward import RewardConfig
from pyrskip.training.preemption import preemptible
from pyrskip.training.rules.reinforce import ReinforceModule
from pyrskip.training.trainer import TrainerConfig, build_trainer, fit
from tests.toys import toy_module

STEPS = 24
SLOWEST = 90.0
"""Seconds after which a start counts as hung."""
KILLS = (*SIGNALS, signal.SIGKILL)


@dataclass(frozen=True)
class Way:
    """How a training runs. launcher: alone, fork or ranks."""

    launcher: str
    workers: int
    accumulate: int
    every: int


def work(way: Way, folder: Path, rank: int = 0, port: int = 0) -> None:
    """What a process of a training does."""
    os.environ.pop("MASTER_PORT", None)
    if way.launcher == "ranks":
        names = {
            "LOCAL_RANK": rank,
            "NODE_RANK": 0,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in names.items()})
    module = toy_module("reinforce", "bernoulli", RewardConfig(target=0.4), STEPS, baseline="running_mean")
    assert isinstance(module, ReinforceModule)
    step, batch = module.training_step, 8 if way.launcher == "alone" else 4

    def noted(rows: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(0.03)
        with open(folder / f"steps-{module.global_rank}", "a") as file:
            file.write(f"{batch_idx}\n")
        return step(rows, batch_idx)

    module.training_step = noted  # type: ignore[method-assign]
    config = TrainerConfig(
        devices=1 if way.launcher == "alone" else 2,
        strategy="ddp_fork" if way.launcher == "fork" else "auto",
        accumulate=way.accumulate,
        checkpoint_every=way.every,
        timeout=30,
        quiet=True,
    )
    with preemptible():
        data = StepData(range(200), torch.tensor, batch, STEPS, 1, way.workers)  # type: ignore[arg-type]
        state = fit(build_trainer(config, folder), module, data, folder)
        if rank == 0:
            torch.save(state, folder / "end.pt")


def start(way: Way, folder: Path) -> list[int]:
    """Fork the processes of a training; gives their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(2 if way.launcher == "ranks" else 1):
        process = os.fork()
        if process:
            found.append(process)
            continue
        code = 1
        try:
            os.setsid()
            with open(folder / "said", "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            work(way, folder, rank, port)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return found


def family(process: int) -> list[int]:
    """A process and all that it has started, but for those that have ended."""
    found = [process]
    with suppress(FileNotFoundError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        found += [one for child in children for one in family(int(child))]
    return found


def ended(processes: list[int], seconds: float) -> list[int] | None:
    """Exit codes, as a shell's but negative for signals; None where one has not ended in time."""
    limit, codes = time.monotonic() + seconds, dict.fromkeys(processes, 1 << 10)
    while any(code == 1 << 10 for code in codes.values()):
        if time.monotonic() > limit:
            return None
        for process in [p for p, code in codes.items() if code == 1 << 10]:
            gone, status = os.waitpid(process, os.WNOHANG)
            if gone:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return list(codes.values())


def steps_of(folder: Path) -> list[int]:
    path = folder / "steps-0"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def round_of(way: Way, folder: Path, draw: random.Random, whole: dict[str, torch.Tensor]) -> Counter[str]:
    """One training, killed up to three times. Raises AssertionError with what went wrong."""
    told: Counter[str] = Counter()
    for _ in range(draw.randrange(1, 4)):
        before, processes = steps_of(folder), start(way, folder)
        signum = draw.choice(KILLS)
        codes = ended(processes, draw.uniform(0.05, 2.5))
        if codes is not None:
            break
        # one of its processes, or all, as schedulers do
        every = [one for process in processes for one in family(process)]
        for one in every if draw.random() < 0.5 else [draw.choice(every)]:
            with suppress(ProcessLookupError):
                os.kill(one, signum)
        codes = ended(processes, SLOWEST)
        assert codes is not None, f"hung after {signal.Signals(signum).name}"
        now = steps_of(folder)[len(before) :]
        if before and now:
            lost = max(before) + 1 - now[0]
            assert lost <= way.every * way.accumulate, f"{lost} steps lost"
        told[f"{way.launcher} {signal.Signals(signum).name} {min(codes)}"] += 1
    codes = ended(start(way, folder), SLOWEST)
    assert codes is not None, "hung when it was run again"
    assert not any(codes), f"ended with {codes} when it was run again"
    end = torch.load(folder / "end.pt", weights_only=True)
    assert all(end[name].equal(value) for name, value in whole.items()), "other weights"
    return told


def main(rounds: int = 200, seed: int = 0) -> int:
    torch.set_num_threads(1)
    draw, told, began = random.Random(seed), Counter[str](), time.monotonic()
    failed, wholes = 0, dict[tuple[bool, int], dict[str, torch.Tensor]]()
    for number in range(rounds):
        way = Way(
            draw.choice(("alone", "fork", "ranks")),
            draw.choice((0, 0, 1)),
            draw.choice((1, 2)),
            draw.choice((1, 3, 7)),
        )
        own = random.Random(draw.random())
        with TemporaryDirectory() as name:
            folder, key = Path(name), (way.launcher == "alone", way.accumulate)
            if key not in wholes:
                codes = ended(start(way, folder), SLOWEST)
                assert codes is not None and not any(codes), (folder / "said").read_text()
                wholes[key] = torch.load(folder / "end.pt", weights_only=True)
                for path in folder.iterdir():
                    path.unlink()
            try:
                told += round_of(way, folder, own, wholes[key])
            except AssertionError as error:
                failed += 1
                said = folder / "said"
                print(
                    f"round {number}, {way}: {error}\n{said.read_text()[-3000:] if said.exists() else ''}",
                    flush=True,
                )
        if (number + 1) % 20 == 0:
            print(f"{number + 1} rounds, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    for what, count in sorted(told.items()):
        print(f"{count:5}  {what}")
    return failed


if __name__ == "__main__":
    sys.exit(
        int(main(**{name: int(value) for name, value in (word.split("=") for word in sys.argv[1:])}) > 0)
    )
