"""Traces by OpenTelemetry, where its endpoint is set: spans of a request, of its wait for a batch, of the model's call.

A span holds the route, the method and the status. It holds no path and no body, in which users are named.
"""

import os
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from setrec.errors import ConfigError
from setrec.serve.prometheus import method_label, route_label
from setrec.serve.request_ids import request_id

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start_tracing() -> Any:
    """Start to export, as the standard variables of OpenTelemetry say; returns the provider. None: no endpoint is set.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(f"{ENDPOINTS[0]} is set, and traces need {error.name}: pip install 'setrec[otel]'.") from None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "setrec"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes a span of every request.

    Args:
        app: the application behind it.
        provider: makes the tracer.
    """

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        from opentelemetry import propagate, trace

        self.app, self.tracer = app, provider.get_tracer("setrec.serve")
        self._extract, self._trace = propagate.extract, trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_noting_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)
            await send(message)

        method = method_label(scope)
        with self.tracer.start_as_current_span(
            method, self._extract(dict(Headers(scope=scope))), self._trace.SpanKind.SERVER, record_exception=False
        ) as span:
            try:
                await self.app(scope, receive, send_noting_status)
            finally:
                route = route_label(scope)
                span.update_name(f"{method} {route}")
                span.set_attributes(
                    {"http.request.method": method, "http.route": route, "setrec.request_id": request_id.get()}
                )


def spans_of_batch(provider: Any) -> Any:
    """Make what turns the times of a batch (arrival, begin, end; nanoseconds) into spans of the current request."""
    tracer = provider.get_tracer("setrec.serve")

    def make(arrived: int, began: int, ended: int) -> None:
        tracer.start_span("wait for the batch", start_time=arrived).end(began)
        tracer.start_span("model", start_time=began).end(ended)

    return make
