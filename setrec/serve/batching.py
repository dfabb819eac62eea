"""Micro-batching: requests that come at about the same time are answered by one call of the model.

    request --+
    request --+-- waits at most `max_wait` seconds --> one batch --> one thread --> answers
    request --+   (and as long as the batch before it takes)

One thread computes, the event loop goes on reading and writing. Requests wait in order, none is split and none is lost:
each gets its answer, its own error, or, when too many wait already, `BusyError` at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """Too many requests wait already."""


class _Waiting(NamedTuple):
    request: object
    size: int
    answer: asyncio.Future


class Batcher(Generic[Request, Answer]):
    """Collects requests into batches for one thread.

    Args:
        answer: answers a batch: one answer, or the exception that request shall get, for each request, in order.
        max_batch: a batch is closed when it holds this much (sizes of its requests added up); a larger request goes alone.
        max_wait: seconds that a request waits for company while the thread is idle.
        max_waiting: what may wait at once (sizes added up); beyond it requests are refused.
        observe: is told the size of every batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
        max_batch: int = 32,
        max_wait: float = 0.002,
        max_waiting: int = 4096,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.answer = answer
        self.max_batch, self.max_wait, self.max_waiting = max_batch, max_wait, max_waiting
        self.observe = observe
        self.waiting: deque[_Waiting] = deque()
        self.size = 0  # of what waits
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="recommend")
        self.arrived, self.full = asyncio.Event(), asyncio.Event()
        self.closing = False
        self.worker: asyncio.Task | None = None

    def start(self) -> None:
        """Begin to answer; call inside the event loop."""
        self.worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Answer what waits, then stop."""
        self.closing = True
        self.arrived.set()
        self.full.set()
        if self.worker is not None:
            await self.worker
        self.thread.shutdown()

    async def submit(self, request: Request, size: int = 1) -> Answer:
        """The answer to a request. size: what it counts for in a batch.

        Raises:
            BusyError: more than `max_waiting` would wait, or the server is closing.
            Exception: what `answer` gave for this request.
        """
        if self.closing or (self.waiting and self.size + size > self.max_waiting):
            raise BusyError
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append(_Waiting(request, size, future))
        self.size += size
        self.arrived.set()
        if self.size >= self.max_batch:
            self.full.set()
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            if self.size < self.max_batch and not self.closing:
                with suppress(TimeoutError):  # nobody else came
                    await asyncio.wait_for(self.full.wait(), self.max_wait)
            batch = self._take()
            if batch:
                self.observe(sum(one.size for one in batch))
                requests = [one.request for one in batch]
                try:
                    answers = await loop.run_in_executor(self.thread, self.answer, requests)  # type: ignore[arg-type]
                except Exception as error:  # a fault in `answer` itself: everyone in the batch must hear of it
                    answers = [error] * len(batch)
                for one, answer in zip(batch, answers, strict=True):
                    _settle(one.answer, answer)
            elif self.closing and not self.waiting:
                return

    def _take(self) -> list[_Waiting]:
        """The next batch, oldest first, without those whose client has gone."""
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


def _settle(future: asyncio.Future, answer: object) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
