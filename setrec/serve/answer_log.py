"""Writing the log of answers, in batches and beside the requests."""

import contextlib
import logging
import queue
import threading
import time

from setrec.serve.prometheus import ServerMetrics
from setrec.shop.answers import Answer, AnswerStore
from setrec.shop.database import StoreError

WAITING = 10_000  # most answers that wait to be written
BATCH = 500
EVERY = 0.5  # seconds between two batches
TRIM = 3600.0  # seconds between two looks for answers that are too old
log = logging.getLogger("uvicorn.error")


class AnswerLog:
    """A thread that writes answers to the database. If it can't keep up, answers are dropped and counted.

    Args:
        store: where they are written.
        days: how long they are kept.
        metrics: counts the written and dropped answers.
    """

    def __init__(self, store: AnswerStore, days: float, metrics: ServerMetrics) -> None:
        self.store, self.days, self.metrics = store, days, metrics
        self._waiting: queue.Queue[Answer] = queue.Queue(WAITING)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="answer log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, then stop."""
        self._ending.set()
        self._thread.join()

    def put(self, answer: Answer) -> None:
        """Have an answer written soon."""
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            self.metrics.logged.labels("dropped").inc()

    def _work(self) -> None:
        trimmed = -TRIM
        while True:
            ending = self._ending.wait(EVERY)
            if time.monotonic() - trimmed > TRIM:
                trimmed = time.monotonic()
                with contextlib.suppress(StoreError):  # again in an hour
                    self.store.forget(self.days)
            while batch := self._take():
                try:
                    self.store.add(batch)
                    self.metrics.logged.labels("written").inc(len(batch))
                except StoreError as error:
                    self.metrics.logged.labels("dropped").inc(len(batch))
                    log.error("%d answers are not in the log: %s", len(batch), error)
            if ending:
                return

    def _take(self) -> list[Answer]:
        batch: list[Answer] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._waiting.get_nowait())
        return batch
