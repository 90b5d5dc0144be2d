"""Batching across requests: one thread runs the engine, on whatever has been opened while it was busy; a few
others open the images of those that wait.

Nothing waits for a batch to fill: a lone request runs at once, and under load batches grow by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pyrskip.inference.decider import Decider, Prepared, Request

Run = Callable[[Sequence[Prepared]], Sequence[Any]]
"""A result for each row, of a batch of them."""


HELPERS = 4
"""Threads beside the engine's: each may hold an image of pyrskip.inference.images.MAX_PIXELS."""


class BusyError(Exception):
    """As many requests wait as may, or the service is shutting down."""


@dataclass(frozen=True)
class Job:
    prepared: "Future[Prepared]"
    run: Run
    result: "asyncio.Future[Any]"


class Batcher:
    """most: requests of one batch; waiting: of all that wait. observe(requests, seconds): called after each
    batch. helpers: threads for what the engine need not do."""

    def __init__(
        self,
        engine: Decider,
        most: int = 16,
        waiting: int = 128,
        observe: Callable[[int, float], None] = lambda n, s: None,
    ) -> None:
        self.engine, self.most, self.waiting, self.observe = engine, most, waiting, observe
        self.jobs: deque[Job] = deque()
        self.wake = asyncio.Event()
        self.closing = self.idle = False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="helper")
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Answer what waits, take nothing new, and stop."""
        self.closing = True
        self.wake.set()
        if self.task is not None:
            await self.task
        self.thread.shutdown()
        self.helpers.shutdown()

    def submit(self, request: Request, run: Run) -> "asyncio.Future[Any]":
        """A future of what `run` gives the request, such as `engine.answer_rows`; one that is cancelled
        before its batch starts is never computed. Raises BusyError."""
        if self.closing or len(self.jobs) >= self.waiting:
            raise BusyError
        if self.idle:  # the questions of many are read together, which is cheaper
            self.idle = False
            self.helpers.submit(self.engine.read_ahead, request.question)
        prepared = self.helpers.submit(self.engine.prepare_one, request, {})
        job = Job(prepared, run, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.wake.set()
        return job.result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch: list[Job] = []
            # of those whose images are open once the first one's is: none waits for what came behind it
            while self.jobs and len(batch) < self.most and (not batch or self.jobs[0].prepared.done()):
                job = self.jobs.popleft()
                if job.result.done():
                    job.prepared.cancel()
                    continue
                if not batch:
                    # what is wrong with it is told by _answer
                    await asyncio.gather(asyncio.wrap_future(job.prepared), return_exceptions=True)
                batch.append(job)
            if batch:
                for job, result in zip(
                    batch, await loop.run_in_executor(self.thread, self._run, batch), strict=True
                ):
                    _settle(job.result, result)
                continue
            if self.closing:
                return
            self.wake.clear()
            self.idle = True
            await self.wake.wait()

    def _run(self, batch: list[Job]) -> list[Any]:
        """In the engine's thread. What is wrong with one request is its own error alone."""
        start = perf_counter()
        results = self._answer(batch)
        self.observe(len(batch), perf_counter() - start)
        return results

    def _answer(self, batch: list[Job]) -> list[Any]:
        """Of each job its result, or the exception that it ends with."""
        results: list[Any] = [RuntimeError("not run")] * len(batch)
        good: list[tuple[int, Prepared]] = []
        for row, job in enumerate(batch):
            try:
                good.append((row, job.prepared.result()))
            except Exception as error:
                results[row] = error
        try:
            for run in dict.fromkeys(batch[row].run for row, _ in good):
                own = [(row, prepared) for row, prepared in good if batch[row].run == run]
                for (row, _), result in zip(own, run([prepared for _, prepared in own]), strict=True):
                    results[row] = result
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # whoever broke the batch breaks alone
            return [self._answer([job])[0] for job in batch]
        return results


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
