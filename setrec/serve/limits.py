"""The outermost layer of the application: limits on the bodies of requests, HEAD, and the counting of requests."""

import time

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from setrec.serve import messages
from setrec.serve.connections import NOSNIFF
from setrec.serve.prometheus import ServerMetrics, method_label, route_label

LINES = b"application/x-ndjson"


class RequestLimits:
    """The outermost layer: refuses a body that is too large before all of it is read, answers HEAD, and counts requests."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics
        self.held = 0  # bytes of the bodies of all requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, size = time.perf_counter(), 500, 0
        head = scope["method"] == "HEAD"  # GET without the body
        inner = {**scope, "method": "GET"} if head else scope

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            part = len(message.get("body", b""))
            if scope["path"].endswith("/events") and LINES in dict(scope["headers"]).get(b"content-type", b""):
                return message  # JSON lines of any length: what is held of them is bounded by the route
            size += part
            self.held += part
            if size > messages.MAX_BODY:
                raise HTTPException(413, f"The body is larger than {messages.MAX_BODY} bytes.", {"connection": "close"})
            if self.held > messages.MAX_BODIES:
                sentence = "Too many large requests are on their way; try again in a second."
                raise HTTPException(503, sentence, {"connection": "close", "retry-after": "1"})
            return message

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(NOSNIFF)
            elif head:
                message = {**message, "body": b""}
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(inner, receive_limited, send_noting_status)
        finally:
            self.held -= size
            self.metrics.in_flight.dec()
            self.metrics.count_request(route_label(inner), method_label(scope), status, time.perf_counter() - start)
