"""Micro-batching: one call of the model answers the requests that arrive at about the same time.

    request --+
    request --+-- waits at most `max_wait` seconds --> one batch --> one thread --> answers
    request --+   (and as long as the batch before it takes)

One thread computes, while the event loop reads and writes. Requests are answered in order, none is split and none is lost: each
gets its answer, its own error, or, if too many are waiting, `BusyError` at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """Too many requests are waiting, or the server is closing."""


class _Waiting(NamedTuple):
    request: object
    size: int
    answer: asyncio.Future[Any]
    times: list[int]  # nanoseconds: arrival; then begin and end of its batch


class Batcher(Generic[Request, Answer]):
    """Collects requests into batches for one thread.

    Args:
        answer: answers a batch: one answer or one exception for each request, in order.
        max_batch: largest size of a batch, the sum of the sizes of its requests; a larger request is a batch of its own.
        max_wait: seconds that a request waits for others while the thread is idle.
        max_waiting: largest size of what waits, the sum over requests; further requests are refused.
        observe: is called with the size of every batch.
        trace: is called in the context of every answered request, with nanoseconds: arrival, begin and end of its batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        max_batch: int = 32,
        max_wait: float = 0.002,
        max_waiting: int = 4096,
        observe: Callable[[int], object] = lambda size: None,
        trace: Callable[[int, int, int], object] | None = None,
    ) -> None:
        self.answer = answer
        self.max_batch, self.max_wait, self.max_waiting = max_batch, max_wait, max_waiting
        self.observe, self.trace = observe, trace
        self.waiting: deque[_Waiting] = deque()
        self.size = 0  # of all waiting requests
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="recommend")
        self.arrived, self.full = asyncio.Event(), asyncio.Event()
        self.closing = False
        self.worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer. Call this in the event loop."""
        self.worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Answer the waiting requests, then stop."""
        self.closing = True
        self.arrived.set()
        self.full.set()
        if self.worker is not None:
            await self.worker
        self.thread.shutdown()

    async def submit(self, request: Request, size: int = 1) -> Answer:
        """Wait for the answer to a request.

        Args:
            request: the request.
            size: how much of a batch it fills.

        Raises:
            BusyError: more than `max_waiting` would wait, or the server is closing.
            Exception: the exception that `answer` returned for this request.
        """
        if self.closing or (self.waiting and self.size + size > self.max_waiting):
            raise BusyError
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        times = [time.time_ns()]
        self.waiting.append(_Waiting(request, size, future, times))
        self.size += size
        self.arrived.set()
        if self.size >= self.max_batch:
            self.full.set()
        try:
            return await future
        finally:
            if self.trace is not None and len(times) == 3:
                self.trace(*times)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            if self.size < self.max_batch and not self.closing:
                with suppress(TimeoutError):  # no other request came
                    await asyncio.wait_for(self.full.wait(), self.max_wait)
            batch = self._take()
            if batch:
                self.observe(sum(one.size for one in batch))
                requests = [one.request for one in batch]
                began = time.time_ns()
                try:
                    answers = await loop.run_in_executor(self.thread, self.answer, requests)  # type: ignore[arg-type]
                except Exception as error:  # `answer` itself failed: every request of the batch gets the error
                    answers = [error] * len(batch)
                ended = time.time_ns()
                for one, answer in zip(batch, answers, strict=True):
                    one.times.extend((began, ended))
                    _settle(one.answer, answer)
            elif self.closing and not self.waiting:
                return

    def _take(self) -> list[_Waiting]:
        """Take the next batch, oldest first, without requests whose client has gone."""
        batch: list[_Waiting] = []
        size = 0
        while self.waiting and (not batch or size + self.waiting[0].size <= self.max_batch):
            one = self.waiting.popleft()
            self.size -= one.size
            if not one.answer.done():  # cancelled while it waited
                batch.append(one)
                size += one.size
        if not self.waiting and not self.closing:
            self.arrived.clear()
        if self.size < self.max_batch and not self.closing:
            self.full.clear()
        return batch


def _settle(future: asyncio.Future[Any], answer: object) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
