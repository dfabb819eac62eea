"""What the routes share: the model in service, the batches of requests, the metrics and the options."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from setrec.errors import ConfigError, DataError
from setrec.serve import messages
from setrec.serve.batching import Batcher
from setrec.serve.guard import make_guard
from setrec.serve.model_calls import RequestResult, answer_batch
from setrec.serve.model_holder import ModelHolder, ServedModel, TakeoverRunningError
from setrec.serve.options import ServeOptions
from setrec.serve.prometheus import ServerMetrics
from setrec.serve.shop import MAIN, Shop
from setrec.serve.tracing import spans_of_batch
from setrec.shop.database import StoreError
from setrec.shop.events import EventStore


class Service:
    """What the routes share.

    Attributes:
        guard: the dependency of routes that change something; see `make_guard`.
        checks: what /health/ready asks; each gives "" or a sentence on what is wrong.
        draining: the server has been told to end.
        reload: takes over a checkpoint, in all workers.

    Args:
        holder: the model in service.
        token: the bearer token for changes; None or "": nothing can be changed.
        options: see `ServeOptions`.
        provider: of traces; None: none.
        store: users and events; None: there is no database.
    """

    def __init__(
        self,
        holder: ModelHolder,
        token: str | None,
        options: ServeOptions,
        store: EventStore | None = None,
        provider: Any = None,
    ) -> None:
        self.holder = holder
        self.options = options
        self.metrics = ServerMetrics()
        self.draining = False
        self.reload: Callable[[Path], object] = self.take_over
        self.checks: list[Callable[[], Awaitable[str]]] = [self._own_state]
        self.guard: Callable[..., Any] = make_guard(token)
        self.batcher: Batcher[messages.RecommendBody, RequestResult] = Batcher(
            self._answer,
            options.max_batch, options.max_wait_ms / 1000, options.max_waiting, self.metrics.batch.observe,
            None if provider is None else spans_of_batch(provider),
        )  # fmt: skip
        self.shop = (
            None
            if store is None
            else Shop(store, {MAIN: holder} | holder.followers, self.batcher, options, self.metrics)
        )
        if self.shop is not None:
            self.checks.append(self._database_state)

    async def wait_for(self, body: messages.RecommendBody) -> None:
        """Have items that another process has added in the catalogue before a request that names them is answered."""
        if self.holder.behind():
            ids = {own for history in (*body.histories, body.candidates or []) for own in history}
            await asyncio.to_thread(self.holder.wait_for, ids)

    def sample(self) -> None:
        """Set the gauges."""
        current = self.holder.current
        self.metrics.waiting.set(self.batcher.size)
        self.metrics.generation.set(current.generation)
        self.metrics.cache_bytes.set(current.recommender.prefix_cache_bytes)
        self.metrics.items.set(len(current.recommender))

    async def _database_state(self) -> str:
        assert self.shop is not None
        try:
            await asyncio.to_thread(self.shop.store.last)
        except StoreError as error:
            return str(error)
        return ""

    async def _own_state(self) -> str:
        return "The server is ending." if self.draining else self.holder.fault

    def take_over(self, path: Path) -> ServedModel:
        """Take over a checkpoint in this process, and count how that ended; see `ModelHolder.take_over`."""
        try:
            served = self.holder.take_over(path)
        except TakeoverRunningError:
            raise
        except Exception:
            self.metrics.takeovers.labels("refused").inc()
            raise
        self.metrics.takeovers.labels("done").inc()
        if self.shop is not None:
            self.shop.remember(served)
        return served

    def _answer(self, requests: Sequence[messages.RecommendBody]) -> list[RequestResult | Exception]:
        answers = answer_batch(self.holder.current, requests)
        faulty = any(isinstance(one, Exception) and not isinstance(one, ConfigError | DataError) for one in answers)
        self.holder.answered = -math.inf if faulty else time.monotonic()
        return answers
