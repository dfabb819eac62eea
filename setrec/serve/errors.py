"""The form of errors: a status, and {"error": one sentence}."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from setrec.errors import ModelError, SETRecError
from setrec.inference.journal import JournalWriteError
from setrec.serve import messages
from setrec.serve.batching import BusyError
from setrec.serve.connections import NOSNIFF
from setrec.serve.guard import TOKEN
from setrec.serve.prometheus import route_label
from setrec.serve.request_ids import REQUEST_ID, request_id
from setrec.shop.database import StoreError, UnfinishedErasureError

log = logging.getLogger("uvicorn.error")

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": messages.ErrorOut, "description": why}
    for code, why in {
        400: "The body cannot be read.",
        413: "The body is too large.",
        422: "Something in the body is wrong; the sentence says what and where.",
        503: "Too many requests are waiting: try again; or the model gives no finite scores: see /health.",
    }.items()
}
CHANGE_ERRORS: dict[int | str, dict[str, Any]] = ERRORS | {
    401: {"model": messages.ErrorOut, "description": "The bearer token is missing or wrong."},
    403: {
        "model": messages.ErrorOut,
        "description": f"The server was started without {TOKEN}: nothing can be changed.",
    },
    404: {"model": messages.ErrorOut, "description": "No such item."},
    409: {"model": messages.ErrorOut, "description": "Another takeover is running."},
    507: {"model": messages.ErrorOut, "description": "The change could not be written to the disk; it was not made."},
}


def add_error_handlers(app: FastAPI) -> None:
    """Give every error the form {"error": one sentence}."""

    def sentence(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = {
            404: f"There is nothing at {ascii(request.url.path)[:200]}; see /openapi.json.",
            405: f"{request.method} is not allowed here; see /openapi.json.",
            400: "The body cannot be read: send JSON in UTF-8.",
        }
        plain = error.detail in ("Not Found", "Method Not Allowed", "There was an error parsing the body")
        return sentence(error.status_code, text[error.status_code] if plain else str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return sentence(422, messages.validation_sentence(error.errors()))

    @app.exception_handler(SETRecError)
    async def refused(request: Request, error: SETRecError) -> JSONResponse:
        return sentence(422, str(error))

    @app.exception_handler(ModelError)
    async def sick(request: Request, error: ModelError) -> JSONResponse:
        log.error("%s %s: %s", request.method, route_label(request.scope), error)  # a path may hold the id of a user
        return sentence(503, str(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return sentence(503, "Too many requests are waiting; try again in a second.", {"retry-after": "1"})

    @app.exception_handler(JournalWriteError)
    async def disk(request: Request, error: JournalWriteError) -> JSONResponse:
        log.error("%s %s: %s", request.method, route_label(request.scope), error)
        return sentence(507, f"The change could not be written to the disk and was not made ({error}).")

    @app.exception_handler(StoreError)
    async def database(request: Request, error: StoreError) -> JSONResponse:
        log.error("%s %s: %s", request.method, route_label(request.scope), error)
        known = (
            str(error) if isinstance(error, UnfinishedErasureError) else "The database failed; send the request again."
        )
        return sentence(503, known, {"retry-after": "1"})  # the reason, in the log, names hosts and files

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return sentence(
            500, "The server failed at this request; its log says why.", NOSNIFF | {REQUEST_ID: request_id.get()}
        )  # outside of RequestLimits and RequestIds
