"""An id for every request, in its answer, in the log and in its trace."""

import json
import logging
import re
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
request_id: ContextVar[str] = ContextVar("request_id", default="")
_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIds:
    """Takes over the X-Request-ID of a request, if it is short and plain, or makes one, and gives it back with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        own = given if _ALLOWED.fullmatch(given) else uuid.uuid4().hex
        request_id.set(own)  # of this request's task, to its end

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = own
            await send(message)

        await self.app(scope, receive, send_with_id)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, logger; request_id and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "message": record.getMessage(), "logger": record.name,
        }  # fmt: skip
        if request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as(form: Literal["json", "text"]) -> None:
    """Bring the log of the server into a form; text: as uvicorn writes it."""
    if form == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)
        logging.root.handlers = [handler]
        for name in ("uvicorn", "uvicorn.error"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.INFO)
