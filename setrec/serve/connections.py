"""Limits of connections: time, number, size of a head, and the names in the Host header.

uvicorn closes idle connections only, and only after an answer. Here a client that sends nothing, half a head or half a body, or
does not read its answer, is cut off after a time limit. If too many connections are open, a new one takes the place of the one that
has kept the server waiting longest.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Collection
from typing import Any, ClassVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

NOSNIFF = {"x-content-type-options": "nosniff"}  # a browser must not guess what an answer is
MAX_HEAD = 64 << 10  # bytes


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, one object a connection, with limits. `limited` makes a class with other limits."""

    time_limit: ClassVar[float] = 20.0  # seconds
    max_connections: ClassVar[int] = 512

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; make room if there are too many connections."""
        super().connection_made(transport)
        self._unread = 0  # bytes since the last part of a body
        self._wait()
        self._timer = self.loop.call_later(self.time_limit, self._check)
        if len(self.connections) > self.max_connections:
            idle = [one for one in self.connections if isinstance(one, LimitedProtocol) and not one._at_work()]
            oldest = min(idle, key=lambda one: one._since)  # never empty: this one is idle
            if oldest is self:
                self.refuse(503, "Too many connections are open; try again in a second.")
            else:
                oldest._cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; refuse a head that is too large."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD:
            self.refuse(431, f"The head of the request is larger than {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """A request begins: its head has the time limit."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """The head is there: the body has the time limit."""
        super().on_headers_complete()
        self._wait()

    def on_body(self, body: bytes) -> None:
        """A part of a body is there; `RequestLimits` bounds its size."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._unread = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is on its way: reading it, and the next request, have the time limit."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read what was written: it has the time limit to do so."""
        self._wait()
        super().pause_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors."""
        self.refuse(400, f"This cannot be read as HTTP: {msg}")

    def refuse(self, status: int, sentence: str) -> None:
        """Answer with an error and close the connection; close it at once if an answer has begun."""
        answering = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not self.transport.is_closing() and not answering:
            body = json.dumps({"error": sentence}).encode()
            headers = {
                "content-type": "application/json",
                "content-length": len(body),
                "connection": "close",
                **NOSNIFF,
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[status] + lines.encode() + b"\r\n" + body)
        self.transport.close()

    def _wait(self) -> None:
        self._since = self.loop.time()  # the client keeps the server waiting since then

    def _at_work(self) -> bool:
        """Whether the whole request is there and the answer is not: the server keeps the client waiting."""
        if self.cycle is None or self.flow.write_paused:
            return False
        return bool(self.pipeline) or not (self.cycle.more_body or self.cycle.response_complete)

    def _check(self) -> None:
        """Cut the client off if it has had its time; otherwise look again then."""
        left = self.time_limit if self._at_work() else self._since + self.time_limit - self.loop.time()
        if left <= 0:
            self._cut_off()
            left = 1.0  # for an answer that the client does not read
        self._timer = self.loop.call_later(left, self._check)

    def _cut_off(self) -> None:
        if self.transport.is_closing():  # closed before, but something is still to be written
            self.transport.abort()
        elif self._unread or (self.cycle is not None and self.cycle.more_body):
            self.refuse(408, f"The request did not arrive within {self.time_limit:g} seconds.")
        else:
            self.transport.close()


def limited(time_limit: float, max_connections: int) -> type[LimitedProtocol]:
    """The protocol with these limits, for `uvicorn.Config(http=...)`."""
    limits: dict[str, Any] = {"time_limit": time_limit, "max_connections": max_connections}
    return type("LimitedProtocol", (LimitedProtocol,), limits)


class HostCheck:
    """Refuses a request whose Host header names another machine, as a page does that has its name point here (DNS rebinding).

    Addresses are allowed, since no page can have one as its name. So is a request of HTTP/1.0 without the header.

    Args:
        app: the application behind it.
        names: allowed names, in lower case; "*": any; "*.shop.example": every name that ends so.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol, or refuse it."""
        if scope["type"] == "http":
            given = Headers(scope=scope).getlist("host")
            if not (self._allowed(given[0]) if len(given) == 1 else not given and scope["http_version"] == "1.0"):
                shown = ascii(given[0])[:200] if given else "none"
                sentence = f"The Host header ({shown}) names another server; start this one with --allowed_hosts NAME."
                return await JSONResponse({"error": sentence}, 400, NOSNIFF)(scope, receive, send)
        await self.app(scope, receive, send)

    def _allowed(self, host: str) -> bool:
        """Whether a header such as "localhost:8000" or "[::1]:8000" is allowed."""
        name, _, port = host.lower().rpartition(":") if ":" in host.rpartition("]")[2] else (host.lower(), "", "")
        if port and not port.isdigit():
            return False
        if "*" in self.names or name in self.names or name.removesuffix(".") in self.names:
            return True
        if any(name.endswith(one[1:]) for one in self.names if one.startswith("*.")):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def own_names(host: str) -> set[str]:
    """The names under which a server that listens at `host` is reached without further ado."""
    return {"localhost", host.lower(), socket.gethostname().lower()}
