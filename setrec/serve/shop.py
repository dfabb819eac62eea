"""What the routes of users and events share: the database, its batches of work, and the models side by side."""

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence

from setrec.recommend import RankedItem
from setrec.serve import messages
from setrec.serve.answer_log import AnswerLog
from setrec.serve.batching import Batcher, BusyError
from setrec.serve.exploring import explore
from setrec.serve.model_calls import RequestResult, answer_batch, answer_in_pieces
from setrec.serve.model_holder import ModelHolder, ServedModel
from setrec.serve.options import ServeOptions
from setrec.serve.prometheus import ServerMetrics
from setrec.shop.answers import Answer, AnswerStore
from setrec.shop.database import StoreError
from setrec.shop.events import Added, Event, EventStore, KeyedHistory
from setrec.shop.takeovers import Takeover, TakeoverStore

MAIN, CHALLENGER, SHADOW = "main", "challenger", "shadow"
Answering = Batcher[messages.RecommendBody, RequestResult]
_CHANCE = random.SystemRandom()
log = logging.getLogger("uvicorn.error")


class Shop:
    """The database of a server and what stands before it. Each of its batchers has a thread, so the event loop never waits for it.

    Args:
        store: users and events.
        holders: the models in service: main, and challenger and shadow where there are such.
        main: the batches of the main model.
        options: see `ServeOptions`.
        metrics: of the server.
    """

    def __init__(
        self,
        store: EventStore,
        holders: dict[str, ModelHolder],
        main: Answering,
        options: ServeOptions,
        metrics: ServerMetrics,
    ) -> None:
        self.store, self.holders, self.options, self.metrics = store, holders, options, metrics
        self.answers = AnswerStore(store.database)
        self.takeovers = TakeoverStore(store.database)
        self.remember(holders[MAIN].current)
        self.log = AnswerLog(self.answers, options.log_days, metrics)
        self.adding: Batcher[Sequence[Event], Added] = Batcher(store.add_groups, 5_000, 0, 100_000)
        self.reading: Batcher[str, KeyedHistory] = Batcher(store.keyed_histories, 512, 0, 100_000)
        self.erasing: Batcher[str, int] = Batcher(store.delete_many, 100, 0.05, 10_000)
        self.answering = {MAIN: main}
        for variant in (CHALLENGER, SHADOW):
            if variant in holders:
                answer = _answering(holders[variant])
                most = options.max_batch if variant == SHADOW else options.max_waiting
                self.answering[variant] = Batcher(answer, options.max_batch, options.max_wait_ms / 1000, most)
        self._background: set[asyncio.Task[None]] = set()

    def remember(self, served: ServedModel) -> None:
        """Write down that a model began to serve. It serves all the same if the database fails."""
        when = round(served.since.timestamp() * 1e6)
        try:
            self.takeovers.add(Takeover(when, str(served.path), served.generation, served.name))
        except StoreError as error:
            log.warning("that %s serves is not written down: the database failed (%s)", served.path, error)

    def start(self) -> None:
        """Begin to work. Call this in the event loop."""
        self.log.start()
        for one in self._own():
            one.start()

    async def close(self) -> None:
        """End what has begun, then stop."""
        await asyncio.gather(*self._background)
        for one in self._own():
            await one.close()
        await asyncio.to_thread(self.log.close)
        self.store.close()

    def _own(self) -> list[Batcher]:  # type: ignore[type-arg]
        others = [batcher for name, batcher in self.answering.items() if name != MAIN]
        return [self.adding, self.reading, self.erasing, *others]

    def variant_of(self, user: str) -> str:
        """The model that answers a user: always the same one, in all servers of this database."""
        if CHALLENGER not in self.holders:
            return MAIN
        digest = hashlib.blake2b(user.encode(), key=self.store.database.salt, digest_size=8, person=b"variant").digest()
        return CHALLENGER if int.from_bytes(digest) < self.options.challenger_share * 2**64 else MAIN

    async def histories(self, users: Sequence[str]) -> list[KeyedHistory]:
        """The keys and histories of users, with every event that is acknowledged by now."""
        return await asyncio.gather(*[self.reading.submit(user) for user in users])

    async def recommend(self, body: messages.RecommendBody, variant: str, keys: Sequence[int | None]) -> RequestResult:
        """Answer some histories by one model, explore, and log the answers.

        Args:
            body: the request.
            variant: main or challenger.
            keys: of the user of each history; None: not known.

        Raises:
            BusyError: see `Batcher.submit`.
            SETRecError: see `Recommender.recommend`.
        """
        share, k = self.options.explore, body.k
        asked = body if not share else body.model_copy(update={"k": 2 * k})
        result = await answer_in_pieces(self.answering[variant], asked)
        drawn = [
            explore(one.items, k, share, _CHANCE) if share else (one.items, None) for one in result.recommendations
        ]
        ids = [new_id() for _ in drawn]
        logged = []
        for own, key, (items, propensities) in zip(ids, keys, drawn, strict=True):
            sampled = _CHANCE.random() < self.options.log_answers
            logged.append(sampled)
            if sampled:
                self._log(own, variant, key, result, k, items, propensities)
        if SHADOW in self.holders and any(logged):
            self._shadow(body, ids, keys, logged)
        lists = [one._replace(items=items) for one, (items, _) in zip(result.recommendations, drawn, strict=True)]
        return result._replace(recommendations=lists, ids=ids)

    def _log(
        self, own: str, variant: str, key: int | None, result: RequestResult, k: int, items: Sequence[RankedItem],
        propensities: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Put one list into the log of answers."""
        n_items = len(self.holders[variant].current.recommender)
        ids, scores = [one.id for one in items], [one.score for one in items]
        now = time.time_ns() // 1000
        self.log.put(
            Answer(own, variant, key, now, result.generation, result.model, k, n_items, ids, scores, propensities)
        )

    def _shadow(
        self, body: messages.RecommendBody, ids: Sequence[str], keys: Sequence[int | None], logged: Sequence[bool]
    ) -> None:
        """Have the shadow answer too, unless requests wait for an answer."""
        if self.answering[MAIN].size or self.answering[SHADOW].size:
            self.metrics.shadow.labels("dropped").inc(sum(logged))
            return

        async def answer() -> None:
            try:
                result = await answer_in_pieces(self.answering[SHADOW], body)
            except BusyError:
                self.metrics.shadow.labels("dropped").inc(sum(logged))
                return
            except Exception:  # counted: it must not harm the answer that is shown
                self.metrics.shadow.labels("failed").inc(sum(logged))
                return
            for own, key, one, wanted in zip(ids, keys, result.recommendations, logged, strict=True):
                if wanted:
                    self._log(own, SHADOW, key, result, body.k, one.items)
            self.metrics.shadow.labels("answered").inc(sum(logged))

        task = asyncio.get_running_loop().create_task(answer())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def new_id() -> str:
    """The id of an answer: 16 characters of chance."""
    return secrets.token_urlsafe(12)


def _answering(holder: ModelHolder) -> Callable[[Sequence[messages.RecommendBody]], list[RequestResult | Exception]]:
    return lambda requests: answer_batch(holder.current, requests)
