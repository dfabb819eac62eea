"""The counters, gauges and histograms that Prometheus reads at /metrics."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import Scope

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # a folder in which several workers keep their figures, set before this is imported

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
HISTORIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The metrics of one server. They have a registry of their own, so that a process can run several servers.

    Where `SHARED` is set, `show` gives the sums over all workers.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "setrec_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "setrec_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "setrec_requests_in_flight", "Requests being answered.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.batch = Histogram(
            "setrec_batch_histories", "Histories answered by one batch.", buckets=HISTORIES, registry=self.registry
        )
        self.waiting = Gauge(
            "setrec_waiting_histories",
            "Histories that wait for a batch.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.takeovers = Counter(
            "setrec_takeovers", "Checkpoints that were to be taken over.", ["outcome"], registry=self.registry
        )
        self.generation = Gauge(
            "setrec_generation",
            "Checkpoints taken over since the start.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.items = Gauge(
            "setrec_items", "Items in the catalogue.", registry=self.registry, multiprocess_mode="livemostrecent"
        )
        self.history_items = Counter(
            "setrec_history_items",
            "Items of histories: kept by the prefix cache, or read.",
            ["how"],
            registry=self.registry,
        )
        self.cache_bytes = Gauge(
            "setrec_prefix_cache_bytes",
            "What the prefix cache holds of histories.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.logged = Counter(
            "setrec_logged_answers", "Answers for the log: written, or dropped.", ["outcome"], registry=self.registry
        )
        self.shadow = Counter(
            "setrec_shadow_answers",
            "Answers of the shadow: answered, dropped, failed.",
            ["outcome"],
            registry=self.registry,
        )
        self.events = Counter("setrec_events", "Events: stored, or known already.", ["outcome"], registry=self.registry)
        for counter, outcomes in (
            (self.logged, ("written", "dropped")),
            (self.shadow, ("answered", "dropped", "failed")),
            (self.events, ("stored", "duplicate")),
        ):
            for outcome in outcomes:
                counter.labels(outcome)
        for how in ("kept", "read"):
            self.history_items.labels(how)
        for outcome in ("done", "refused"):
            self.takeovers.labels(outcome)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request. route: its pattern, so that unknown paths make no new series."""
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_items(self, kept: int, read: int) -> None:
        """Count the items of answered histories: kept by the prefix cache, and read."""
        self.history_items.labels("kept").inc(kept)
        self.history_items.labels("read").inc(read)

    def show(self) -> bytes:
        """The text that Prometheus reads."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(scope: Scope) -> str:
    """The label of a request's method; unknown methods share one."""
    return str(scope["method"]) if scope["method"] in METHODS else "other"


def route_label(scope: Scope) -> str:
    """The label of a request's route: its pattern, or `none` if no route matched."""
    return str(getattr(scope.get("route"), "path", "none"))
