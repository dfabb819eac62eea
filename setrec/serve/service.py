"""What the routes share: the model in service, the batches of requests, the metrics and the options."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from setrec.errors import ConfigError, DataError
from setrec.serve import messages
from setrec.serve.batching import Batcher
from setrec.serve.guard import make_guard
from setrec.serve.model_calls import RequestResult, answer_batch
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from setrec.serve.prometheus import ServerMetrics
from setrec.serve.shop import MAIN, Shop
from setrec.shop.events import EventStore


class Service:
    """What the routes share.

    Attributes:
        guard: the dependency of routes that change something; see `make_guard`.

    Args:
        holder: the model in service.
        token: the bearer token for changes; None or "": nothing can be changed.
        options: see `ServeOptions`.
        store: users and events; None: there is no database.
    """

    def __init__(
        self, holder: ModelHolder, token: str | None, options: ServeOptions, store: EventStore | None = None
    ) -> None:
        self.holder = holder
        self.options = options
        self.metrics = ServerMetrics()
        self.guard: Callable[..., Any] = make_guard(token)
        self.batcher: Batcher[messages.RecommendBody, RequestResult] = Batcher(
            self._answer,
            options.max_batch, options.max_wait_ms / 1000, options.max_waiting, self.metrics.batch.observe,
        )  # fmt: skip
        self.shop = (
            None
            if store is None
            else Shop(store, {MAIN: holder} | holder.followers, self.batcher, options, self.metrics)
        )
        self.metrics.waiting.set_function(lambda: self.batcher.size)
        self.metrics.generation.set_function(lambda: holder.current.generation)
        self.metrics.cache_bytes.set_function(lambda: holder.current.recommender.prefix_cache_bytes)
        self.metrics.items.set_function(lambda: holder.current.recommender.info()["n_items"])

    def _answer(self, requests: Sequence[messages.RecommendBody]) -> list[RequestResult | Exception]:
        answers = answer_batch(self.holder.current, requests)
        faulty = any(isinstance(one, Exception) and not isinstance(one, ConfigError | DataError) for one in answers)
        self.holder.answered = -math.inf if faulty else time.monotonic()
        return answers
